//! Signals that ask this process to end, as something to poll(2), and threads without signals.

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

/// Blocks the signals of [`Signals`] in the calling thread, from which all others inherit that.
/// Call it before any other thread is started.
pub fn block() -> Result<(), Failure> {
    block_set(&ending()).map_err(failed)
}

/// Blocks every signal in the calling thread that can come at any time, so that it goes to another
/// thread: whoever runs a guest's code must not be taken away from it to a handler. The signals of
/// faults, which are the thread's own doing, stay. (The two that the C library keeps to itself
/// cannot be blocked by its means: it sends them only for calls that this program does not make.)
pub fn leave_to_other_threads() -> Result<(), Failure> {
    const FAULTS: [i32; 6] =
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset initializes the set that it is given, and sigdelset changes one that is
    // initialized; both cannot fail for signals that exist.
    let set = unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for signal in FAULTS {
            libc::sigdelset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    };
    block_set(&set).map_err(failed)
}

fn block_set(set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: `set` is initialized, and a null pointer says that the old mask is not wanted.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set, ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn failed(error: io::Error) -> Failure {
    Failure::host(format!("cannot handle signals: {error}"))
}

impl Signals {
    /// Makes the signals readable, also those that came since they were [blocked](block).
    pub fn new() -> Result<Self, Failure> {
        block()?;
        let set = ending();
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

fn ending() -> libc::sigset_t {
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
