//! ACPI fixed hardware: PM1a event and control blocks, PM timer, general-purpose events.

use std::sync::{Arc, Mutex, Weak};

use bus::{BadState, BusDevice, Snapshot};
use irqchip::IrqLine;
use runtime::{Clock, Expire, Timer, Timers};
use serde::{Deserialize, Serialize};

use crate::{PowerRequest, PowerSender};

/// Offset of the PM1a event block: status and enable, 4 bytes.
pub const PM1A_EVENT: u16 = 0x00;
/// Offset of the PM1a control block, 2 bytes.
pub const PM1A_CONTROL: u16 = 0x04;
/// Offset of the PM timer, 4 bytes. It counts 32 bits.
pub const TIMER: u16 = 0x08;
/// Offset of general-purpose event block 0: status and enable.
pub const GPE0: u16 = 0x20;
/// Length of general-purpose event block 0: 8 bytes of status, 8 bytes of enables.
pub const GPE0_LEN: u8 = 16;
/// How many ports the device takes.
pub const LEN: u64 = 0x30;
/// SLP_TYP of S5, soft off, for the `_S5` package.
pub const SOFT_OFF: u8 = 5;

mod spec {
    //! ACPI 6.5, 4.8.3 "ACPI Register Model".

    use bitflags::bitflags;

    /// The frequency of the PM timer (4.8.3.3).
    pub const TIMER_HZ: u64 = 3_579_545;

    bitflags! {
        /// PM1 status and enable bits (4.8.3.1).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Pm1: u16 {
            /// The most significant bit of the PM timer changed.
            const TMR = 1 << 0;
            /// The firmware gave up the global lock.
            const GBL = 1 << 5;
            const PWRBTN = 1 << 8;
            const SLPBTN = 1 << 9;
            const RTC = 1 << 10;
            /// Status only: awake from a sleep state.
            const WAK = 1 << 15;
        }

        /// PM1 control (4.8.3.2).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Pm1Control: u16 {
            const SCI_EN = 1 << 0;
            const BM_RLD = 1 << 1;
            /// Write only.
            const GBL_RLS = 1 << 2;
            const SLP_TYP = 0b111 << 10;
            /// Write only: go to sleep.
            const SLP_EN = 1 << 13;
        }
    }

    /// The status bits that can raise an SCI.
    pub const ENABLES: Pm1 =
        Pm1::TMR.union(Pm1::GBL).union(Pm1::PWRBTN).union(Pm1::SLPBTN).union(Pm1::RTC);
    pub const SLP_TYP_SHIFT: u32 = 10;
}

use spec::{Pm1, Pm1Control};

/// The power management registers: [`LEN`] ports.
///
/// The machine has no SMI command port, so it is always in ACPI mode (ACPI 6.5, 5.2.9, SMI_CMD).
pub struct PowerManagement {
    // Wiring.
    sci: IrqLine,
    power: PowerSender,
    clock: Arc<Clock>,
    timer: Timer,

    // Volatile state.
    status: Pm1,
    enable: Pm1,
    control: Pm1Control,
    gpe_status: u64,
    gpe_enable: u64,
    /// How often bit 31 of the PM timer had changed when TMR_STS was last brought up to date.
    wraps_seen: u64,
    /// The level of the SCI line.
    sci_level: bool,
}

impl PowerManagement {
    /// Registers in their state after power-on. `sci` is the system control interrupt: level
    /// triggered, active high.
    pub fn new(sci: IrqLine, power: PowerSender, timers: &Timers) -> Arc<Mutex<Self>> {
        Arc::new_cyclic(|me: &Weak<Mutex<Self>>| {
            Mutex::new(Self {
                sci,
                power,
                clock: timers.clock().clone(),
                timer: timers.timer(me.clone()),
                status: Pm1::empty(),
                enable: Pm1::empty(),
                control: Pm1Control::SCI_EN,
                gpe_status: 0,
                gpe_enable: 0,
                wraps_seen: ticks(timers.clock().now()) >> 31,
                sci_level: false,
            })
        })
    }

    /// Back to the state after power-on. The PM timer counts on.
    pub fn reset(&mut self) {
        self.status = Pm1::empty();
        self.enable = Pm1::empty();
        self.control = Pm1Control::SCI_EN;
        self.gpe_status = 0;
        self.gpe_enable = 0;
        self.wraps_seen = ticks(self.clock.now()) >> 31;
        self.update();
    }

    /// Presses the power button, and says whether the guest has asked to be told of that.
    pub fn press_power_button(&mut self) -> bool {
        self.status |= Pm1::PWRBTN;
        self.update();
        self.enable.contains(Pm1::PWRBTN)
    }

    /// Raises general-purpose event `number` (0 to 63; others are ignored).
    pub fn raise_gpe(&mut self, number: u32) {
        self.gpe_status |= 1u64.checked_shl(number).unwrap_or(0);
        self.update();
    }

    /// Whether the guest has asked to be told of general-purpose events. Systems switch one off for as long
    /// as they deal with it, so that any of them counts.
    pub fn listens_to_gpes(&self) -> bool {
        self.gpe_enable != 0
    }

    /// Brings the timer's status, the SCI and the next wake-up in line with the rest.
    fn update(&mut self) {
        let wraps = ticks(self.clock.now()) >> 31;
        if wraps != self.wraps_seen {
            self.wraps_seen = wraps;
            self.status |= Pm1::TMR;
        }
        let level = self.status.intersects(self.enable & spec::ENABLES)
            || self.gpe_status & self.gpe_enable != 0;
        if level != self.sci_level {
            self.sci_level = level;
            self.sci.set_level(level);
        }
        if self.enable.contains(Pm1::TMR) && !self.status.contains(Pm1::TMR) {
            self.timer.arm(time_of((wraps + 1) << 31));
        } else {
            self.timer.disarm();
        }
    }

    fn go_to_sleep(&mut self) {
        let state = ((self.control & Pm1Control::SLP_TYP).bits() >> spec::SLP_TYP_SHIFT) as u8;
        if state == SOFT_OFF {
            self.power.send(PowerRequest::PowerOff);
        } else {
            tracing::debug!("guest asks for sleep state {state}, which the machine does not have");
        }
    }

    fn register(&self, offset: u64) -> u8 {
        let byte = |value: u64, base: u16| (value >> (8 * (offset - u64::from(base)))) as u8;
        match offset {
            0x00..0x02 => byte(self.status.bits().into(), PM1A_EVENT),
            0x02..0x04 => byte(self.enable.bits().into(), PM1A_EVENT + 2),
            0x04..0x06 => byte(self.control.bits().into(), PM1A_CONTROL),
            0x20..0x28 => byte(self.gpe_status, GPE0),
            0x28..0x30 => byte(self.gpe_enable, GPE0 + 8),
            _ => 0xff,
        }
    }

    fn set_register(&mut self, offset: u64, value: u8) {
        // The value in its place in the whole register, and the byte it takes there.
        let shift = |base: u16| 8 * (offset - u64::from(base));
        let put =
            |old: u64, base: u16| old & !(0xff << shift(base)) | u64::from(value) << shift(base);
        let ones = |base: u16| u64::from(value) << shift(base);
        match offset {
            0x00..0x02 => {
                self.status.remove(Pm1::from_bits_retain(ones(PM1A_EVENT) as u16));
            }
            0x02..0x04 => {
                let enable = put(self.enable.bits().into(), PM1A_EVENT + 2);
                self.enable = Pm1::from_bits_truncate(enable as u16) & spec::ENABLES;
            }
            0x04..0x06 => {
                let control = Pm1Control::from_bits_truncate(put(
                    self.control.bits().into(),
                    PM1A_CONTROL,
                ) as u16);
                let kept = Pm1Control::BM_RLD | Pm1Control::SLP_TYP;
                self.control = control & kept | Pm1Control::SCI_EN;
                if control.contains(Pm1Control::SLP_EN) {
                    self.go_to_sleep();
                }
            }
            0x20..0x28 => self.gpe_status &= !ones(GPE0),
            0x28..0x30 => self.gpe_enable = put(self.gpe_enable, GPE0 + 8),
            _ => {}
        }
    }
}

/// The PM timer at guest time `ns`, without the limit of 32 bits.
fn ticks(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(spec::TIMER_HZ) / 1_000_000_000) as u64
}

/// The first guest time at which the PM timer has counted `ticks`.
fn time_of(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(spec::TIMER_HZ)) as u64
}

impl BusDevice for PowerManagement {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let timer = u64::from(TIMER)..u64::from(TIMER) + 4;
        if timer.contains(&offset) {
            // One count for the whole access.
            let count = (ticks(self.clock.now()) as u32).to_le_bytes();
            for (at, byte) in (offset..).zip(data) {
                let n = (at - timer.start) as usize;
                *byte = count.get(n).copied().unwrap_or(0xff);
            }
            return;
        }
        if offset < u64::from(PM1A_EVENT) + 2 {
            self.update();
        }
        for (at, byte) in (offset..).zip(data) {
            *byte = self.register(at);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.update(); // a wrap of the timer before this write counts before it
        for (at, byte) in (offset..).zip(data) {
            self.set_register(at, *byte);
        }
        self.update();
    }
}

impl Expire for PowerManagement {
    fn expired(&mut self, _deadline: u64) {
        self.update();
    }
}

/// What of the registers is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerManagementState {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u64,
    gpe_enable: u64,
    /// How often the timer's highest bit has changed.
    wraps_seen: u64,
}

impl Snapshot for PowerManagement {
    type State = PowerManagementState;

    fn save(&self) -> PowerManagementState {
        PowerManagementState {
            status: self.status.bits(),
            enable: self.enable.bits(),
            control: self.control.bits(),
            gpe_status: self.gpe_status,
            gpe_enable: self.gpe_enable,
            wraps_seen: self.wraps_seen,
        }
    }

    fn restore(&mut self, state: PowerManagementState) -> Result<(), BadState> {
        self.status = Pm1::from_bits_truncate(state.status);
        self.enable = Pm1::from_bits_truncate(state.enable) & spec::ENABLES;
        self.control = Pm1Control::from_bits_truncate(state.control) - Pm1Control::SLP_EN;
        self.gpe_status = state.gpe_status;
        self.gpe_enable = state.gpe_enable;
        self.wraps_seen = state.wraps_seen;
        self.update();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_wiring::Pins;
    use crate::{PowerRequests, power_channel};
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    struct Bench {
        pm: Arc<Mutex<PowerManagement>>,
        pins: Arc<Pins>,
        requests: PowerRequests,
        clock: Arc<Clock>,
        _timers: Timers,
    }

    fn bench(start: u64) -> Bench {
        let clock = Arc::new(Clock::stopped_at(start));
        let timers = Timers::new(clock.clone()).unwrap();
        let pins = Pins::new();
        let (power, requests) = power_channel().unwrap();
        let pm = PowerManagement::new(pins.line(9), power, &timers);
        Bench { pm, pins, requests, clock, _timers: timers }
    }

    impl Bench {
        fn get<const N: usize>(&self, offset: u16) -> [u8; N] {
            let mut data = [0; N];
            self.pm.lock().unwrap().read(offset.into(), &mut data);
            data
        }

        fn set(&self, offset: u16, data: &[u8]) {
            self.pm.lock().unwrap().write(offset.into(), data);
        }
    }

    #[test]
    fn the_timer_counts_at_its_frequency() {
        let b = bench(10_000_000_000);
        assert_eq!(u32::from_le_bytes(b.get(TIMER)), 35_795_450);
        assert_eq!(b.get::<1>(TIMER + 1), [(35_795_450u32 >> 8) as u8]);
        for n in [0, 1, 12345, 1 << 31, (1 << 31) * 7] {
            assert_eq!(ticks(time_of(n)), n);
            assert!(n == 0 || ticks(time_of(n) - 1) == n - 1);
        }
    }

    #[test]
    fn the_power_button_raises_the_sci_until_acknowledged() {
        let b = bench(0);
        assert!(!b.pm.lock().unwrap().press_power_button());
        assert!(!b.pins.level(9));
        b.set(PM1A_EVENT + 2, &0x0100u16.to_le_bytes());
        assert!(b.pins.level(9));
        assert_eq!(u16::from_le_bytes(b.get(PM1A_EVENT)), 0x0100);
        b.set(PM1A_EVENT, &0xfeffu16.to_le_bytes());
        assert!(b.pins.level(9));
        b.set(PM1A_EVENT + 1, &[1]);
        assert!(!b.pins.level(9));
        assert!(b.pm.lock().unwrap().press_power_button());
        assert!(b.pins.level(9));
        b.pm.lock().unwrap().reset();
        assert!(!b.pins.level(9));
    }

    #[test]
    fn another_one_goes_on() {
        let a = bench(5_000_000_000);
        a.set(PM1A_EVENT + 2, &0x0101u16.to_le_bytes());
        a.set(PM1A_CONTROL, &(3u16 << 10).to_le_bytes());
        a.set(GPE0 + 8, &[0x12]);
        a.pm.lock().unwrap().raise_gpe(4);
        a.pm.lock().unwrap().press_power_button();
        let state = a.pm.lock().unwrap().save();
        let b = bench(5_000_000_000);
        b.pm.lock().unwrap().restore(state).unwrap();
        assert!(b.pins.level(9));
        for offset in (0..LEN as u16).filter(|at| !(TIMER..TIMER + 4).contains(at)) {
            assert_eq!(b.get::<1>(offset), a.get::<1>(offset), "{offset:#x}");
        }
        b.set(PM1A_EVENT, &0x0100u16.to_le_bytes());
        assert!(b.pins.level(9));
        b.set(GPE0, &[0x10]);
        assert!(!b.pins.level(9));
    }

    #[test]
    fn soft_off_is_a_request_and_other_sleep_states_are_not() {
        let b = bench(0);
        assert_eq!(u16::from_le_bytes(b.get(PM1A_CONTROL)), 1);
        b.set(PM1A_CONTROL, &(5u16 << 10).to_le_bytes());
        b.set(PM1A_CONTROL, &(3u16 << 10 | 1 << 13).to_le_bytes());
        assert_eq!(b.requests.take(), None);
        assert_eq!(u16::from_le_bytes(b.get(PM1A_CONTROL)), 3 << 10 | 1);
        b.set(PM1A_CONTROL, &(5u16 << 10 | 1 << 13).to_le_bytes());
        assert_eq!(b.requests.take(), Some(PowerRequest::PowerOff));
        b.set(PM1A_CONTROL + 1, &[5 << 2 | 1 << 5]);
        assert_eq!(b.requests.take(), Some(PowerRequest::PowerOff));
    }

    #[test]
    fn a_timer_wrap_raises_the_sci_in_time() {
        let wrap = time_of(1 << 31);
        let b = bench(wrap - 20_000_000);
        b.set(PM1A_EVENT + 2, &[1, 0]);
        assert!(!b.pins.level(9));
        b.clock.resume();
        let start = Instant::now();
        while !b.pins.level(9) {
            assert!(start.elapsed() < Duration::from_secs(120));
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(b.clock.now() >= wrap);
        b.set(PM1A_EVENT, &[1, 0]);
        assert!(!b.pins.level(9));
    }

    #[test]
    fn general_purpose_events() {
        let b = bench(0);
        b.pm.lock().unwrap().raise_gpe(63);
        b.pm.lock().unwrap().raise_gpe(64);
        assert_eq!(u64::from_le_bytes(b.get(GPE0)), 1 << 63);
        b.set(GPE0 + 15, &[0x80]);
        assert!(b.pins.level(9));
        b.set(GPE0 + 7, &[0x80]);
        assert!(!b.pins.level(9));
        assert_eq!(u64::from_le_bytes(b.get(GPE0)), 0);
    }

    proptest! {
        #[test]
        fn any_access_is_harmless(start in any::<u64>(), accesses in prop::collection::vec(
            (any::<bool>(), 0u64..LEN, 1usize..=4, any::<u32>()), 1..100)
        ) {
            let b = bench(start);
            let mut pm = b.pm.lock().unwrap();
            for (write, offset, len, value) in accesses {
                let mut data = value.to_le_bytes();
                if write {
                    pm.write(offset, &data[..len]);
                } else {
                    pm.read(offset, &mut data[..len]);
                }
                let due = pm.status.intersects(pm.enable) || pm.gpe_status & pm.gpe_enable != 0;
                prop_assert_eq!(b.pins.level(9), due);
            }
        }
    }
}
