//! The fixed devices of a PC.

use std::sync::{Arc, Mutex};

use chipset::{
    A20, At, CmosConfig, I8042, PowerManagement, Rtc, SystemControlPortA, i8042, pm, rtc,
};
use serial::Serial;

use super::{Board, gsi, port};
use crate::BuildError;

/// CMOS index of the century.
pub const CMOS_CENTURY: u8 = rtc::CENTURY;

/// Power management, clock, keyboard controller and port 92h. Returns the first, which has the
/// power button.
pub fn attach(board: &Board) -> Result<Arc<Mutex<PowerManagement>>, BuildError> {
    let timers = &*board.parts.timers;
    let power = &board.power;

    let pm = PowerManagement::new(board.irq(gsi::SCI), power.clone(), timers);
    board.attach_ports("power management", port::POWER_MANAGEMENT, pm::LEN, pm.clone())?;

    let rtc = Rtc::new(cmos(board), board.irq(gsi::RTC), timers);
    board.attach_ports("real-time clock", port::CMOS, 2, rtc)?;

    let a20 = A20::new();
    let i8042 = Arc::new(Mutex::new(I8042::new(
        board.irq(gsi::KEYBOARD),
        board.irq(gsi::MOUSE),
        a20.clone(),
        power.clone(),
    )));
    let command = At::new(i8042.clone(), i8042::COMMAND);
    board.attach_ports("keyboard", port::KEYBOARD_DATA, 1, i8042)?;
    board.attach_window("keyboard command", port::KEYBOARD_COMMAND, 1, command)?;

    let port_a = Arc::new(Mutex::new(SystemControlPortA::new(a20, power.clone())));
    board.attach_ports("system control A", port::SYSTEM_CONTROL_A, 1, port_a)?;
    Ok(pm)
}

/// What firmware would have written to CMOS memory.
fn cmos(board: &Board) -> CmosConfig {
    let map = &board.parts.map;
    let high_ram = map.ram().iter().filter(|r| r.start >= 1 << 32).map(|r| r.len).sum();
    CmosConfig { low_ram_end: map.low_ram_end(), high_ram }
}

/// The serial ports.
pub fn attach_serial(board: &Board) -> Result<(), BuildError> {
    for (name, base, gsi, console) in [
        ("COM1", port::COM1, gsi::COM1, &board.parts.serial),
        ("COM2", port::COM2, gsi::COM2, &board.parts.serial2),
    ] {
        let serial = Serial::new(board.irq(gsi), console.clone(), &board.parts.timers);
        board.attach_ports(name, base, serial::WINDOW, serial)?;
    }
    Ok(())
}
