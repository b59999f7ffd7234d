//! The few system calls that need `unsafe`: signals, and what a child does before it becomes
//! another program.

use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

/// The signals that ask a program to end.
const ENDING: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// The ending signals, no longer deadly but readable, so that the program can clean up.
///
/// To be made before any thread is started: threads made later inherit the mask.
pub struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Blocks the ending signals for this thread and makes them readable.
    pub fn block() -> io::Result<Signals> {
        Signals::of(&ending_set())
    }

    /// The same, and with them the signal that the terminal has another size.
    pub fn block_and_watch_size() -> io::Result<Signals> {
        let mut set = ending_set();
        // SAFETY: `set` is an initialised signal set, to which this only writes.
        unsafe { libc::sigaddset(&mut set, libc::SIGWINCH) };
        Signals::of(&set)
    }

    /// Makes the ending signals for this thread what they were.
    pub fn unblock() {
        let set = ending_set();
        // SAFETY: `set` is an initialised signal set; the old mask is not wanted (null).
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut()) };
    }

    /// Whether a signal says that the terminal has another size.
    pub fn is_size(signal: i32) -> bool {
        signal == libc::SIGWINCH
    }

    fn of(set: &libc::sigset_t) -> io::Result<Signals> {
        // SAFETY: `set` is an initialised signal set; the old mask is not wanted (null).
        let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set, ptr::null_mut()) };
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        // SAFETY: `set` is an initialised signal set; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so that `fd` is open and nobody else's.
        Ok(Signals { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// The next signal that has come, without waiting.
    pub fn next(&self) -> Option<i32> {
        let mut info = [0u8; mem::size_of::<libc::signalfd_siginfo>()];
        let read = rustix::io::read(&self.fd, &mut info).ok()?;
        // The first field, ssi_signo, is the signal's number (signalfd(2)).
        let number = info.get(..4).filter(|_| read == info.len())?;
        i32::try_from(u32::from_ne_bytes(number.try_into().ok()?)).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn ending_set() -> libc::sigset_t {
    // SAFETY: sigset_t is plain data, for which all zeros are a valid value; sigemptyset and
    // sigaddset only write to the set they are given.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in ENDING {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

/// Has no ending signal blocked or ignored in this process.
fn reset_signals() {
    // SAFETY: sigset_t is plain data, for which all zeros are a valid value; sigemptyset only writes
    // to the set that it is given, the old mask is not wanted (null), and the default action needs
    // no handler. All of it may be called between fork and exec (signal-safety(7)).
    unsafe {
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
        // A shell has what it starts in the background ignore some of them.
        for signal in ENDING {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Makes a command start with no ending signal blocked or ignored, and go on when this program and
/// its terminal are gone.
pub fn detach(command: &mut Command) {
    // SAFETY: as above: system calls only, and nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            reset_signals();
            // A session of its own has no terminal to be hung up by.
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// Makes a command start with no ending signal blocked or ignored, as a program expects, and end by
/// SIGTERM if this program ends without having ended it.
pub fn tie_to_this_process(command: &mut Command) {
    let parent = rustix::process::getpid();
    // SAFETY: the closure runs in the child between fork and exec, where only calls that are safe
    // in a signal handler are allowed (signal-safety(7)): it makes system calls on values it owns
    // and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            reset_signals();
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have ended before the call above.
            if libc::getppid() != parent.as_raw_nonzero().get() {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}
