//! What a guest is doing, as told by its directory and its VMM.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use vmm_api::{Event, EventRecord, Instance, RunState};
use vmm_client::Client;

use super::lock;
use crate::socket;

/// What a VMM writes down, line by line.
pub const EVENTS: &str = "events.jsonl";
/// How long a VMM may take to say what it does.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It has not been started yet.
    Created,
    /// It is about to start or to end: its VMM answers nobody yet, or no more.
    Starting,
    /// Its processors run.
    Running,
    /// It stands still.
    Paused,
    /// It has been asked to switch itself off.
    Stopping,
    /// It has ended in good order.
    Stopped,
    /// It could not start or go on, for a reason that it told.
    Failed,
    /// Its VMM was killed, or this host lost power.
    Crashed,
    /// Its VMM runs and does not answer.
    Unresponsive,
}

/// A state, and what is known with it.
#[derive(Clone, Debug)]
pub struct Found {
    /// The state.
    pub state: State,
    /// What the VMM says, if it runs.
    pub instance: Option<Instance>,
    /// The last that happened, if it does not run.
    pub last: Option<EventRecord>,
}

impl State {
    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Starting => "starting",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
            State::Failed => "failed",
            State::Crashed => "crashed",
            State::Unresponsive => "unresponsive",
        }
    }

    /// All that a person can ask for.
    pub const ALL: [State; 9] = [
        State::Created,
        State::Starting,
        State::Running,
        State::Paused,
        State::Stopping,
        State::Stopped,
        State::Failed,
        State::Crashed,
        State::Unresponsive,
    ];

    /// Whether there is a VMM.
    pub fn is_active(self) -> bool {
        match self {
            State::Created | State::Stopped | State::Failed | State::Crashed => false,
            State::Starting
            | State::Running
            | State::Paused
            | State::Stopping
            | State::Unresponsive => true,
        }
    }
}

/// Looks what the guest with this directory is doing.
pub fn look(directory: &Path) -> Found {
    if lock::is_held(directory) {
        let (state, instance) = ask(directory);
        // It may have ended while it was asked.
        if instance.is_some() || lock::is_held(directory) {
            return Found { state, instance, last: None };
        }
    }
    let last = last_event(directory);
    let state = match last.as_ref().map(|record| &record.event) {
        None => State::Created,
        Some(Event::Stopped { .. }) => State::Stopped,
        Some(Event::Error(_)) => State::Failed,
        Some(_) => State::Crashed,
    };
    Found { state, instance: None, last }
}

fn ask(directory: &Path) -> (State, Option<Instance>) {
    let Ok(stream) = socket::connect(directory) else { return (State::Starting, None) };
    let instance = Client::new(stream).and_then(|it| it.with_patience(PATIENCE).instance());
    match instance {
        Ok(instance) => {
            let state = match instance.state {
                RunState::Running => State::Running,
                RunState::Paused => State::Paused,
                RunState::Stopping => State::Stopping,
            };
            (state, Some(instance))
        }
        Err(vmm_client::Error::Gone) => (State::Starting, None),
        Err(_) => (State::Unresponsive, None),
    }
}

/// The last event that a VMM wrote down.
pub fn last_event(directory: &Path) -> Option<EventRecord> {
    /// An event is shorter.
    const MOST: u64 = 64 << 10;
    let mut file = File::open(directory.join(EVENTS)).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(MOST))).ok()?;
    let mut text = Vec::new();
    file.take(MOST).read_to_end(&mut text).ok()?;
    // A line that is not whole was being written when the host lost power.
    let mut lines = text.rsplit(|&byte| byte == b'\n');
    lines.find_map(|line| serde_json::from_slice(line).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_last_event_says_how_it_ended() {
        let home = tempfile::tempdir().unwrap();
        let events = home.path().join(EVENTS);
        assert_eq!(look(home.path()).state, State::Created);
        let started = r#"{"number":1,"time_ms":1,"event":"started","accelerator":"soft"}"#;
        let stopped = r#"{"number":2,"time_ms":9,"event":"stopped","reason":"power-off"}"#;
        let error = r#"{"number":2,"time_ms":9,"event":"error","kind":"host","message":"full"}"#;
        for (text, state) in [
            (format!("{started}\n"), State::Crashed),
            (format!("{started}\n{stopped}\n"), State::Stopped),
            (format!("{started}\n{stopped}\n{started}\n"), State::Crashed),
            (format!("{started}\n{error}\n{{\"num"), State::Failed),
            ("nonsense".to_owned(), State::Created),
        ] {
            fs::write(&events, text).unwrap();
            assert_eq!(look(home.path()).state, state);
        }
    }
}
