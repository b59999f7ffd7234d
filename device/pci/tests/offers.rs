//! What an accelerator may offer: to ring doorbells in a device's place, and ways for messages.

use std::io;
use std::sync::{Arc, Mutex};

use bus::{AddressSpace, BadState};
use irqchip::{IrqSink, Msi, MsiRoute, MsiTarget};
use pci::{
    Bar, BarKind, Class, Description, Doorbell, Identity, Interrupts, MsixLayout, PciDevice,
    PciRoot, Windows,
};
use runtime::{Doorbells, Event};

/// Notes which addresses are rung for, and refuses one.
#[derive(Default)]
struct Ringer {
    attached: Mutex<Vec<u64>>,
    refuses: Option<u64>,
}

impl Doorbells for Ringer {
    fn attach(&self, address: u64, event: &Event) -> io::Result<()> {
        if self.refuses == Some(address) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        event.signal();
        self.attached.lock().unwrap().push(address);
        Ok(())
    }

    fn detach(&self, address: u64, _: &Event) {
        let mut attached = self.attached.lock().unwrap();
        let at = attached.iter().position(|&a| a == address);
        attached.remove(at.expect("what is detached was attached"));
    }
}

/// Offers one route, and notes what comes by it and what does not.
#[derive(Default)]
struct Sink {
    opened: Mutex<usize>,
    by_route: Arc<Mutex<Vec<u32>>>,
    plain: Mutex<Vec<u32>>,
}

struct Route(Arc<Mutex<Vec<u32>>>);

impl MsiRoute for Route {
    fn send(&self, msi: Msi) {
        self.0.lock().unwrap().push(msi.data);
    }
}

impl IrqSink for Sink {
    fn set_gsi(&self, _: u32, _: bool) {}

    fn send_msi(&self, msi: Msi) {
        self.plain.lock().unwrap().push(msi.data);
    }

    fn open_route(&self) -> Option<Box<dyn MsiRoute>> {
        let mut opened = self.opened.lock().unwrap();
        *opened += 1;
        (*opened == 1).then(|| Box::new(Route(self.by_route.clone())) as Box<dyn MsiRoute>)
    }
}

struct Card {
    interrupts: Interrupts,
    bells: [Arc<Event>; 2],
}

impl PciDevice for Card {
    fn description(&self) -> Description {
        let bell = |offset, event: &Arc<Event>| Doorbell { bar: 0, offset, event: event.clone() };
        Description {
            identity: Identity {
                vendor_id: 0x1234,
                device_id: 0x5678,
                revision: 1,
                class: Class { base: 0xff, sub: 0, interface: 0 },
                subsystem_vendor_id: 0x1234,
                subsystem_id: 1,
            },
            bars: vec![Bar { index: 0, kind: BarKind::Memory32, size: 0x4000 }],
            doorbells: vec![bell(0x10, &self.bells[0]), bell(0x14, &self.bells[1])],
            capabilities: Vec::new(),
            interrupts: Some(self.interrupts.clone()),
            msix: Some(MsixLayout { bar: 0, table_offset: 0x1000, pba_offset: 0x2000 }),
        }
    }

    fn bar_read(&mut self, _: u8, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn bar_write(&mut self, _: u8, _: u64, _: &[u8]) {}

    fn reset(&mut self) {}

    fn save(&self) -> Result<serde_json::Value, BadState> {
        Ok(serde_json::Value::Null)
    }

    fn restore(&mut self, _: serde_json::Value) -> Result<(), BadState> {
        Ok(())
    }
}

/// A bus with a card at 0xc000_0000.
struct Pc {
    memory: Arc<AddressSpace>,
    root: Arc<PciRoot>,
    interrupts: Interrupts,
}

const ECAM: u64 = 0xb000_0000;
const CARD: u64 = ECAM + (1 << 15);

impl Pc {
    fn new(ringer: Arc<Ringer>, sink: Arc<Sink>) -> Self {
        let (memory, io) = (Arc::new(AddressSpace::new()), Arc::new(AddressSpace::new()));
        let windows = Windows {
            memory32: 0xc000_0000..=0xcfff_ffff,
            memory64: 0x80_0000_0000..=0xff_ffff_ffff,
            io: 0xc000..=0xcfff,
        };
        let root = PciRoot::new(&memory, &io, windows, MsiTarget::new(sink), None, Some(ringer));
        memory.attach("ecam", ECAM..=ECAM + pci::ECAM_SIZE - 1, root.ecam()).unwrap();
        let interrupts = Interrupts::new(2);
        let bells = [(); 2].map(|()| Arc::new(Event::new().unwrap()));
        root.add(Some(1), Box::new(Card { interrupts: interrupts.clone(), bells })).unwrap();
        Self { memory, root, interrupts }
    }

    fn set(&self, register: u64, value: u32) {
        self.memory.write(CARD + register, &value.to_le_bytes());
    }
}

#[test]
fn doorbells_follow_their_bar() {
    let ringer = Arc::new(Ringer::default());
    let pc = Pc::new(ringer.clone(), Arc::default());
    let attached = || ringer.attached.lock().unwrap().clone();
    assert_eq!(attached(), [0xc000_0010, 0xc000_0014]);
    pc.set(0x10, 0xc800_0000);
    assert_eq!(attached(), [0xc800_0010, 0xc800_0014]);
    pc.set(4, 0); // Memory Space off
    assert_eq!(attached(), [0u64; 0]);
    pc.set(4, 2);
    assert_eq!(attached(), [0xc800_0010, 0xc800_0014]);
    // Onto the configuration window, where the BAR answers nowhere, and so do its doorbells.
    pc.set(0x10, ECAM as u32);
    assert_eq!(attached(), [0u64; 0]);
    pc.root.reset();
    assert_eq!(attached(), [0xc000_0010, 0xc000_0014]);
}

#[test]
fn a_doorbell_that_is_refused_takes_the_long_way() {
    let ringer = Arc::new(Ringer { refuses: Some(0xc000_0014), ..Ringer::default() });
    let pc = Pc::new(ringer.clone(), Arc::default());
    assert_eq!(*ringer.attached.lock().unwrap(), [0xc000_0010]);
    pc.set(0x10, 0xc800_0000);
    assert_eq!(*ringer.attached.lock().unwrap(), [0xc800_0010, 0xc800_0014]);
    pc.set(0x10, 0xc000_0000);
    assert_eq!(*ringer.attached.lock().unwrap(), [0xc000_0010]);
}

#[test]
fn each_vector_has_a_route_where_there_is_one() {
    let sink = Arc::new(Sink::default());
    let pc = Pc::new(Arc::default(), sink.clone());
    pc.set(4, 6);
    let capabilities = {
        let mut pointer = [0];
        pc.memory.read(CARD + 0x34, &mut pointer);
        let mut at = u64::from(pointer[0]);
        loop {
            let mut header = [0; 2];
            pc.memory.read(CARD + at, &mut header);
            if header[0] == 0x11 {
                break at;
            }
            at = u64::from(header[1]);
            assert_ne!(at, 0, "there is no MSI-X");
        }
    };
    pc.set(capabilities, 0x8000_0000);
    for (vector, data) in [(0u64, 0x41u64), (1, 0x52)] {
        pc.memory.write(0xc000_1000 + vector * 16, &0xfee0_0000u64.to_le_bytes());
        pc.memory.write(0xc000_1008 + vector * 16, &data.to_le_bytes());
    }
    for vector in [0, 1, 0, 1] {
        pc.interrupts.raise(vector);
    }
    assert_eq!(*sink.by_route.lock().unwrap(), [0x41, 0x41]);
    assert_eq!(*sink.plain.lock().unwrap(), [0x52, 0x52]);
    assert_eq!(*sink.opened.lock().unwrap(), 2, "each is asked for once");
}
