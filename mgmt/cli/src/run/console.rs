//! Between a person and a guest: keys one way, output the other, events beside.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use agent_protocol::program::{END, LITERAL};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_api::{Accelerator, Event, Failure, StopReason};

use crate::sys::Signals;

use super::escape::{Escape, Wish};
use super::preamble::Preamble;
use super::terminal::{notice, write_stdout};
use super::vmm::Vmm;

/// How long a VMM may take to have its guest switched off. It gives up itself before that.
const POWER_OFF_TIME: Duration = Duration::from_secs(70);
/// How long a VMM may take to end a guest at once.
const STOP_TIME: Duration = Duration::from_secs(10);
/// How long the last output may take to come after the VMM has ended.
const DRAIN_TIME: Duration = Duration::from_secs(1);
/// Keys that a guest has not taken yet, at most; further ones wait in the terminal.
const TYPED_AHEAD: usize = 4096;

/// It ends a line that is begun, and input where none is: one of them does so in any case.
const END_OF_INPUT: &[u8] = &[END, END];
/// Longer lines of a program's input are passed on in pieces: a terminal has room for 4095 bytes of one (termios(3)).
const MAX_LINE: usize = 1000;

const KEYS: &str = "press Ctrl-] then q to stop the guest, Ctrl-] twice to send it one Ctrl-]";

/// How it ended.
#[derive(Debug, Default)]
pub struct End {
    /// The guest stopped in good order.
    pub reason: Option<StopReason>,
    /// The guest failed, or this program did.
    pub failure: Option<Failure>,
    /// This program was told to end by a signal.
    pub signal: Option<i32>,
    /// The guest was asked to stop.
    pub stopping: bool,
}

/// The relay between this process's terminal and a VMM.
pub struct Console<'a> {
    vmm: &'a Vmm,
    signals: &'a Signals,
    status: UnixStream,
    /// `None` once the guest has closed it, and if it leads elsewhere.
    console: Option<UnixStream>,
    raw: bool,
    name: &'a str,
    input_open: bool,
    /// There is a program behind the console that has no terminal, but an input that ends.
    is_plain: bool,
    /// How many bytes of the program's input are behind the last end of a line.
    line_length: usize,
    /// What comes before that program; `None` once it has begun.
    preamble: Option<Preamble>,
    escape: Escape,
    /// Typed and not yet taken.
    typed: Vec<u8>,
    /// The beginning of the next event's line.
    line: Vec<u8>,
    /// When to ask the VMM once more, and more strongly.
    deadline: Option<Instant>,
    /// How often it was asked to end.
    asked: u32,
    end: End,
}

impl<'a> Console<'a> {
    /// Prepares the relay. `raw`: standard input is a terminal in raw mode.
    pub fn new(
        vmm: &'a Vmm,
        signals: &'a Signals,
        status: UnixStream,
        console: Option<UnixStream>,
        raw: bool,
        name: &'a str,
    ) -> Console<'a> {
        Console {
            vmm,
            signals,
            status,
            input_open: console.is_some(),
            console,
            is_plain: false,
            line_length: 0,
            preamble: None,
            raw,
            name,
            escape: Escape::default(),
            typed: Vec::new(),
            line: Vec::new(),
            deadline: None,
            asked: 0,
            end: End::default(),
        }
    }

    /// Behind the console is a program without a terminal: only its output is shown, and it sees the
    /// end of its input.
    pub fn for_plain_program(self) -> Self {
        Console { is_plain: true, preamble: Some(Preamble::default()), ..self }
    }

    /// Relays until the VMM closes its status.
    pub fn run(mut self) -> End {
        if let Err(error) = self.relay() {
            self.end.failure.get_or_insert_with(|| {
                Failure::host(format!("the guest's console failed: {error}"))
            });
            self.vmm.stop();
        }
        self.end
    }

    fn relay(&mut self) -> io::Result<()> {
        self.status.set_nonblocking(true)?;
        if let Some(console) = &self.console {
            console.set_nonblocking(true)?;
        }
        loop {
            let ready = self.wait()?;
            if ready.signal {
                while let Some(signal) = self.signals.next() {
                    self.end.signal = Some(signal);
                    self.stop();
                }
            }
            if ready.input {
                self.take_input()?;
            }
            if ready.room {
                self.send_typed()?;
            }
            if ready.output {
                self.show_output()?;
            }
            if ready.status && !self.take_events()? {
                return self.drain();
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                self.stop();
            }
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let stdin = io::stdin();
        let mut fds = vec![
            PollFd::new(self.signals, PollFlags::IN),
            PollFd::new(&self.status, PollFlags::IN),
        ];
        if let Some(console) = &self.console {
            let waits = self.typed.is_empty() || self.preamble.is_some();
            let out = if waits { PollFlags::empty() } else { PollFlags::OUT };
            fds.push(PollFd::new(console, PollFlags::IN | out));
            // Before the program is there, the guest would lose it.
            if self.input_open && self.typed.len() < TYPED_AHEAD && self.preamble.is_none() {
                fds.push(PollFd::new(&stdin, PollFlags::IN));
            }
        }
        let timeout = self.deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            // A little later, so that the deadline has passed then.
            let left = left + Duration::from_millis(1);
            Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Ready::default()),
            Err(errno) => return Err(errno.into()),
        }
        let come = |index: usize| fds.get(index).map_or(PollFlags::empty(), PollFd::revents);
        // A closed or broken one is ready, too: reading tells.
        Ok(Ready {
            signal: !come(0).is_empty(),
            status: !come(1).is_empty(),
            output: come(2).intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR),
            room: come(2).contains(PollFlags::OUT),
            input: !come(3).is_empty(),
        })
    }

    fn take_input(&mut self) -> io::Result<()> {
        let mut bytes = [0; 1024];
        let count = match rustix::io::read(io::stdin(), &mut bytes) {
            Ok(count) => count,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(()),
            // A terminal that was hung up.
            Err(rustix::io::Errno::IO) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let bytes = bytes.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            self.input_open = false;
            if self.is_plain {
                self.typed.extend_from_slice(END_OF_INPUT);
            }
        } else if self.is_plain {
            quote(bytes, &mut self.line_length, &mut self.typed);
        } else if !self.raw {
            // A script's bytes mean nothing but themselves.
            self.typed.extend_from_slice(bytes);
        } else if let Some(wish) = self.escape.filter(bytes, &mut self.typed) {
            match wish {
                Wish::Quit => {
                    notice(
                        self.raw,
                        match self.asked {
                            0 => {
                                "the guest is asked to switch itself off; Ctrl-] q again ends it now"
                            }
                            _ => "ending the guest",
                        },
                    );
                    self.stop();
                }
                Wish::Help => notice(self.raw, KEYS),
            }
        }
        self.send_typed()
    }

    fn send_typed(&mut self) -> io::Result<()> {
        let Some(console) = &mut self.console else { return Ok(()) };
        while !self.typed.is_empty() {
            match console.write(&self.typed) {
                Ok(count) => drop(self.typed.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The guest is gone; its end is told elsewhere.
                Err(_) => self.typed.clear(),
            }
        }
        Ok(())
    }

    fn show_output(&mut self) -> io::Result<()> {
        let Some(console) = &mut self.console else { return Ok(()) };
        let mut bytes = [0; 8192];
        match console.read(&mut bytes) {
            Ok(0) => self.console = None,
            Ok(count) => {
                let bytes = bytes.get(..count).unwrap_or_default();
                if let Err(error) = show(&mut self.preamble, bytes) {
                    // Whoever read the output is gone, and so is the reason to run.
                    self.console = None;
                    self.end.failure = Some(Failure::host(format!(
                        "cannot write to standard output ({error}); the guest was stopped"
                    )));
                    self.stop();
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.console = None,
        }
        Ok(())
    }

    /// Takes what has come of the status; false at its end.
    fn take_events(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 4096];
        let count = match self.status.read(&mut bytes) {
            Ok(0) => return Ok(false),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            // A VMM that was killed with unread bytes in its end of the socket.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(error),
        };
        for &byte in bytes.get(..count).unwrap_or_default() {
            self.line.push(byte);
            if byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                match Event::read_line(&mut line.as_slice()) {
                    Ok(Some(event)) => self.take_event(event),
                    Ok(None) => {}
                    Err(error) => {
                        return Err(io::Error::new(
                            error.kind(),
                            format!("lodge-vmm speaks another language than this lodge ({error})"),
                        ));
                    }
                }
            }
        }
        Ok(true)
    }

    fn take_event(&mut self, event: Event) {
        match event {
            Event::Started {
                accelerator,
                accelerator_reason,
                serial_pty,
                virtio_console_pty,
                gdb,
            } => {
                let what = match accelerator {
                    Accelerator::Kvm => "KVM",
                    Accelerator::Soft | Accelerator::Auto => "Lodge's own engine",
                };
                let why = match accelerator_reason.as_str() {
                    "" => String::new(),
                    reason => format!(": {reason}"),
                };
                notice(self.raw, &format!("{} runs on {what}{why}", self.name));
                if self.raw {
                    notice(true, KEYS);
                }
                for (port, pty) in
                    [("serial port", serial_pty), ("virtio console", virtio_console_pty)]
                {
                    if let Some(pty) = pty {
                        notice(self.raw, &format!("the {port} is at {pty}"));
                    }
                }
                if let Some(place) = gdb {
                    notice(self.raw, &format!("GDB can connect: target remote {place}"));
                }
            }
            Event::Paused { reason: None } => notice(self.raw, "the guest is paused"),
            Event::Paused { reason: Some(reason) } => {
                notice(self.raw, &format!("the guest is paused: {reason}"));
            }
            Event::Resumed => notice(self.raw, "the guest goes on"),
            Event::Reset => notice(self.raw, "the guest restarts"),
            Event::AgentReady | Event::DeviceAttached { .. } | Event::DeviceDetached { .. } => {}
            Event::Warning { message } => notice(self.raw, &message),
            Event::Stopped { reason } => self.end.reason = Some(reason),
            Event::Error(failure) => self.end.failure = Some(failure),
        }
    }

    /// Has the VMM ask the guest to switch itself off; asked again, end the guest at once; and ends
    /// the VMM itself if it does neither.
    fn stop(&mut self) {
        self.end.stopping = true;
        let time = match self.asked {
            0 => {
                self.vmm.power_off();
                Some(POWER_OFF_TIME)
            }
            1 => {
                self.vmm.stop();
                Some(STOP_TIME)
            }
            _ => {
                self.vmm.kill();
                None
            }
        };
        self.asked += 1;
        self.deadline = time.map(|time| Instant::now() + time);
    }

    /// Shows what the guest said last: it may come behind the last event.
    fn drain(&mut self) -> io::Result<()> {
        if let Some(console) = &self.console {
            console.set_nonblocking(false)?;
            console.set_read_timeout(Some(DRAIN_TIME))?;
        }
        let deadline = Instant::now() + DRAIN_TIME;
        while let Some(console) = &mut self.console {
            let mut bytes = [0; 8192];
            match console.read(&mut bytes) {
                Ok(count) if count > 0 && Instant::now() < deadline => {
                    let _ = show(&mut self.preamble, bytes.get(..count).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => self.console = None,
            }
        }
        if let Some(preamble) = &self.preamble {
            let _ = io::stderr().write_all(preamble.said());
        }
        Ok(())
    }
}

/// Shows what the guest says, but nothing from before its program.
fn show(preamble: &mut Option<Preamble>, bytes: &[u8]) -> io::Result<()> {
    let Some(before) = preamble else { return write_stdout(bytes) };
    match before.take(bytes) {
        Some(first) => {
            *preamble = None;
            write_stdout(&first)
        }
        None => Ok(()),
    }
}

/// Writes a program's input so that the guest's terminal passes it on as it is.
fn quote(bytes: &[u8], line_length: &mut usize, typed: &mut Vec<u8>) {
    for &byte in bytes {
        if *line_length == MAX_LINE {
            typed.push(END);
            *line_length = 0;
        }
        if matches!(byte, END | LITERAL) {
            typed.push(LITERAL);
        }
        typed.push(byte);
        *line_length = if byte == b'\n' { 0 } else { *line_length + 1 };
    }
}

/// What can be read or written without waiting.
#[derive(Debug, Default)]
struct Ready {
    signal: bool,
    status: bool,
    output: bool,
    room: bool,
    input: bool,
}
