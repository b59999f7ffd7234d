//! A system call that a thread must not make: the process says which, and ends.

use std::io;
use std::ptr;

use syscalls::Sysno;

/// `si_code` of a signal that a seccomp filter sent (siginfo.h).
const SYS_SECCOMP: i32 = 1;
/// Where the kernel puts the number of the system call in `siginfo_t` (siginfo.h, `_sigsys`).
const CALL: usize = 24;

/// Has the process say what it did when a filter stops it.
pub fn watch() -> io::Result<()> {
    // SAFETY: zero is a value of every field.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_violation as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the structure is valid, and the handler makes only calls that are safe in one.
    match unsafe { libc::sigaction(libc::SIGSYS, &action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reports on standard error. The process ends by the same signal when this returns.
extern "C" fn on_violation(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's structure, whose union holds at least this for this code.
    let call = unsafe {
        ((*info).si_code == SYS_SECCOMP).then(|| info.cast::<u8>().add(CALL).cast::<i32>().read())
    };
    let mut name = [0u8; 16];
    // SAFETY: PR_GET_NAME writes 16 bytes at most.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let mut line = Line::default();
    line.put(b"lodge-vmm: the sandbox does not let the thread ");
    line.put(name.split(|&byte| byte == 0).next().unwrap_or_default());
    line.put(b" make the system call ");
    let number = call.unwrap_or(-1);
    if let Some(call) = usize::try_from(number).ok().and_then(Sysno::new) {
        line.put(call.name().as_bytes());
    }
    line.put(b" (");
    line.number(number);
    line.put(
        b"): the guest ends. Somebody attacks this VMM, or this is a mistake in Lodge: please report \
          it; --sandbox off does without\n",
    );
    // SAFETY: writes initialized bytes, sets the default action, and sends the signal to this thread, to
    // which it comes when the handler returns, before the thread does anything else.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len);
        libc::signal(signal, libc::SIG_DFL);
        libc::pthread_kill(libc::pthread_self(), signal);
    }
}

/// A line of bounded length, made without allocation.
struct Line {
    bytes: [u8; 384],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 384], len: 0 }
    }
}

impl Line {
    fn put(&mut self, text: &[u8]) {
        for &byte in text {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        }
    }

    fn number(&mut self, number: i32) {
        let mut digits = [0u8; 10];
        let mut at = digits.len();
        let mut rest = number.unsigned_abs();
        while at > 0 {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        if number < 0 {
            self.put(b"-");
        }
        self.put(&digits[at..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_bounded() {
        let mut line = Line::default();
        for number in [0, 7, -1, i32::MAX, i32::MIN] {
            line.number(number);
            line.put(b" ");
        }
        assert_eq!(&line.bytes[..line.len], b"0 7 -1 2147483647 -2147483648 ");
        (0..100).for_each(|_| line.put(b"too much"));
        assert_eq!(line.len, line.bytes.len());
    }
}
