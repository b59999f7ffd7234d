//! `lodge exec`.

use std::io::{self, ErrorKind, IsTerminal, Write};

use agent_protocol::frame::{Frame, FrameWriter, Type};
use agent_protocol::{Control, Exec, INPUT_WINDOW, Reply, Size, Task};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::tcgetwinsize;
use vmm_api::Failure;

use super::Agent;
use crate::args::agent::ExecArgs;
use crate::run::{RawTerminal, write_stdout};
use crate::sys::Signals;

/// The exit status for what Lodge itself could not do, as ssh has it: others are the command's.
const FAILED: u8 = 255;
/// So many signals that ask to end, and this program does not wait for the command any more.
const PATIENCE: u32 = 3;
const PIECE: usize = 32 << 10;

/// Runs a command in a guest; the value is its exit status, or [`FAILED`].
pub fn run(args: &ExecArgs) -> Result<u8, Failure> {
    attempt(args).or_else(|failure| {
        eprintln!("lodge: {failure}");
        Ok(FAILED)
    })
}

fn attempt(args: &ExecArgs) -> Result<u8, Failure> {
    if args.tty && args.interactive && !io::stdin().is_terminal() {
        return Err(Failure::configuration(
            "the input is no terminal: leave -t out, so that the command gets it as it is",
        ));
    }
    let mut environment = environment(&args.env)?;
    if args.tty && !environment.iter().any(|(name, _)| name == "TERM") {
        let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
        environment.push(("TERM".to_owned(), term));
    }
    let exec = Exec {
        command: args.command.clone(),
        environment,
        directory: args.workdir.clone(),
        user: args.user.clone(),
        input: args.interactive,
        terminal: args.tty.then(size),
    };
    // Until there is a command, signals end this program: a guest that is starting may be waited for.
    let agent = Agent::ask(&args.name, Task::Exec(exec))?;
    let signals = Signals::block_and_watch_size()
        .map_err(|error| Failure::host(format!("cannot receive signals: {error}")))?;
    let terminal = if args.tty && args.interactive {
        RawTerminal::enter()
            .map_err(|error| Failure::host(format!("cannot use this terminal: {error}")))?
    } else {
        None
    };
    let mut relay = Relay {
        agent,
        signals,
        out: FrameWriter::default(),
        reads_input: args.interactive,
        window: INPUT_WINDOW,
        asked_to_end: 0,
    };
    let result = relay.run();
    drop(terminal);
    match result? {
        End::Exited(status) => Ok(status),
        End::Failed { status, message } => {
            eprintln!("lodge: {}", relay.agent.failed(&message));
            Ok(if status == 125 { FAILED } else { status })
        }
        End::Signal(signal) => Ok(u8::try_from(signal).map_or(u8::MAX, |number| 128 | number)),
    }
}

/// How large this terminal is.
fn size() -> Size {
    let size = [tcgetwinsize(io::stdin()), tcgetwinsize(io::stdout())];
    let size = size.into_iter().flatten().next();
    size.map_or(Size { rows: 24, columns: 80 }, |size| Size {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

fn environment(variables: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let mut environment = Vec::new();
    for variable in variables {
        match variable.split_once('=') {
            Some(("", _)) => {
                return Err(Failure::configuration(format!("{variable:?} has no name")));
            }
            Some((name, value)) => environment.push((name.to_owned(), value.to_owned())),
            // As docker does: what is not set here is not set there.
            None => {
                if let Ok(value) = std::env::var(variable) {
                    environment.push((variable.clone(), value));
                }
            }
        }
    }
    Ok(environment)
}

/// How it ended.
enum End {
    Exited(u8),
    Failed {
        status: u8,
        message: String,
    },
    /// This program was told to end, and did not wait for the command.
    Signal(i32),
}

/// Between this program's input and output, and the agent.
struct Relay {
    agent: Agent,
    signals: Signals,
    out: FrameWriter,
    /// The input has not ended.
    reads_input: bool,
    /// How many bytes of input may be sent.
    window: usize,
    asked_to_end: u32,
}

impl Relay {
    fn run(&mut self) -> Result<End, Failure> {
        let lost = |agent: &Agent, error: io::Error| agent.lost(error);
        self.agent.stream.set_nonblocking(true).map_err(|error| lost(&self.agent, error))?;
        loop {
            while let Some(frame) =
                self.agent.frames.take_frame().map_err(|error| lost(&self.agent, error))?
            {
                if let Some(end) = self.take(&frame)? {
                    return Ok(end);
                }
            }
            self.out.flush(&mut self.agent.stream).or_else(|error| match error.kind() {
                // What came before the end is still to be read.
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Ok(()),
                _ => Err(lost(&self.agent, error)),
            })?;
            let ready = self.wait()?;
            if ready.signal
                && let Some(signal) = self.signals.next()
                && self.pass_on(signal)?
            {
                return Ok(End::Signal(signal));
            }
            if ready.input {
                self.read_input()?;
            }
            if ready.agent {
                match self.agent.frames.fill(&mut self.agent.stream) {
                    Ok(true) => {}
                    Ok(false) => return Err(self.agent.lost("it ended")),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(self.agent.lost(error)),
                }
            }
        }
    }

    fn wait(&self) -> Result<Ready, Failure> {
        let stdin = io::stdin();
        let out = if self.out.waiting() > 0 { PollFlags::OUT } else { PollFlags::empty() };
        let mut sources = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.agent.stream, PollFlags::IN | out),
        ];
        if self.reads_input && self.window > 0 {
            sources.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match poll(&mut sources, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Failure::host(format!("cannot wait: {error}"))),
        }
        let is_ready = |at: usize| sources.get(at).is_some_and(|fd| !fd.revents().is_empty());
        Ok(Ready { signal: is_ready(0), agent: is_ready(1), input: is_ready(2) })
    }

    fn take(&mut self, frame: &Frame) -> Result<Option<End>, Failure> {
        let written = match frame.kind {
            Type::Output => write_stdout(&frame.payload),
            Type::Errors => io::stderr().write_all(&frame.payload),
            _ => Ok(()),
        };
        match written {
            Ok(()) => {}
            // Nobody reads on, as in `| head`: that is no mistake.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                return Ok(Some(End::Signal(rustix::process::Signal::PIPE.as_raw())));
            }
            Err(error) => return Err(Failure::host(format!("cannot write the output: {error}"))),
        }
        match frame.kind {
            Type::Output | Type::Errors => {}
            Type::Credit => {
                let credit = frame.credit().map_err(|error| self.agent.lost(error))?;
                self.window = self.window.saturating_add(credit).min(INPUT_WINDOW);
            }
            Type::Reply => match frame.json().map_err(|error| self.agent.lost(error))? {
                Reply::Exited(status) => return Ok(Some(End::Exited(status))),
                Reply::Failed { status, message } => {
                    return Ok(Some(End::Failed { status, message }));
                }
                _ => {}
            },
            _ => return Err(self.agent.lost("it makes no sense")),
        }
        Ok(None)
    }

    fn read_input(&mut self) -> Result<(), Failure> {
        let mut piece = [0; PIECE];
        let room = piece.get_mut(..self.window.min(PIECE)).unwrap_or_default();
        let count = match rustix::io::read(io::stdin(), room) {
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            // A terminal that was hung up.
            Err(Errno::IO) => 0,
            Err(error) => return Err(Failure::host(format!("cannot read the input: {error}"))),
        };
        self.window -= count;
        self.reads_input = count > 0;
        self.out.push(Type::Input, piece.get(..count).unwrap_or_default());
        Ok(())
    }

    /// Tells the agent of a signal. Whether this program is to end without waiting any longer.
    fn pass_on(&mut self, signal: i32) -> Result<bool, Failure> {
        let control = if Signals::is_size(signal) {
            Control::Resize(size())
        } else {
            self.asked_to_end += 1;
            Control::Signal(signal)
        };
        self.out.push_json(Type::Control, &control).map_err(Failure::internal)?;
        Ok(self.asked_to_end >= PATIENCE)
    }
}

struct Ready {
    signal: bool,
    agent: bool,
    input: bool,
}
