//! Taking a processor out of the guest.
//!
//! Two things are needed, because either alone leaves a gap: `immediate_exit` in the page that a
//! processor shares with KVM, which KVM looks at when it enters the guest, and a signal, which makes
//! it leave the guest. The signal's handler does nothing.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// What a processor shares with its kickers.
#[derive(Default)]
pub struct Kick {
    requested: AtomicBool,
    /// The thread that is in `run`.
    running: Mutex<Option<Running>>,
}

/// A thread that runs the processor.
#[derive(Clone, Copy)]
struct Running {
    thread: libc::pthread_t,
    immediate_exit: *const AtomicU8,
}

// SAFETY: the pointer is used by kickers only under the lock of `Kick::running`, where it stands
// no longer than the processor, to which the page belongs, is in `run`.
unsafe impl Send for Running {}

impl Kick {
    /// Has the processor leave `run` soon.
    pub fn kick(&self) {
        self.requested.store(true, Ordering::SeqCst);
        if let Some(running) = *self.running() {
            // SAFETY: the processor is in `run`, so its page is mapped.
            unsafe { (*running.immediate_exit).store(1, Ordering::SeqCst) };
            // SAFETY: the thread is in `run`, which waits for the lock before it returns.
            unsafe { libc::pthread_kill(running.thread, signal()) };
        }
    }

    /// Notes that the calling thread runs the processor whose page has `immediate_exit`, until what
    /// is returned is dropped.
    ///
    /// # Safety
    ///
    /// The pointer must be valid as long as what is returned.
    ///
    /// # Errors
    ///
    /// The host's, if the signal cannot be let through to this thread.
    pub unsafe fn enter(&self, immediate_exit: *const AtomicU8) -> io::Result<Entered<'_>> {
        let_through()?;
        let mut running = self.running();
        // SAFETY: pthread_self has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        *running = Some(Running { thread, immediate_exit });
        let requested = self.requested.load(Ordering::SeqCst);
        // SAFETY: as the caller promises.
        unsafe { (*immediate_exit).store(requested.into(), Ordering::SeqCst) };
        drop(running);
        Ok(Entered { kick: self, immediate_exit })
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A processor that is in `run`.
pub struct Entered<'a> {
    kick: &'a Kick,
    immediate_exit: *const AtomicU8,
}

impl Entered<'_> {
    /// KVM was interrupted: whether by a kick, which is taken.
    pub fn take(&self) -> bool {
        // In this order, so that a kick that comes in between is seen now or interrupts again.
        // SAFETY: valid as long as `self`, as the caller of `enter` promised.
        unsafe { (*self.immediate_exit).store(0, Ordering::SeqCst) };
        self.kick.requested.swap(false, Ordering::SeqCst)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        *self.kick.running() = None;
    }
}

/// The signal that kicks.
fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn nothing(_: libc::c_int) {}

/// Lets the signal through to the calling thread, where it does nothing but interrupt.
fn let_through() -> io::Result<()> {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // SAFETY: all fields of the structure are plain data, for which zero is a value; the
        // handler touches nothing, so it may interrupt anything.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigemptyset(&mut action.sa_mask);
            // It cannot fail: the number is that of a signal that may be handled.
            libc::sigaction(signal(), &action, ptr::null_mut());
        }
    });
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initializes the set, sigaddset changes it, and a null pointer says that
    // the old mask is not wanted.
    let error = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), ptr::null_mut())
    };
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}
