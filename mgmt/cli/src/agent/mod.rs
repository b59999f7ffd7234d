//! Commands that the agent in a guest carries out: `exec`, `cp` and `ssh`.

pub mod copy;
pub mod exec;
pub mod program;
pub mod renew;
pub mod ssh;

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use agent_protocol::frame::{FrameReader, FrameWriter, Type};
use agent_protocol::{PORT, Reply, Request, Task, VERSION};
use images::{Manifest, Store};
use vmm_api::{Failure, FailureKind};

use crate::guests::{self, Record};
use crate::run::notice;

/// How long the agent of a guest that has one may take to be there: the guest may just be starting.
const PATIENCE: Duration = Duration::from_secs(600);
/// Nobody wonders for so long.
const SILENCE: Duration = Duration::from_secs(3);
/// How often it is looked for.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection to the agent, for one task.
pub struct Agent {
    /// The guest's name.
    pub name: String,
    /// The connection.
    pub stream: UnixStream,
    /// What comes by it.
    pub frames: FrameReader,
}

impl Agent {
    /// Connects to the agent of a running guest, and says what is to be done. Waits for a guest that
    /// is starting and whose image has an agent.
    pub fn ask(name: &str, task: Task) -> Result<Agent, Failure> {
        let begun = Instant::now();
        let mut has_said = false;
        let (stream, rest) = loop {
            let failure = match guests::client(name)?.vsock(PORT) {
                Ok(connected) => break connected,
                Err(error) => error.about(name),
            };
            if failure.kind != FailureKind::Configuration || is_paused(name) {
                return Err(failure);
            }
            match has_agent(name)? {
                Some(true) if begun.elapsed() < PATIENCE => {}
                has_agent => return Err(explain(name, failure, has_agent)),
            }
            if !has_said && begun.elapsed() > SILENCE {
                has_said = true;
                notice(false, &format!("waiting for {name}, which is starting"));
            }
            thread::sleep(PAUSE);
        };
        Agent::begin(name, stream, rest, task)
    }

    /// As [`Agent::ask`], but of a guest that has run for long: without an agent that answers within this
    /// time there is none.
    pub fn ask_now(name: &str, task: Task, patience: Duration) -> Result<Agent, Failure> {
        let client = guests::client(name)?.with_patience(patience);
        let (stream, rest) = client.vsock(PORT).map_err(|error| error.about(name))?;
        stream.set_read_timeout(Some(patience)).map_err(Failure::host)?;
        Agent::begin(name, stream, rest, task)
    }

    fn begin(name: &str, stream: UnixStream, rest: Vec<u8>, task: Task) -> Result<Agent, Failure> {
        let frames = FrameReader::starting_with(rest);
        let mut agent = Agent { name: name.to_owned(), stream, frames };
        let mut request = FrameWriter::default();
        request
            .push_json(Type::Request, &Request { version: VERSION, task })
            .map_err(Failure::configuration)?;
        request.flush(&mut agent.stream).map_err(|error| agent.lost(error))?;
        Ok(agent)
    }

    /// Waits for a reply; one that it cannot be done is an error.
    pub fn reply(&mut self) -> Result<Reply, Failure> {
        let frame = self.frames.wait(&mut self.stream).map_err(|error| self.lost(error))?;
        let frame = frame.ok_or_else(|| self.lost("it ended"))?;
        match frame.json().map_err(|error| self.lost(error))? {
            Reply::Failed { message, .. } => Err(self.failed(&message)),
            reply => Ok(reply),
        }
    }

    /// What the agent could not do.
    pub fn failed(&self, message: &str) -> Failure {
        Failure::configuration(format!("the guest {}: {message}", self.name))
    }

    /// The connection is of no use any more.
    pub fn lost(&self, error: impl std::fmt::Display) -> Failure {
        Failure::host(format!(
            "the connection to the guest {} is lost ({error}): it has ended or was reset, or its \
             agent was",
            self.name
        ))
    }
}

/// Waits until the agent in a guest that was just started is there.
pub fn wait(name: &str) -> Result<(), Failure> {
    Agent::ask(name, Task::Ping)?.reply().map(drop)
}

fn is_paused(name: &str) -> bool {
    let instance = guests::client(name)
        .and_then(|mut client| client.instance().map_err(|error| error.about(name)));
    instance.is_ok_and(|instance| instance.state == vmm_api::RunState::Paused)
}

/// Whether the image that the guest was made from has an agent. `None`: it has none of Lodge's.
fn has_agent(name: &str) -> Result<Option<bool>, Failure> {
    let record = Record::read(&guests::directory_of(name)?)?;
    let Some(Record { image: Some(image), disk_sha256, .. }) = record else { return Ok(None) };
    let image = image.parse().ok().and_then(|image| Store::open().ok()?.get(&image).ok());
    // One that was built anew since says nothing of this guest.
    let is_its = |manifest: &Manifest| disk_sha256.as_ref() == Some(&manifest.disk.sha256);
    Ok(image.map(|image| image.manifest().agent && is_its(image.manifest())))
}

/// Why nobody answers, and what can be done.
fn explain(name: &str, failure: Failure, has_agent: Option<bool>) -> Failure {
    let advice = match has_agent {
        Some(true) => format!(
            "its image has Lodge's agent, which does not run: see `lodge console {name}`, and there \
             `systemctl status lodge-agent`"
        ),
        Some(false) => {
            "its image was built without Lodge's agent, or before there was one: build it \
             anew with `lodge image build IMAGE --force`, and make the guest anew from it"
                .to_owned()
        }
        None => {
            "Lodge's agent does not run in it, or not yet: a guest without an image of Lodge's \
             needs the program lodge-agent (docs/exec.md)"
                .to_owned()
        }
    };
    Failure::new(failure.kind, format!("{}; {advice}", failure.message))
}
