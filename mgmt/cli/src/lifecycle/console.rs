//! `lodge console`: this terminal becomes a console of a guest that runs elsewhere.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use vmm_api::Failure;

use crate::args::lifecycle::ConsoleArgs;
use crate::guests;
use crate::run::{Escape, RawTerminal, Wish, notice, write_stdout};
use crate::sys::Signals;

const KEYS: &str = "press Ctrl-] then q to leave the console, Ctrl-] twice to send one Ctrl-]";
/// Keys that a guest has not taken yet, at most; further ones wait in the terminal.
const TYPED_AHEAD: usize = 4096;

/// Connects this terminal; the value is the exit status.
pub fn run(args: &ConsoleArgs) -> Result<u8, Failure> {
    let name = &args.name;
    let client = guests::client(name)?;
    let signals = Signals::block()
        .map_err(|error| Failure::host(format!("cannot receive signals: {error}")))?;
    let (stream, past) = client.console(args.tail).map_err(|error| error.about(name))?;
    let terminal = RawTerminal::enter()
        .map_err(|error| Failure::host(format!("cannot use this terminal: {error}")))?;
    let raw = terminal.is_some();
    if raw {
        notice(raw, &format!("this is the console of {name}; {KEYS}"));
    }
    let result =
        Relay { stream, signals, raw, escape: Escape::default(), typed: Vec::new() }.run(&past);
    drop(terminal);
    match result.map_err(|error| Failure::host(format!("the console failed: {error}")))? {
        End::Left => {
            notice(false, &format!("{name} runs on"));
            Ok(0)
        }
        End::GuestEnded => {
            notice(false, &format!("{name} has ended"));
            Ok(0)
        }
        End::Signal(signal) => Ok(u8::try_from(signal).map_or(u8::MAX, |number| 128 | number)),
    }
}

/// Why a console is over.
enum End {
    /// The person left it.
    Left,
    /// The guest, or its VMM, did.
    GuestEnded,
    /// This program was told to end.
    Signal(i32),
}

struct Relay {
    stream: UnixStream,
    signals: Signals,
    raw: bool,
    escape: Escape,
    /// Typed and not yet taken.
    typed: Vec<u8>,
}

impl Relay {
    fn run(mut self, past: &[u8]) -> io::Result<End> {
        self.stream.set_nonblocking(true)?;
        write_stdout(past)?;
        let mut input_open = true;
        loop {
            let stdin = io::stdin();
            let out = if self.typed.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            let mut fds = vec![
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::new(&self.stream, PollFlags::IN | out),
            ];
            if input_open && self.typed.len() < TYPED_AHEAD {
                fds.push(PollFd::new(&stdin, PollFlags::IN));
            }
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let come = |index: usize| fds.get(index).map_or(PollFlags::empty(), PollFd::revents);
            let (signal, stream, input) = (come(0), come(1), come(2));
            if !signal.is_empty()
                && let Some(signal) = self.signals.next()
            {
                return Ok(End::Signal(signal));
            }
            if !input.is_empty() {
                match self.take_input()? {
                    Input::More => {}
                    Input::Ended => input_open = false,
                    Input::Leave => return Ok(End::Left),
                }
            }
            if stream.contains(PollFlags::OUT) || !self.typed.is_empty() {
                self.send_typed();
            }
            if stream.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
                && !self.show_output()?
            {
                return Ok(End::GuestEnded);
            }
        }
    }

    fn take_input(&mut self) -> io::Result<Input> {
        let mut bytes = [0; 1024];
        let count = match rustix::io::read(io::stdin(), &mut bytes) {
            Ok(count) => count,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Input::More),
            // A terminal that was hung up.
            Err(rustix::io::Errno::IO) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let bytes = bytes.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(Input::Ended);
        }
        if !self.raw {
            // A script's bytes mean nothing but themselves.
            self.typed.extend_from_slice(bytes);
            return Ok(Input::More);
        }
        match self.escape.filter(bytes, &mut self.typed) {
            None => {}
            Some(Wish::Quit) => return Ok(Input::Leave),
            Some(Wish::Help) => notice(self.raw, KEYS),
        }
        Ok(Input::More)
    }

    fn send_typed(&mut self) {
        while !self.typed.is_empty() {
            match self.stream.write(&self.typed) {
                Ok(count) => drop(self.typed.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The guest is gone; reading tells.
                Err(_) => self.typed.clear(),
            }
        }
    }

    /// Shows what has come; false at the end.
    fn show_output(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 8192];
        match self.stream.read(&mut bytes) {
            Ok(0) => return Ok(false),
            Ok(count) => write_stdout(bytes.get(..count).unwrap_or_default())?,
            Err(error) => {
                use io::ErrorKind::{Interrupted, WouldBlock};
                return Ok(matches!(error.kind(), WouldBlock | Interrupted));
            }
        }
        Ok(true)
    }
}

/// What has come of the keyboard.
enum Input {
    More,
    Ended,
    Leave,
}
