//! The machine's power: its button, and its end.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::thread;
use std::time::Duration;

use agent_protocol::program::EXIT_PORT;
use rustix::system::{RebootCommand, reboot};

/// The size of an event on a 64-bit system: the time, type, code and value (Linux,
/// include/uapi/linux/input.h).
const EVENT: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// Calls `pressed` whenever the power button is pressed. Comes back if there is none.
pub fn watch_button(pressed: impl Fn() + Send + Clone + 'static) {
    let mut watchers = Vec::new();
    for entry in fs::read_dir("/dev/input").into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with("event") {
            let pressed = pressed.clone();
            watchers.push(thread::spawn(move || watch(&path, pressed)));
        }
    }
    for watcher in watchers {
        let _ = watcher.join();
    }
}

fn watch(path: &Path, pressed: impl Fn()) {
    let Ok(mut device) = File::open(path) else { return };
    let mut event = [0; EVENT];
    while device.read_exact(&mut event).is_ok() {
        if is_power_key(&event) {
            pressed();
        }
    }
}

/// Whether an event is the power key going down.
fn is_power_key(event: &[u8; EVENT]) -> bool {
    let [.., t0, t1, c0, c1, v0, v1, v2, v3] = *event;
    u16::from_ne_bytes([t0, t1]) == EV_KEY
        && u16::from_ne_bytes([c0, c1]) == KEY_POWER
        && i32::from_ne_bytes([v0, v1, v2, v3]) == 1
}

/// Ends all other processes.
pub fn end_others() {
    // SAFETY: kill(2) with -1 means every process but the first, which this is. It touches no memory.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Ends the machine with this exit status.
pub fn end(status: u8) -> ! {
    write_port(EXIT_PORT, status);
    loop {
        // A machine without that port.
        let _ = reboot(RebootCommand::PowerOff);
        thread::sleep(Duration::from_secs(1));
    }
}

/// Writes to an I/O port, which only the first process of a guest does. Nothing happens if the kernel
/// does not allow it.
fn write_port(port: u16, value: u8) {
    // SAFETY: ioperm(2) takes any numbers, and says whether it has let this thread use the port.
    if unsafe { libc::ioperm(port.into(), 1, 1) } != 0 {
        return;
    }
    // SAFETY: the port may be used, as was just said. What is behind it is a device of a virtual
    // machine, which changes no memory: at most, it ends this machine.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_power_key_is_told_from_others() {
        let event = |kind: u16, code: u16, value: i32| {
            let mut bytes = [0xff; EVENT];
            bytes[16..18].copy_from_slice(&kind.to_ne_bytes());
            bytes[18..20].copy_from_slice(&code.to_ne_bytes());
            bytes[20..].copy_from_slice(&value.to_ne_bytes());
            bytes
        };
        assert!(is_power_key(&event(EV_KEY, KEY_POWER, 1)));
        // Let go, another key, and what ends a report.
        for other in [event(EV_KEY, KEY_POWER, 0), event(EV_KEY, 30, 1), event(0, 0, 0)] {
            assert!(!is_power_key(&other));
        }
    }
}
