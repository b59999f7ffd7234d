//! The registers of virtio over PCI.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use lodge_fuzz::registers::{Access, Bus};
use lodge_fuzz::wiring;
use pci::PciDevice;

#[derive(Arbitrary, Debug)]
enum Step {
    /// A field of the common configuration structure, at a multiple of two.
    Common(u8, u32, u8),
    Bar(Access),
    /// The configuration access window.
    Window {
        bar: u8,
        offset: u32,
        len: u32,
        data: u32,
        is_write: bool,
    },
    BusMaster(bool),
    Pause,
    Resume,
    Reset,
}

fuzz_target!(|steps: Vec<Step>| {
    let mut device = virtio::rng(wiring::ram()).unwrap();
    let capabilities = device.description().capabilities;
    let window = capabilities.len() - 1;
    for step in &steps {
        match *step {
            Step::Common(register, value, len) => {
                let len = 1 << (len % 3);
                device.bar_write(0, 2 * u64::from(register % 32), &value.to_le_bytes()[..len]);
            }
            Step::Bar(access) => access.perform(
                &mut device,
                (0x8000, Bus::Memory),
                |device, offset, data| device.bar_read(0, offset, data),
                |device, offset, data| device.bar_write(0, offset, data),
            ),
            Step::Window { bar, offset, len, data, is_write } => {
                let mut body = capabilities[window].body.clone();
                body[2] = bar;
                body[6..10].copy_from_slice(&offset.to_le_bytes());
                body[10..14].copy_from_slice(&len.to_le_bytes());
                body[14..18].copy_from_slice(&data.to_le_bytes());
                if is_write {
                    device.capability_written(window, &body, 14..18);
                } else {
                    device.capability_read(window, &mut body, 14..18);
                }
            }
            Step::BusMaster(enabled) => device.set_bus_master(enabled),
            Step::Pause => device.pause(),
            Step::Resume => device.resume(),
            Step::Reset => device.reset(),
        }
    }
});
