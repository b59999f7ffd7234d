//! Configuration space by ECAM and by ports, BARs that move, MSI-X tables.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use bus::AddressSpace;
use irqchip::IrqLine;
use libfuzzer_sys::fuzz_target;
use lodge_fuzz::registers::{Access, Bus};
use lodge_fuzz::wiring;
use pci::{
    Bar, BarKind, Class, Description, ECAM_SIZE, Identity, Interrupts, MsixLayout, PciDevice,
    PciRoot, Windows,
};

const ECAM: u64 = 0xe000_0000;
const MEMORY32: u64 = 0xc000_0000;
const MEMORY64: u64 = 1 << 40;
const PORTS: u64 = 0xc000;

#[derive(Arbitrary, Debug)]
enum Step {
    /// A register of a device's configuration space.
    Config(u8, Access),
    ConfigAddress(u32),
    ConfigData(Access),
    /// Memory at the beginning of a window, or where a BAR may have been moved to.
    Memory32(Access),
    Memory64(Access),
    Anywhere(u64, Access),
    Ports(Access),
    Raise(u16),
    Pin(bool),
    Reset,
}

/// A card with a BAR of each kind.
struct Card(Interrupts);

impl PciDevice for Card {
    fn description(&self) -> Description {
        Description {
            identity: Identity {
                vendor_id: 0x1234,
                device_id: 0x5678,
                revision: 1,
                class: Class { base: 0xff, sub: 0, interface: 0 },
                subsystem_vendor_id: 0x1234,
                subsystem_id: 1,
            },
            doorbells: Vec::new(),
            bars: vec![
                Bar { index: 0, kind: BarKind::Io, size: 0x20 },
                Bar { index: 1, kind: BarKind::Memory32, size: 0x1000 },
                Bar { index: 2, kind: BarKind::Memory64 { prefetchable: true }, size: 0x4000 },
            ],
            capabilities: Vec::new(),
            interrupts: Some(self.0.clone()),
            msix: Some(MsixLayout { bar: 2, table_offset: 0x1000, pba_offset: 0x2000 }),
        }
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        inside(bar, offset, data);
        data.fill(bar);
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        inside(bar, offset, data);
    }

    fn reset(&mut self) {}

    fn save(&self) -> Result<serde_json::Value, bus::BadState> {
        Ok(serde_json::Value::Null)
    }

    fn restore(&mut self, _: serde_json::Value) -> Result<(), bus::BadState> {
        Ok(())
    }
}

/// The bus keeps its promise about what reaches a device.
fn inside(bar: u8, offset: u64, data: &[u8]) {
    let size = [0x20, 0x1000, 0x4000][usize::from(bar)];
    assert!(offset + data.len() as u64 <= size, "BAR {bar}: {offset:#x}, {}", data.len());
}

fuzz_target!(|steps: Vec<Step>| {
    let (memory, io) = (Arc::new(AddressSpace::new()), Arc::new(AddressSpace::new()));
    let windows = Windows {
        memory32: MEMORY32..=MEMORY32 + 0xff_ffff,
        memory64: MEMORY64..=MEMORY64 + 0xff_ffff,
        io: PORTS..=PORTS + 0xfff,
    };
    let lines: [IrqLine; 4] = std::array::from_fn(|_| wiring::line());
    let root = PciRoot::new(&memory, &io, windows, wiring::msi(), Some(lines), None);
    memory.attach("ecam", ECAM..=ECAM + ECAM_SIZE - 1, root.ecam()).unwrap();
    io.attach("pci", 0xcf8..=0xcff, root.config_ports(None)).unwrap();
    let interrupts = Interrupts::new(3);
    root.add(Some(1), Box::new(Card(interrupts.clone()))).unwrap();
    root.add(Some(2), Box::new(virtio::rng(wiring::ram()).unwrap())).unwrap();

    let at = |space: &AddressSpace, base: u64, access: &Access, window, bus| {
        access.perform(
            &mut (),
            (window, bus),
            |(), offset, data| space.read(base.wrapping_add(offset), data),
            |(), offset, data| space.write(base.wrapping_add(offset), data),
        );
    };
    for step in &steps {
        match step {
            Step::Config(device, access) => {
                let base = ECAM + (u64::from(device & 3) << 15);
                at(&memory, base, access, 0x1000, Bus::Memory);
            }
            Step::ConfigAddress(address) => io.write(0xcf8, &address.to_le_bytes()),
            Step::ConfigData(access) => at(&io, 0xcf8, access, 8, Bus::Ports),
            Step::Memory32(access) => at(&memory, MEMORY32, access, 0x1_0000, Bus::Memory),
            Step::Memory64(access) => at(&memory, MEMORY64, access, 0x1_0000, Bus::Memory),
            Step::Anywhere(base, access) => at(&memory, *base, access, 0x1_0000, Bus::Memory),
            Step::Ports(access) => at(&io, PORTS, access, 0x1000, Bus::Ports),
            Step::Raise(vector) => interrupts.raise(*vector),
            Step::Pin(level) => interrupts.set_intx(*level),
            Step::Reset => root.reset(),
        }
    }
    root.reset();
});
