//! The real-time clock and CMOS memory: Motorola MC146818A at ports 70h and 71h.

mod alarm;
mod calendar;
mod chip;
mod contents;
mod snapshot;
mod spec;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, Weak};

use bus::BusDevice;
use irqchip::IrqLine;
use runtime::{Clock, Expire, Timer, Timers};
use rustix::time::{ClockId, clock_gettime};

use chip::{Chip, Now};
pub use contents::CmosConfig;

/// CMOS index of the century, for the FADT.
pub const CENTURY: u8 = spec::CENTURY;

/// The real-time clock: ports 70h (index) and 71h (data).
///
/// It shows the host's UTC, moved by as much as the guest has set it. Interrupts go by guest time.
pub struct Rtc {
    // Wiring.
    irq: IrqLine,
    clock: Arc<Clock>,
    timer: Timer,

    // Volatile state.
    chip: Chip,
    index: u8,
    irq_level: bool,
}

impl Rtc {
    /// A clock as firmware leaves it: set, running, 24-hour BCD. `irq` is ISA interrupt 8.
    pub fn new(config: CmosConfig, irq: IrqLine, timers: &Timers) -> Arc<Mutex<Self>> {
        Arc::new_cyclic(|me: &Weak<Mutex<Self>>| {
            let clock = timers.clock().clone();
            Mutex::new(Self {
                irq,
                chip: Chip::new(contents::initial(config), host_now(&clock)),
                clock,
                timer: timers.timer(me.clone()),
                index: 0,
                irq_level: false,
            })
        })
    }

    /// What a reset of the machine does (RESET pin): interrupts are off, time and memory stay.
    pub fn reset(&mut self) {
        self.index = 0;
        self.chip.reset();
        self.update(host_now(&self.clock));
    }

    fn update(&mut self, now: Now) {
        let level = self.chip.interrupts();
        if level != self.irq_level {
            self.irq_level = level;
            self.irq.set_level(level);
        }
        match self.chip.next_event(now) {
            Some(deadline) => self.timer.arm(deadline),
            None => self.timer.disarm(),
        }
    }
}

fn host_now(clock: &Clock) -> Now {
    let wall = clock_gettime(ClockId::Realtime);
    Now {
        guest: clock.now(),
        wall: i128::from(wall.tv_sec) * 1_000_000_000 + i128::from(wall.tv_nsec),
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff); // the index port is for writing only
        if let (1, Some(byte)) = (offset, data.first_mut()) {
            let now = host_now(&self.clock);
            *byte = self.chip.read(self.index, now);
            if self.index == spec::REGISTER_C {
                self.update(now);
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let now = host_now(&self.clock);
        for (offset, &value) in (offset..).zip(data) {
            match offset {
                // Bit 7 masks NMIs, of which this machine has none.
                0 => self.index = value & 0x7f,
                1 => {
                    self.chip.write(self.index, value, now);
                    if self.index < spec::FIRST_FREE {
                        self.update(now);
                    }
                }
                _ => {}
            }
        }
    }
}

impl Expire for Rtc {
    fn expired(&mut self, _deadline: u64) {
        let now = host_now(&self.clock);
        self.chip.catch_up(now);
        self.update(now);
    }
}
