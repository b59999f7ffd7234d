//! The devices of test kernels, and the small ports that reset the machine.
#![no_main]

use std::sync::Arc;

use bus::BusDevice;
use chardev::Chardev;
use chipset::testdev::{TestIrqs, TestMemory, TestPorts};
use chipset::{A20, DebugConsole, DebugExit, ExitPort, ResetControl, SystemControlPortA};
use libfuzzer_sys::fuzz_target;
use lodge_fuzz::registers::{Access, Bus};
use lodge_fuzz::wiring;

fuzz_target!(|accesses: Vec<(u8, Access)>| {
    let (power, _requests) = chipset::power_channel().unwrap();
    let mut devices: [(Box<dyn BusDevice>, u64, Bus); 8] = [
        (Box::new(DebugConsole::new(Arc::new(Chardev::null()))), 1, Bus::Ports),
        (Box::new(DebugExit::new(power.clone())), DebugExit::LEN, Bus::Ports),
        (Box::new(ExitPort::new(power.clone())), 1, Bus::Ports),
        (Box::new(TestPorts::new()), 12, Bus::Ports),
        (Box::new(TestIrqs::new(vec![wiring::line(); 24])), 24, Bus::Ports),
        (Box::new(TestMemory::new()), TestMemory::LEN, Bus::Memory),
        (Box::new(ResetControl::new(power.clone())), 1, Bus::Ports),
        (Box::new(SystemControlPortA::new(A20::new(), power)), 1, Bus::Ports),
    ];
    for (which, access) in &accesses {
        let which = usize::from(*which) % devices.len();
        let (device, window, bus) = &mut devices[which];
        access.on(&mut **device, *window, *bus);
    }
});
