//! The bus as a guest sees it: through ECAM, the configuration ports and the address spaces.

use std::sync::{Arc, Mutex};

use bus::{AddressSpace, BadState, BusDevice, Saved};
use irqchip::{IrqLine, IrqSink, Msi, MsiTarget};
use pci::{
    Bar, BarKind, Capability, Class, Description, ECAM_SIZE, Identity, Interrupts, MsixLayout,
    PciDevice, PciRoot, Windows,
};
use proptest::prelude::*;
use serde_json::Value;

const ECAM: u64 = 0xb000_0000;

#[derive(Default)]
struct Sink {
    messages: Mutex<Vec<Msi>>,
    levels: Mutex<Vec<(u32, bool)>>,
}

impl IrqSink for Sink {
    fn set_gsi(&self, gsi: u32, level: bool) {
        self.levels.lock().unwrap().push((gsi, level));
    }
    fn send_msi(&self, msi: Msi) {
        self.messages.lock().unwrap().push(msi);
    }
}

/// A card with one BAR of each kind, MSI-X in the 64-bit one, and a capability with a window.
struct Card {
    interrupts: Interrupts,
    log: Arc<Mutex<Vec<String>>>,
}

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
            capabilities: vec![Capability {
                id: 9,
                body: vec![6, 0, 0, 0],
                writable: vec![0, 0, 0xff, 0xff],
            }],
            interrupts: Some(self.interrupts.clone()),
            msix: Some(MsixLayout { bar: 2, table_offset: 0x1000, pba_offset: 0x2000 }),
        }
    }
    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(bar << 4 | (offset & 0xf) as u8);
    }
    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        self.log.lock().unwrap().push(format!("bar {bar} {offset:#x} {data:x?}"));
    }
    fn capability_read(&mut self, index: usize, body: &mut [u8], _: std::ops::Range<usize>) {
        assert_eq!(index, 0);
        body[1] = 0x77;
    }
    fn capability_written(&mut self, _: usize, body: &[u8], touched: std::ops::Range<usize>) {
        self.log.lock().unwrap().push(format!("cap {body:x?} {touched:?}"));
    }
    fn set_bus_master(&mut self, enabled: bool) {
        self.log.lock().unwrap().push(format!("master {enabled}"));
    }
    fn reset(&mut self) {
        self.log.lock().unwrap().push("reset".to_owned());
    }
    fn save(&self) -> Result<Value, BadState> {
        Ok("what the card says".into())
    }
    fn restore(&mut self, state: Value) -> Result<(), BadState> {
        self.log.lock().unwrap().push(format!("restored {state}"));
        Ok(())
    }
}

struct Pc {
    memory: Arc<AddressSpace>,
    io: Arc<AddressSpace>,
    root: Arc<PciRoot>,
    sink: Arc<Sink>,
}

impl Pc {
    fn new() -> Self {
        let (memory, io) = (Arc::new(AddressSpace::new()), Arc::new(AddressSpace::new()));
        let sink = Arc::new(Sink::default());
        let lines = [16, 17, 18, 19].map(|gsi| IrqLine::new(sink.clone(), gsi));
        let windows = Windows {
            memory32: 0xc000_0000..=0xcfff_ffff,
            memory64: 0x80_0000_0000..=0xff_ffff_ffff,
            io: 0xc000..=0xcfff,
        };
        let root =
            PciRoot::new(&memory, &io, windows, MsiTarget::new(sink.clone()), Some(lines), None);
        memory.attach("ecam", ECAM..=ECAM + ECAM_SIZE - 1, root.ecam()).unwrap();
        io.attach("pci", 0xcf8..=0xcff, root.config_ports(None)).unwrap();
        Self { memory, io, root, sink }
    }

    fn add_card(&self) -> (u8, Interrupts, Arc<Mutex<Vec<String>>>) {
        let (interrupts, log) = (Interrupts::new(3), Arc::default());
        let card = Card { interrupts: interrupts.clone(), log: Arc::clone(&log) };
        (self.root.add(None, Box::new(card)).unwrap(), interrupts, log)
    }

    fn read(&self, addr: u64) -> u32 {
        let mut data = [0; 4];
        self.memory.read(addr, &mut data);
        u32::from_le_bytes(data)
    }

    fn cfg(&self, device: u8, register: u64) -> u32 {
        self.read(ECAM + (u64::from(device) << 15) + register)
    }

    fn set_cfg(&self, device: u8, register: u64, value: u32) {
        self.memory.write(ECAM + (u64::from(device) << 15) + register, &value.to_le_bytes());
    }

    /// The capability with this ID, by walking the list.
    fn capability(&self, device: u8, id: u8) -> Option<u64> {
        let mut at = u64::from(self.cfg(device, 0x34) & 0xff);
        for _ in 0..48 {
            if at == 0 {
                return None;
            }
            let header = self.cfg(device, at);
            if header as u8 == id {
                return Some(at);
            }
            at = u64::from(header >> 8 & 0xff);
        }
        panic!("the capability list has no end");
    }
}

#[test]
fn the_host_bridge_is_found_both_ways() {
    let pc = Pc::new();
    assert_eq!(pc.cfg(0, 0), 0x0008_1b36);
    assert_eq!(pc.cfg(0, 8), 0x0600_0000);
    assert_eq!(pc.cfg(1, 0), 0xffff_ffff);
    pc.io.write(0xcf8, &0x8000_0000u32.to_le_bytes());
    let mut id = [0; 2];
    pc.io.read(0xcfe, &mut id);
    assert_eq!(u16::from_le_bytes(id), 0x0008);
    let mut address = [0; 4];
    pc.io.read(0xcf8, &mut address);
    assert_eq!(u32::from_le_bytes(address), 0x8000_0000);
    // Other buses, other functions, and a disabled address are empty.
    for elsewhere in [0x8001_0000u32, 0x8000_0100, 0] {
        pc.io.write(0xcf8, &elsewhere.to_le_bytes());
        pc.io.read(0xcfc, &mut address);
        assert_eq!(address, [0xff; 4]);
    }
}

#[test]
fn a_byte_at_0xcf9_reaches_the_reset_control() {
    struct Reset(Vec<u8>);
    impl BusDevice for Reset {
        fn read(&mut self, _: u64, data: &mut [u8]) {
            data.fill(6);
        }
        fn write(&mut self, _: u64, data: &[u8]) {
            self.0.extend(data);
        }
    }
    let pc = Pc::new();
    let reset = Arc::new(Mutex::new(Reset(Vec::new())));
    pc.io.detach(0xcf8);
    pc.io.attach("pci", 0xcf8..=0xcff, pc.root.config_ports(Some(reset.clone()))).unwrap();
    pc.io.write(0xcf9, &[0xe]);
    pc.io.write(0xcf8, &0x8000_0600u32.to_le_bytes());
    let mut byte = [0];
    pc.io.read(0xcf9, &mut byte);
    assert_eq!((byte, &reset.lock().unwrap().0), ([6], &vec![0xe]));
}

#[test]
fn bars_have_addresses_and_tell_their_sizes() {
    let pc = Pc::new();
    let (n, ..) = pc.add_card();
    assert_eq!(n, 1);
    assert_eq!(pc.cfg(n, 0x10), 0xc001);
    assert_eq!(pc.cfg(n, 0x14), 0xc000_0000);
    assert_eq!((pc.cfg(n, 0x18), pc.cfg(n, 0x1c)), (0xc000_4000 | 0xc, 0));
    assert_eq!(pc.read(0xc000_4003), 0x2323_2323);
    let mut port = [0];
    pc.io.read(0xc005, &mut port);
    assert_eq!(port, [5]);
    for (register, size) in [
        (0x10, 0xffff_ffe1),
        (0x14, 0xffff_f000),
        (0x18, 0xffff_c00c),
        (0x1c, 0xffff_ffff),
        (0x20, 0),
    ] {
        let before = pc.cfg(n, register);
        pc.set_cfg(n, register, 0xffff_ffff);
        assert_eq!(pc.cfg(n, register), size, "register {register:#x}");
        pc.set_cfg(n, register, before);
    }
    assert_eq!(pc.read(0xc000_4003), 0x2323_2323);
}

#[test]
fn bars_move_and_follow_the_command_register() {
    let pc = Pc::new();
    let (n, ..) = pc.add_card();
    pc.set_cfg(n, 0x14, 0xd000_0000);
    assert_eq!(pc.read(0xc000_0000), 0xffff_ffff);
    assert_eq!(pc.read(0xd000_0004), 0x1414_1414);
    pc.set_cfg(n, 0x1c, 0x10); // the 64-bit BAR goes above 4 GiB
    assert_eq!(pc.read(0x10_c000_4001), 0x2121_2121);
    pc.set_cfg(n, 4, 1); // I/O only
    assert_eq!(pc.read(0xd000_0004), 0xffff_ffff);
    pc.set_cfg(n, 4, 2);
    assert_eq!(pc.read(0xd000_0004), 0x1414_1414);
    let mut port = [0];
    pc.io.read(0xc000, &mut port);
    assert_eq!(port, [0xff]);
}

#[test]
fn a_bar_moved_onto_another_waits_for_room() {
    let pc = Pc::new();
    let (a, ..) = pc.add_card();
    let (b, _, log_b) = pc.add_card();
    let (at_a, at_b) = (pc.cfg(a, 0x14), pc.cfg(b, 0x14));
    pc.set_cfg(b, 0x14, at_a);
    pc.memory.write(u64::from(at_a), &[1]);
    assert_eq!(*log_b.lock().unwrap(), [""; 0]); // the first owner still answers
    pc.set_cfg(a, 0x14, at_b);
    pc.memory.write(u64::from(at_a), &[2]);
    assert_eq!(*log_b.lock().unwrap(), ["bar 1 0x0 [2]"]);
    assert_eq!(pc.read(u64::from(at_b)), 0x1010_1010);
    // Onto the configuration window and back: the window stays.
    pc.set_cfg(a, 0x14, ECAM as u32);
    assert_eq!(pc.cfg(a, 0), 0x5678_1234);
}

#[test]
fn capabilities_are_listed_and_windows_work() {
    let pc = Pc::new();
    let (n, _, log) = pc.add_card();
    assert_eq!(pc.cfg(n, 4) >> 16 & 0x10, 0x10);
    let express = pc.capability(n, 0x10).unwrap();
    assert_eq!(pc.cfg(n, express) >> 16, 0x92);
    let msix = pc.capability(n, 0x11).unwrap();
    assert_eq!(pc.cfg(n, msix) >> 16, 2);
    assert_eq!((pc.cfg(n, msix + 4), pc.cfg(n, msix + 8)), (0x1002, 0x2002));
    let vendor = pc.capability(n, 9).unwrap();
    assert_eq!(pc.cfg(n, vendor) >> 24, 0x77);
    pc.set_cfg(n, vendor + 4, 0xdddd_ccbb);
    assert_eq!(*log.lock().unwrap(), ["cap [6, 77, bb, cc] 2..4"]);
    assert_eq!(pc.cfg(n, 0x100), 0); // no extended capabilities
}

#[test]
fn msix_messages_and_pins() {
    let pc = Pc::new();
    let (n, interrupts, log) = pc.add_card();
    let table = u64::from(pc.cfg(n, 0x18) & !0xf) + 0x1000;
    interrupts.set_intx(true);
    assert_eq!(pc.cfg(n, 4) >> 16 & 8, 8);
    interrupts.set_intx(false);
    assert_eq!(*pc.sink.levels.lock().unwrap(), [(17, true), (17, false)]);

    pc.set_cfg(n, 4, 6);
    assert_eq!(*log.lock().unwrap(), ["master true"]);
    let msix = pc.capability(n, 0x11).unwrap();
    pc.set_cfg(n, msix, 0x8000_0000);
    pc.memory.write(table + 16, &0xfee0_0000u64.to_le_bytes());
    pc.memory.write(table + 24, &0x41u64.to_le_bytes());
    interrupts.raise(1);
    interrupts.raise(0); // masked since reset
    interrupts.set_intx(true); // not while MSI-X is on
    assert_eq!(*pc.sink.messages.lock().unwrap(), [Msi { address: 0xfee0_0000, data: 0x41 }]);
    assert_eq!(pc.read(table + 0x1000), 1); // pending bits
    assert_eq!(pc.sink.levels.lock().unwrap().len(), 2);
}

#[test]
fn a_shared_line_is_high_while_anyone_drives_it() {
    let pc = Pc::new();
    let cards: Vec<_> = (0..5).map(|_| pc.add_card()).collect();
    assert_eq!(PciRoot::intx_line(cards[0].0), PciRoot::intx_line(cards[4].0));
    cards[0].1.set_intx(true);
    cards[4].1.set_intx(true);
    cards[0].1.set_intx(false);
    assert_eq!(*pc.sink.levels.lock().unwrap(), [(17, true)]);
    pc.set_cfg(cards[4].0, 4, 0x403); // Interrupt Disable
    assert_eq!(*pc.sink.levels.lock().unwrap(), [(17, true), (17, false)]);
}

#[test]
fn reset_puts_everything_back() {
    let pc = Pc::new();
    let (n, interrupts, log) = pc.add_card();
    let bar = pc.cfg(n, 0x14);
    pc.set_cfg(n, 0x14, 0xd000_0000);
    pc.set_cfg(n, 4, 7);
    interrupts.set_intx(true);
    pc.root.reset();
    assert_eq!(pc.cfg(n, 0x14), bar);
    assert_eq!(pc.cfg(n, 4) & 0xffff, 3);
    assert_eq!(pc.read(u64::from(bar)), 0x1010_1010);
    assert_eq!(pc.read(0xd000_0000), 0xffff_ffff);
    assert_eq!(*log.lock().unwrap(), ["master true", "reset", "master false"]);
    assert_eq!(pc.sink.levels.lock().unwrap().last(), Some(&(17, false)));
}

#[test]
fn a_device_is_taken_away_and_its_place_is_free() {
    let pc = Pc::new();
    let (n, interrupts, log) = pc.add_card();
    let before = [0x10, 0x14, 0x18].map(|bar| pc.cfg(n, bar));
    // The guest moves a BAR, and the card drives its pin.
    pc.set_cfg(n, 0x14, 0xc123_4000);
    interrupts.set_intx(true);
    let gsi = 16 + PciRoot::intx_line(n) as u32;
    assert_eq!(pc.sink.levels.lock().unwrap().last(), Some(&(gsi, true)));
    assert_eq!(pc.read(0xc123_4004), 0x1414_1414);

    let removed = pc.root.remove(n).unwrap();
    assert!(pc.root.remove(n).is_none() && pc.root.remove(31).is_none());
    assert_eq!(pc.sink.levels.lock().unwrap().last(), Some(&(gsi, false)));
    assert_eq!((pc.cfg(n, 0), pc.read(0xc123_4004)), (!0, !0));
    // What it still does leads nowhere.
    interrupts.set_intx(true);
    interrupts.raise(0);
    assert_eq!(pc.sink.levels.lock().unwrap().last(), Some(&(gsi, false)));
    assert!(pc.sink.messages.lock().unwrap().is_empty());
    drop(removed);
    // Nobody else has the card any more.
    assert_eq!(Arc::strong_count(&log), 1);
    for _ in 0..3 {
        let (again, ..) = pc.add_card();
        assert_eq!((again, [0x10, 0x14, 0x18].map(|bar| pc.cfg(again, bar))), (n, before));
        pc.root.remove(again).unwrap();
    }
}

#[test]
fn the_bus_fills_up() {
    let pc = Pc::new();
    for n in 1..32 {
        assert_eq!(pc.add_card().0, n);
    }
    let card = || Box::new(Card { interrupts: Interrupts::new(1), log: Arc::default() });
    assert!(matches!(pc.root.add(None, card()), Err(pci::AddError::Full)));
    assert!(matches!(pc.root.add(Some(4), card()), Err(pci::AddError::Taken(4))));
    assert!(matches!(pc.root.add(Some(0), card()), Err(pci::AddError::Taken(0))));
}

/// One access of a guest gone wild.
#[derive(Clone, Debug)]
enum Access {
    Ecam(u64, u8, u64),
    Port(u64, u8, u64),
    Memory(u64, u8, u64),
}

fn access() -> impl Strategy<Value = Access> {
    let addresses =
        prop_oneof![0xb000_0000u64..0xb002_0000, 0xc000_0000u64..0xc003_0000, any::<u64>()];
    let values = prop_oneof![any::<u64>(), 0u64..8, Just(u64::MAX), 0xc000_0000u64..0xc001_0000];
    prop_oneof![
        4 => (0u64..0x2_0000, 0u8..4, values.clone()).prop_map(|(a, s, v)| Access::Ecam(a, s, v)),
        4 => (0x8000u64..0x8040, 0u8..4, values.clone()).prop_map(|(a, s, v)| Access::Ecam(a, s, v)),
        2 => (0xcf8u64..0xd00, 0u8..3, values.clone()).prop_map(|(a, s, v)| Access::Port(a, s, v)),
        2 => (addresses, 0u8..4, values).prop_map(|(a, s, v)| Access::Memory(a, s, v)),
    ]
}

proptest! {
    /// Whatever a guest writes anywhere, the identity of the devices and the shape of the
    /// capability lists stay, and a reset brings the BARs back.
    #[test]
    fn nonsense_harms_nobody(accesses in proptest::collection::vec(access(), 1..200)) {
        let pc = Pc::new();
        let (a, ..) = pc.add_card();
        let (b, ..) = pc.add_card();
        for access in accesses {
            let (space, at, size, value) = match access {
                Access::Ecam(offset, size, value) => (&pc.memory, ECAM + offset, size, value),
                Access::Port(port, size, value) => (&pc.io, port, size, value),
                Access::Memory(at, size, value) => (&pc.memory, at, size, value),
            };
            let mut data = value.to_le_bytes();
            let data = &mut data[..1 << size];
            space.write(at, data);
            space.read(at, data);
        }
        for n in [a, b] {
            prop_assert_eq!(pc.cfg(n, 0), 0x5678_1234);
            prop_assert!(pc.capability(n, 9).is_some());
        }
        pc.root.reset();
        prop_assert_eq!(pc.read(u64::from(pc.cfg(a, 0x14))), 0x1010_1010);
        prop_assert_eq!(pc.read(u64::from(pc.cfg(b, 0x14))), 0x1010_1010);
    }
}

/// The state of the function `device`, to be saved and restored.
fn saved(pc: &Pc, device: u8) -> Arc<dyn Saved> {
    pc.root.saved().into_iter().find(|(number, _)| *number == device).unwrap().1
}

#[test]
fn another_bus_goes_on() {
    let (a, b) = (Pc::new(), Pc::new());
    let (card, raised, _) = a.add_card();
    let (_, raised_there, log) = b.add_card();
    let msix = a.capability(card, 0x11).unwrap();
    // BARs elsewhere, bus master, MSI-X with one vector unmasked and another that waits.
    a.set_cfg(card, 0x14, 0xc123_4000);
    a.set_cfg(card, 0x18, 0x4000_0000);
    a.set_cfg(card, 0x1c, 0x90);
    a.set_cfg(card, 0x04, 0x0407);
    a.set_cfg(card, msix, 0x8000_0000);
    let table = 0x90_4000_1000u64;
    for (vector, control) in [(0u64, 0u32), (1, 1)] {
        let entry = table + 16 * vector;
        a.memory.write(entry, &0xfee0_1000u64.to_le_bytes());
        a.memory.write(entry + 8, &(0x40 + vector as u32).to_le_bytes());
        a.memory.write(entry + 12, &control.to_le_bytes());
    }
    raised.raise(1);
    a.io.write(0xcf8, &0x8000_0810u32.to_le_bytes());

    let state = saved(&a, card).save().unwrap();
    saved(&b, card).restore(&state).unwrap();
    assert_eq!(*log.lock().unwrap(), ["restored \"what the card says\"", "master true"]);
    for register in (0..0x100).step_by(4) {
        assert_eq!(b.cfg(card, register), a.cfg(card, register), "{register:#x}");
    }
    assert!(b.sink.messages.lock().unwrap().is_empty());
    raised_there.raise(0);
    let message = |n: u32| Msi { address: 0xfee0_1000, data: n };
    assert_eq!(*b.sink.messages.lock().unwrap(), [message(0x40)]);
    b.memory.write(table + 16 + 12, &0u32.to_le_bytes());
    assert_eq!(*b.sink.messages.lock().unwrap(), [message(0x40), message(0x41)]);
    b.memory.write(0xc123_4008, &[5]);
    assert_eq!(log.lock().unwrap().last().unwrap(), "bar 1 0x8 [5]");

    // What is another device's, or nobody's, is refused.
    assert!(saved(&b, 0).restore(&state).is_err());
    let text = String::from_utf8(state).unwrap();
    for (from, to) in
        [("\"config\":\"3412", "\"config\":\"3413"), ("\"pending\":[2]", "\"pending\":[2,0]")]
    {
        assert!(text.contains(from), "{text}");
        assert!(saved(&b, card).restore(text.replace(from, to).as_bytes()).is_err());
    }
}
