//! `lodge events`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use vmm_api::{Event, EventRecord, Failure, StopReason};

use crate::args::lifecycle::EventsArgs;
use crate::guests::state::{self, EVENTS, State};
use crate::guests::{self, lock};
use crate::output;

/// How often to look for guests that have been started.
const LOOK: Duration = Duration::from_millis(200);

/// An event, and whose it is.
#[derive(Serialize)]
struct Line<'a> {
    guest: &'a str,
    #[serde(flatten)]
    record: &'a EventRecord,
}

/// Prints events; the value is the exit status.
pub fn run(args: &EventsArgs) -> Result<u8, Failure> {
    for name in &args.names {
        guests::directory_of(name)?;
    }
    if args.once { print_past(args) } else { follow(args) }
}

fn wanted(args: &EventsArgs) -> Result<Vec<String>, Failure> {
    let names = guests::names()?.into_iter();
    Ok(names.filter(|name| args.names.is_empty() || args.names.contains(name)).collect())
}

/// What VMMs have written down.
fn print_past(args: &EventsArgs) -> Result<u8, Failure> {
    for name in &args.names {
        guests::existing(name)?;
    }
    let mut all = Vec::new();
    for name in wanted(args)? {
        let path = guests::directory_of(&name)?.join(EVENTS);
        // A guest that was never started has none.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let records = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        all.extend(records.map(|record: EventRecord| (name.clone(), record)));
    }
    all.sort_by_key(|(_, record)| record.time_ms);
    for (name, record) in &all {
        print(args, name, record)?;
    }
    Ok(0)
}

/// What happens from now on, until this program is ended.
fn follow(args: &EventsArgs) -> Result<u8, Failure> {
    let begun = guests::unix_ms();
    let (sender, come) = mpsc::channel::<(String, Option<EventRecord>)>();
    // The guests that are followed, and up to when what they told was printed.
    let mut followed: HashMap<String, bool> = HashMap::new();
    loop {
        for name in wanted(args)? {
            let directory = guests::directory_of(&name)?;
            if followed.get(&name) != Some(&true) && lock::is_held(&directory) {
                followed.insert(name.clone(), true);
                let sender = sender.clone();
                thread::spawn(move || listen(&name, &directory, begun, &sender));
            }
        }
        loop {
            match come.recv_timeout(LOOK) {
                Ok((name, Some(record))) => print(args, &name, &record)?,
                Ok((name, None)) => {
                    followed.insert(name, false);
                }
                Err(RecvTimeoutError::Timeout) => break,
                // This function holds a sender.
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
            }
        }
    }
}

/// Passes on what happens to a running guest, until its end.
fn listen(
    name: &str,
    directory: &Path,
    begun: u64,
    sender: &mpsc::Sender<(String, Option<EventRecord>)>,
) {
    let send = |record| sender.send((name.to_owned(), record)).is_ok();
    // One that is just ending cannot be asked; it is looked for again.
    if let Ok(Ok(events)) = guests::client(name).map(|client| client.events(true)) {
        let mut last = None;
        for record in events.map_while(Result::ok) {
            let is_news = record.time_ms >= begun;
            last = Some(record.clone());
            if is_news && !send(Some(record)) {
                return;
            }
        }
        // Until its lock is free it would be found running and told again.
        while lock::is_held(directory) {
            thread::sleep(Duration::from_millis(5));
        }
        if let Some(record) = last.and_then(|last| crash(last, state::look(directory).state)) {
            send(Some(record));
        }
    } else {
        thread::sleep(LOOK);
    }
    send(None);
}

/// What a VMM could not tell itself: that it was killed after its `last` event.
fn crash(last: EventRecord, state: State) -> Option<EventRecord> {
    let has_told = matches!(last.event, Event::Stopped { .. } | Event::Error(_));
    // A guest that was not to be kept is gone by now, and looks as if it had never started.
    let has_ended = matches!(state, State::Crashed | State::Created);
    (has_ended && !has_told).then(|| EventRecord {
        number: last.number + 1,
        time_ms: guests::unix_ms(),
        event: Event::Error(Failure::host("its lodge-vmm was killed")),
    })
}

fn print(args: &EventsArgs, name: &str, record: &EventRecord) -> Result<(), Failure> {
    let line = if args.json {
        serde_json::to_string(&Line { guest: name, record }).map_err(Failure::internal)?
    } else {
        format!("{} {name} {}", time(record.time_ms), tell(&record.event))
    };
    output::print(line + "\n")
}

fn tell(event: &Event) -> String {
    match event {
        Event::Started { .. } => "started".to_owned(),
        Event::Reset => "was reset".to_owned(),
        Event::Paused { reason: None } => "was paused".to_owned(),
        Event::Paused { reason: Some(reason) } => format!("was paused: {reason}"),
        Event::Resumed => "goes on".to_owned(),
        Event::AgentReady => "is ready for `lodge exec`".to_owned(),
        Event::DeviceAttached { id } => format!("has {id} attached"),
        Event::DeviceDetached { id } => format!("has {id} no more"),
        Event::Warning { message } => format!("warning: {message}"),
        Event::Stopped { reason } => match reason {
            StopReason::PowerOff => "switched itself off".to_owned(),
            StopReason::Requested => "was stopped".to_owned(),
            StopReason::Exited { status } | StopReason::DebugExit { status } => {
                format!("ended with status {status}")
            }
        },
        Event::Error(failure) => format!("failed: {failure}"),
    }
}

/// A time as RFC 3339 has it, in UTC.
fn time(ms: u64) -> String {
    let (days, rest) = (ms / 86_400_000, ms % 86_400_000);
    let (seconds, ms) = (rest / 1000, rest % 1000);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// The date so many days after 1970-01-01, by the civil calendar (Howard Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms", civil_from_days).
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_vmm_that_told_no_end_was_killed() {
        let record = |event| EventRecord { number: 7, time_ms: 1, event };
        for state in [State::Crashed, State::Created] {
            let told = crash(record(Event::Resumed), state).expect("an end");
            assert_eq!(told.number, 8);
            assert_eq!(tell(&told.event), "failed: its lodge-vmm was killed");
            let stopped = Event::Stopped { reason: StopReason::Requested };
            assert!(crash(record(stopped), state).is_none());
            assert!(crash(record(Event::Error(Failure::host("full"))), state).is_none());
        }
        // Started again before anybody looked.
        assert!(crash(record(Event::Resumed), State::Starting).is_none());
    }

    #[test]
    fn times_are_written() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(951_782_400_123), "2000-02-29T00:00:00.123Z");
        assert_eq!(time(1_796_024_279_000), "2026-11-30T07:37:59.000Z");
    }
}
