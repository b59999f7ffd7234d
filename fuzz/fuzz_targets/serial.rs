//! The 16550A, with input from its console.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use chardev::{Chardev, FrontEndMut};
use libfuzzer_sys::fuzz_target;
use lodge_fuzz::{registers, registers::Step, wiring};
use serial::Serial;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    start: u64,
    rounds: Vec<(&'a [u8], Vec<Step>)>,
}

fuzz_target!(|input: Input<'_>| {
    let timers = wiring::timers(input.start);
    let port = Serial::new(wiring::line(), Arc::new(Chardev::null()), &timers);
    for (received, steps) in &input.rounds {
        {
            let mut port = port.lock().unwrap();
            let room = port.can_receive().min(received.len());
            port.receive(&received[..room]);
            port.room();
        }
        registers::play(&port, serial::WINDOW, steps, Serial::reset);
    }
});
