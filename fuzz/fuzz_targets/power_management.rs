//! ACPI's registers.
#![no_main]

use arbitrary::Arbitrary;
use chipset::{PowerManagement, pm};
use libfuzzer_sys::fuzz_target;
use lodge_fuzz::{registers, registers::Step, wiring};

#[derive(Arbitrary, Debug)]
struct Input {
    start: u64,
    rounds: Vec<(u32, bool, Vec<Step>)>,
}

fuzz_target!(|input: Input| {
    let (power, _requests) = chipset::power_channel().unwrap();
    let timers = wiring::timers(input.start);
    let pm = PowerManagement::new(wiring::line(), power, &timers);
    for (gpe, button, steps) in &input.rounds {
        pm.lock().unwrap().raise_gpe(*gpe);
        if *button {
            pm.lock().unwrap().press_power_button();
        }
        registers::play(&pm, pm::LEN, steps, PowerManagement::reset);
    }
});
