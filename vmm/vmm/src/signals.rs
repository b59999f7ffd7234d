//! Signals that ask this process to end, as something to poll(2).

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::ptr;

use vmm_api::Failure;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Have the guest switch itself off: SIGTERM, or SIGHUP from a terminal that is closed.
    PowerOff,
    /// End the guest at once: SIGINT, a person's Ctrl-C.
    StopNow,
}

/// The signals, taken away from their usual effect.
#[derive(Debug)]
pub struct Signals {
    file: File,
}

impl Signals {
    /// Blocks the signals in the calling thread, from which all others inherit that. Call it
    /// before any other thread is started.
    pub fn new() -> Result<Self, Failure> {
        let failed = |e: io::Error| Failure::host(format!("cannot handle signals: {e}"));
        let set = signal_set();
        // SAFETY: `set` is initialized, and a null pointer says that the old mask is not wanted.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) };
        if error != 0 {
            return Err(failed(io::Error::from_raw_os_error(error)));
        }
        // SAFETY: `set` is initialized; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        // SAFETY: the descriptor is new and belongs to nobody else.
        Ok(Self { file: unsafe { File::from_raw_fd(fd) } })
    }

    /// Takes a signal that has come, if one has.
    pub fn take(&mut self) -> Option<Wish> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.file.read_exact(&mut info).ok()?;
        // `ssi_signo` is the first field of the structure (signalfd(2)).
        let signal = i32::from_ne_bytes(*info.first_chunk()?);
        Some(if signal == libc::SIGINT { Wish::StopNow } else { Wish::PowerOff })
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn signal_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initializes the set that it is given, and sigaddset changes one that is
    // initialized; both cannot fail for signals that exist.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT] {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_told_apart() {
        let mut signals = Signals::new().unwrap();
        assert_eq!(signals.take(), None);
        for (signal, wish) in [(libc::SIGTERM, Wish::PowerOff), (libc::SIGINT, Wish::StopNow)] {
            // SAFETY: sends a blocked signal to this thread.
            unsafe { libc::pthread_kill(libc::pthread_self(), signal) };
            assert_eq!(signals.take(), Some(wish));
        }
    }
}
