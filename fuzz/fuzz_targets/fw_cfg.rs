//! The firmware configuration device and its DMA.
#![no_main]

use arbitrary::Arbitrary;
use bus::BusDevice;
use chipset::{FwCfg, fw_cfg};
use libfuzzer_sys::fuzz_target;
use lodge_fuzz::registers::{Access, Bus};
use lodge_fuzz::wiring;

#[derive(Arbitrary, Debug)]
enum Step {
    Access(Access),
    /// A DMA access at `at` in memory.
    Dma {
        at: u16,
        control: u32,
        len: u32,
        address: u64,
        is_high: bool,
    },
    Reset,
}

fuzz_target!(|steps: Vec<Step>| {
    let memory = wiring::ram();
    let mut device = FwCfg::new(memory.clone());
    device.add(fw_cfg::key::RAM_SIZE, [0, 0, 1, 0].as_slice());
    device.add_file("opt/one", [7; 100].as_slice()).unwrap();
    device.add_file("opt/none", [].as_slice()).unwrap();
    for step in &steps {
        match step {
            Step::Access(access) => access.on(&mut device, fw_cfg::LEN, Bus::Ports),
            Step::Dma { at, control, len, address, is_high } => {
                let access =
                    [&control.to_be_bytes()[..], &len.to_be_bytes(), &address.to_be_bytes()];
                wiring::fill(&memory, u64::from(*at), &access.concat());
                device.write(4, &u32::from(*is_high).to_be_bytes());
                device.write(8, &u32::from(*at).to_be_bytes());
            }
            Step::Reset => device.reset(),
        }
    }
});
