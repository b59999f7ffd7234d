//! Work that takes so long that people want to see how far it is, and to give it up.

use std::thread;

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
    let (cancel, signal) = cancel_on_signal()?;
    let mut show = Show::new();
    let result = work(&mut show, &cancel);
    drop(show);
    match result {
        Ok(text) => {
            eprintln!("{text}");
            Ok(0)
        }
        Err(Stopped::Cancelled) => {
            eprintln!("lodge: {}", images::Error::Cancelled);
            let number = signal.try_recv().unwrap_or(libc::SIGINT);
            Ok(u8::try_from(number).map_or(u8::MAX, |number| 128 | number))
        }
        Err(Stopped::Failed(failure)) => Err(failure),
    }
}

/// Makes the ending signals give work up instead of ending the program.
fn cancel_on_signal() -> Result<(Cancel, std::sync::mpsc::Receiver<i32>), Failure> {
    let signals = Signals::block()
        .map_err(|error| Failure::host(format!("cannot receive signals: {error}")))?;
    let cancel = Cancel::default();
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn({
        let cancel = cancel.clone();
        move || {
            loop {
                let _ = poll(&mut [PollFd::new(&signals, PollFlags::IN)], None);
                if let Some(number) = signals.next() {
                    let _ = sender.send(number);
                    cancel.cancel();
                    return;
                }
            }
        }
    });
    Ok((cancel, receiver))
}
