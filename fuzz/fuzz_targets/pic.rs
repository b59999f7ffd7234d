//! The pair of 8259As.
#![no_main]

use arbitrary::Arbitrary;
use irqchip::{PicPair, PicPort};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    Read(u8),
    Write(u8, u8),
    Irq(u8, bool),
    Acknowledge,
    Reset,
}

const PORTS: [PicPort; 6] = [
    PicPort::MasterCommand,
    PicPort::MasterData,
    PicPort::SlaveCommand,
    PicPort::SlaveData,
    PicPort::MasterElcr,
    PicPort::SlaveElcr,
];

fuzz_target!(|steps: Vec<Step>| {
    let mut pic = PicPair::new();
    for step in &steps {
        match *step {
            Step::Read(port) => drop(pic.read(PORTS[usize::from(port) % 6])),
            Step::Write(port, value) => pic.write(PORTS[usize::from(port) % 6], value),
            Step::Irq(irq, level) => pic.set_irq(irq, level),
            Step::Acknowledge => drop(pic.acknowledge()),
            Step::Reset => pic.reset(),
        }
        pic.output();
    }
});
