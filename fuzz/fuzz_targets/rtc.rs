//! The real-time clock and CMOS memory.
#![no_main]

use chipset::{CmosConfig, Rtc};
use libfuzzer_sys::fuzz_target;
use lodge_fuzz::{registers, registers::Step, wiring};

fuzz_target!(|input: (u64, Vec<Step>)| {
    let (start, steps) = input;
    let timers = wiring::timers(start);
    let config = CmosConfig { low_ram_end: 3 << 30, high_ram: 1 << 30 };
    let rtc = Rtc::new(config, wiring::line(), &timers);
    registers::play(&rtc, 2, &steps, Rtc::reset);
});
