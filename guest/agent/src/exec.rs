//! Runs a command: its input, output and signals on one connection.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;

use agent_protocol::frame::{Frame, FrameReader, FrameWriter, Type};
use agent_protocol::{Control, Exec, INPUT_WINDOW, Reply};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::session::reply;
use crate::spawn::{Spawned, resize, spawn};

/// So much output may wait for the connection; then the command waits.
const WAITING: usize = 128 << 10;
const PIECE: usize = 32 << 10;

/// Runs a command to its end, or to the connection's.
pub fn run(stream: &File, frames: &mut FrameReader, exec: &Exec) -> io::Result<()> {
    let spawned = match spawn(exec) {
        Ok(spawned) => spawned,
        Err(failed) => return reply(stream, &failed),
    };
    let mut running = Running::new(stream, frames, spawned, exec.terminal.is_some())?;
    let result = running.serve();
    if result.is_err() || !running.has_exited {
        running.abandon();
    }
    result
}

/// A command, and its connection.
struct Running<'a> {
    stream: &'a File,
    frames: &'a mut FrameReader,
    out: FrameWriter,
    spawned: Spawned,
    group: Pid,
    process: OwnedFd,
    has_terminal: bool,
    /// Input that the command has not taken.
    input: VecDeque<u8>,
    input_ends: bool,
    has_exited: bool,
}

impl<'a> Running<'a> {
    fn new(
        stream: &'a File,
        frames: &'a mut FrameReader,
        spawned: Spawned,
        has_terminal: bool,
    ) -> io::Result<Self> {
        let group = Pid::from_child(&spawned.child);
        let process = pidfd_open(group, PidfdFlags::empty())?;
        for fd in [&spawned.input, &spawned.output, &spawned.errors].into_iter().flatten() {
            set_nonblocking(fd)?;
        }
        set_nonblocking(stream)?;
        let mut out = FrameWriter::default();
        out.push_json(Type::Reply, &Reply::Started)?;
        Ok(Self {
            stream,
            frames,
            out,
            spawned,
            group,
            process,
            has_terminal,
            input: VecDeque::new(),
            input_ends: false,
            has_exited: false,
        })
    }

    /// Moves bytes until the command has ended and its output is sent; also, until nobody is at
    /// the other end.
    fn serve(&mut self) -> io::Result<()> {
        // What came with the request.
        if !self.take_frames()? {
            return Ok(());
        }
        loop {
            self.out.flush(&mut self.stream)?;
            if self.has_exited && self.is_silent() && self.out.waiting() == 0 {
                return self.say_exit();
            }
            let ready = self.wait()?;
            if ready.connection && !self.receive()? {
                return Ok(());
            }
            if ready.input {
                self.feed();
            }
            if ready.process && !self.has_exited {
                self.has_exited = true;
                self.close_input();
            }
            // Of a command that has ended, everything is there that there will be.
            if self.out.waiting() < WAITING {
                read_output(&mut self.spawned.output, Type::Output, &mut self.out, self.has_exited);
            }
            if self.out.waiting() < WAITING {
                read_output(&mut self.spawned.errors, Type::Errors, &mut self.out, self.has_exited);
            }
        }
    }

    /// Whether there will be no more output.
    fn is_silent(&self) -> bool {
        self.spawned.output.is_none() && self.spawned.errors.is_none()
    }

    fn wait(&self) -> io::Result<Ready> {
        let mut sources = Vec::with_capacity(5);
        let out = if self.out.waiting() > 0 { PollFlags::OUT } else { PollFlags::empty() };
        sources.push(PollFd::new(self.stream, PollFlags::IN | out));
        let has_room = self.out.waiting() < WAITING;
        let process = if self.has_exited { PollFlags::empty() } else { PollFlags::IN };
        sources.push(PollFd::new(&self.process, process));
        let input = self.spawned.input.as_ref().filter(|_| !self.input.is_empty());
        if let Some(input) = input {
            sources.push(PollFd::new(input, PollFlags::OUT));
        }
        let outputs = [&self.spawned.output, &self.spawned.errors];
        for fd in outputs.into_iter().flatten().filter(|_| has_room) {
            sources.push(PollFd::new(fd, PollFlags::IN));
        }
        // Output of a command that has ended is read at once, or not at all.
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let at_once = self.has_exited && has_room && !self.is_silent();
        match poll(&mut sources, at_once.then_some(&now)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |at: usize| sources.get(at).is_some_and(|fd| !fd.revents().is_empty());
        Ok(Ready {
            connection: is_ready(0),
            process: is_ready(1),
            input: input.is_some() && is_ready(2),
        })
    }

    /// Takes what has come. `false`: nobody is at the other end any more.
    fn receive(&mut self) -> io::Result<bool> {
        match self.frames.fill(&mut self.stream) {
            Ok(true) => self.take_frames(),
            Ok(false) => Ok(false),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
            Err(_) => Ok(false),
        }
    }

    fn take_frames(&mut self) -> io::Result<bool> {
        while let Some(frame) = self.frames.take_frame()? {
            match frame.kind {
                Type::Input => self.take_input(&frame)?,
                Type::Control => self.control(frame.json()?),
                _ => return Err(ErrorKind::InvalidData.into()),
            }
        }
        Ok(true)
    }

    fn take_input(&mut self, frame: &Frame) -> io::Result<()> {
        if frame.payload.is_empty() {
            self.input_ends = true;
        } else if self.spawned.input.is_none() {
            // The command reads no more.
            self.out.push_credit(frame.payload.len());
        } else if self.input.len() + frame.payload.len() > INPUT_WINDOW {
            return Err(io::Error::new(ErrorKind::InvalidData, "more input than was asked for"));
        } else {
            self.input.extend(&frame.payload);
        }
        self.feed();
        Ok(())
    }

    /// Gives the command the input that it takes.
    fn feed(&mut self) {
        let mut taken = 0;
        while let Some(fd) = &self.spawned.input
            && !self.input.is_empty()
        {
            match rustix::io::write(fd, self.input.as_slices().0) {
                Ok(count) => {
                    self.input.drain(..count);
                    taken += count;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    taken += self.input.len();
                    self.close_input();
                }
            }
        }
        if taken > 0 {
            self.out.push_credit(taken);
        }
        if self.input_ends && self.input.is_empty() {
            match &self.spawned.input {
                // A terminal has no end; a person would press Ctrl-D.
                Some(fd) if self.has_terminal => {
                    let _ = rustix::io::write(fd, b"\x04");
                    self.input_ends = false;
                }
                _ => self.close_input(),
            }
        }
    }

    fn close_input(&mut self) {
        self.spawned.input = None;
        self.input.clear();
    }

    fn control(&mut self, control: Control) {
        match control {
            Control::Resize(size) => {
                if let Some(terminal) = self.spawned.output.as_ref().filter(|_| self.has_terminal) {
                    let _ = resize(terminal, size);
                }
            }
            Control::Signal(number) => {
                if let Some(signal) = Signal::from_named_raw(number) {
                    self.kill(signal);
                }
            }
        }
    }

    /// Sends a signal to the command and what it has started.
    fn kill(&self, signal: Signal) {
        // Until it is waited for, the number is its own.
        let _ = kill_process_group(self.group, signal);
    }

    fn say_exit(&mut self) -> io::Result<()> {
        let status = self.spawned.child.wait()?;
        let code = status.code().or_else(|| Some(128 + status.signal()?));
        let code = code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX);
        self.out.push_json(Type::Reply, &Reply::Exited(code))?;
        // The last word: there is nothing else to look after.
        rustix::io::ioctl_fionbio(self.stream, false)?;
        self.out.flush(&mut self.stream)
    }

    /// Nobody wants the command any more: it is told so, as by a terminal that was closed.
    fn abandon(&mut self) {
        self.kill(Signal::HUP);
        self.close_input();
        (self.spawned.output, self.spawned.errors) = (None, None);
        let _ = self.spawned.child.wait();
    }
}

/// What may be looked at.
struct Ready {
    connection: bool,
    process: bool,
    input: bool,
}

/// Reads what a command has written. At its end the descriptor goes; `is_last`: also if there is
/// nothing now.
fn read_output(fd: &mut Option<OwnedFd>, kind: Type, out: &mut FrameWriter, is_last: bool) {
    let mut piece = [0; PIECE];
    while let Some(open) = fd.as_ref().filter(|_| out.waiting() < WAITING) {
        match rustix::io::read(open, &mut piece) {
            Ok(count @ 1..) => out.push(kind, piece.get(..count).unwrap_or_default()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if !is_last => return,
            // The end; of a terminal it is an error (EIO).
            _ => *fd = None,
        }
    }
}

fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(&fd)?;
    Ok(fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?)
}
