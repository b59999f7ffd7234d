//! Work that takes so long that people want to see how far it is, and to give it up.

use std::io::{self, PipeWriter};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};

use images::Cancel;
use rustix::event::{PollFd, PollFlags, poll};
use vmm_api::Failure;

use crate::failure;
use crate::progress::Show;
use crate::sys::Signals;

/// Why work did not come to its end.
pub enum Stopped {
    /// It was given up, as was asked for, and has left nothing behind.
    Cancelled,
    /// It failed.
    Failed(Failure),
}

impl From<images::Error> for Stopped {
    fn from(error: images::Error) -> Stopped {
        match error {
            images::Error::Cancelled => Stopped::Cancelled,
            error => Stopped::Failed(failure::image(error)),
        }
    }
}

impl From<block::Error> for Stopped {
    fn from(error: block::Error) -> Stopped {
        Stopped::Failed(failure::disk(error))
    }
}

/// Does work that shows its progress and can be given up by Ctrl-C; at its end prints what it says.
/// The value is the exit status.
pub fn long_work(
    work: impl FnOnce(&mut Show, &Cancel) -> Result<String, Stopped>,
) -> Result<u8, Failure> {
    match cancellable(work)? {
        Ok(text) => {
            eprintln!("{text}");
            Ok(0)
        }
        Err(number) => Ok(cancelled(number)),
    }
}

/// Says that work was given up by this signal; the exit status that says so, too.
fn cancelled(signal: i32) -> u8 {
    eprintln!("lodge: {}", images::Error::Cancelled);
    u8::try_from(signal).map_or(u8::MAX, |number| 128 | number)
}

/// Ends this program because its work was given up by this signal.
pub fn exit_by(signal: i32) -> ! {
    std::process::exit(cancelled(signal).into())
}

/// Does such work, for its result. The error within is the signal by which it was given up.
pub fn cancellable<T>(
    work: impl FnOnce(&mut Show, &Cancel) -> Result<T, Stopped>,
) -> Result<Result<T, i32>, Failure> {
    let watch = Watch::begin()?;
    let mut show = Show::new();
    let result = work(&mut show, &watch.cancel);
    drop(show);
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(Stopped::Cancelled) => Ok(Err(watch.signal.try_recv().unwrap_or(libc::SIGINT))),
        Err(Stopped::Failed(failure)) => Err(failure),
    }
}

/// Makes the ending signals give work up instead of ending the program, as long as it is there. The second
/// one ends it, and leaves to the next `lodge` what is to be tidied up.
struct Watch {
    cancel: Cancel,
    /// Which signal has come.
    signal: Receiver<i32>,
    /// Closed, it ends the thread.
    end: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn begin() -> Result<Watch, Failure> {
        let broken = |error: io::Error| Failure::host(format!("cannot receive signals: {error}"));
        let signals = Signals::block().map_err(broken)?;
        let (ended, end) = io::pipe().map_err(broken)?;
        let cancel = Cancel::default();
        let (sender, signal) = channel();
        let thread = thread::spawn({
            let cancel = cancel.clone();
            move || loop {
                let mut sources =
                    [PollFd::new(&signals, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
                let _ = poll(&mut sources, None);
                if !sources[1].revents().is_empty() {
                    return;
                }
                if let Some(number) = signals.next() {
                    // Somebody who waits for a server, or a disk, does not see that the work is given up.
                    if cancel.is_cancelled() {
                        exit_by(number);
                    }
                    let _ = sender.send(number);
                    cancel.cancel();
                }
            }
        });
        Ok(Watch { cancel, signal, end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        Signals::unblock();
    }
}
