//! virtio over PCI (4.1), modern interface only.
//!
//! Everything is in one 64-bit memory BAR, each structure in a page of its own, so that a page
//! can be handed to KVM's ioeventfd or be left out of a trap.

use std::ops::Range;

use bus::BadState;
use mem::GuestMemory;
use pci::{
    Bar, BarKind, Capability, Class, Description, Doorbell, Identity, MsixLayout, PciDevice,
};
use serde_json::Value;

use crate::Error;
use crate::device::{Device, DeviceType, VirtioDevice};
use crate::spec::{common, pci as spec};

const BAR: u8 = 0;
const BAR_SIZE: u64 = 0x8000;
const COMMON: Range<u64> = 0..0x1000;
const ISR: Range<u64> = 0x1000..0x2000;
const DEVICE: Range<u64> = 0x2000..0x3000;
const NOTIFY: Range<u64> = 0x3000..0x4000;
const MSIX_TABLE: u32 = 0x4000;
const MSIX_PBA: u32 = 0x5000;
/// Queue `n` is notified at `NOTIFY.start + n * NOTIFY_MULTIPLIER`.
const NOTIFY_MULTIPLIER: u32 = 4;

/// A virtio device as a PCI function.
pub struct VirtioPci {
    device: Device,
    /// The index of the PCI configuration access capability among the others.
    window: usize,
}

impl VirtioPci {
    /// Puts a transport in front of a device whose buffers are in `memory`.
    pub fn new(model: Box<dyn VirtioDevice>, memory: GuestMemory) -> Result<Self, Error> {
        let device = Device::new(model, memory)?;
        let mut this = Self { device, window: 0 };
        this.window = this.capabilities().len() - 1;
        Ok(this)
    }

    /// The doorbell of each queue. What the guest stores there says again which queue it means.
    fn doorbells(&self) -> Vec<Doorbell> {
        (0..self.device.queues())
            .filter_map(|queue| {
                let event = self.device.doorbell(queue)?.clone();
                let offset = NOTIFY.start + queue as u64 * u64::from(NOTIFY_MULTIPLIER);
                Some(Doorbell { bar: BAR, offset, event })
            })
            .collect()
    }

    /// In the order in which the driver finds them; the configuration access window is last.
    fn capabilities(&self) -> Vec<Capability> {
        let notify_len = self.device.queues() as u32 * NOTIFY_MULTIPLIER;
        let config_len = self.device.model().config().len() as u32;
        let mut notify = structure(spec::CFG_NOTIFY, &NOTIFY, notify_len);
        notify.extend(NOTIFY_MULTIPLIER.to_le_bytes());
        let mut list = vec![
            read_only(structure(spec::CFG_COMMON, &COMMON, common::LEN as u32)),
            read_only(structure(spec::CFG_ISR, &ISR, 1)),
            read_only(notify),
        ];
        if config_len != 0 {
            list.push(read_only(structure(spec::CFG_DEVICE, &DEVICE, config_len)));
        }
        list.push(Window::capability());
        list
    }

    fn notify(&self, offset: u64) {
        let queue = offset / u64::from(NOTIFY_MULTIPLIER);
        if let Some(doorbell) = usize::try_from(queue).ok().and_then(|q| self.device.doorbell(q)) {
            doorbell.signal();
        }
    }
}

fn read_only(body: Vec<u8>) -> Capability {
    Capability { id: spec::CAPABILITY_VENDOR, body, writable: Vec::new() }
}

/// `struct virtio_pci_cap` without its first two bytes.
fn structure(cfg_type: u8, place: &Range<u64>, len: u32) -> Vec<u8> {
    let cap_len = if cfg_type == spec::CFG_NOTIFY || cfg_type == spec::CFG_PCI { 20 } else { 16 };
    let mut body = vec![cap_len, cfg_type, BAR, 0, 0, 0];
    body.extend((place.start as u32).to_le_bytes());
    body.extend(len.to_le_bytes());
    body
}

/// Copies what lies at `offset` of `source`; beyond its end there are zeroes.
fn copy_from(source: &[u8], offset: u64, data: &mut [u8]) {
    for (at, byte) in (offset as usize..).zip(data) {
        *byte = source.get(at).copied().unwrap_or(0);
    }
}

impl PciDevice for VirtioPci {
    fn description(&self) -> Description {
        let device_type = self.device.model().device_type();
        let (base, sub) = match device_type {
            DeviceType::Net => (0x02, 0x00),     // network, Ethernet
            DeviceType::Block => (0x01, 0x80),   // mass storage, other
            DeviceType::Console => (0x07, 0x80), // communication, other
            DeviceType::Entropy => (0x10, 0x80), // encryption, other
            DeviceType::Balloon => (0x05, 0x80), // memory, other
            DeviceType::Vsock => (0x07, 0x80),   // communication, other
            DeviceType::Fs => (0x01, 0x80),      // mass storage, other
        };
        Description {
            identity: Identity {
                vendor_id: spec::VENDOR_ID,
                device_id: spec::DEVICE_ID_BASE + device_type as u16,
                // Modern devices have revision 1 or higher and a subsystem above 0x40 (4.1.2.1).
                revision: 1,
                class: Class { base, sub, interface: 0 },
                subsystem_vendor_id: spec::VENDOR_ID,
                subsystem_id: 0x1100,
            },
            bars: vec![Bar {
                index: BAR,
                kind: BarKind::Memory64 { prefetchable: false },
                size: BAR_SIZE,
            }],
            doorbells: self.doorbells(),
            capabilities: self.capabilities(),
            interrupts: Some(self.device.shared().interrupts().clone()),
            msix: Some(MsixLayout { bar: BAR, table_offset: MSIX_TABLE, pba_offset: MSIX_PBA }),
        }
    }

    fn bar_read(&mut self, _bar: u8, offset: u64, data: &mut [u8]) {
        if COMMON.contains(&offset) {
            copy_from(&self.device.common_registers(), offset, data);
        } else if ISR.contains(&offset) {
            data.fill(0);
            if let (true, [first, ..]) = (offset == ISR.start, data) {
                *first = self.device.shared().read_isr();
            }
        } else if DEVICE.contains(&offset) {
            copy_from(&self.device.model().config(), offset - DEVICE.start, data);
        } else {
            data.fill(0);
        }
    }

    fn bar_write(&mut self, _bar: u8, offset: u64, data: &[u8]) {
        if COMMON.contains(&offset) {
            self.device.write_common(offset as usize, data);
        } else if DEVICE.contains(&offset) {
            let at = (offset - DEVICE.start) as usize;
            if at + data.len() <= self.device.model().config().len() {
                self.device.model_mut().config_write(at, data);
            }
        } else if NOTIFY.contains(&offset) {
            self.notify(offset - NOTIFY.start);
        }
    }

    fn capability_read(&mut self, index: usize, body: &mut [u8], touched: Range<usize>) {
        if index == self.window
            && let Some((offset, data)) = Window::target(body, touched)
        {
            self.bar_read(BAR, offset, data);
        }
    }

    fn capability_written(&mut self, index: usize, body: &[u8], touched: Range<usize>) {
        let mut body = body.to_vec();
        if index == self.window
            && let Some((offset, data)) = Window::target(&mut body, touched)
        {
            self.bar_write(BAR, offset, data);
        }
    }

    fn set_bus_master(&mut self, enabled: bool) {
        self.device.set_bus_master(enabled);
    }

    fn reset(&mut self) {
        self.device.reset();
    }

    fn save(&self) -> Result<Value, BadState> {
        self.device.save()
    }

    fn restore(&mut self, state: Value) -> Result<(), BadState> {
        self.device.restore(state)
    }

    fn pause(&mut self) {
        self.device.set_paused(true);
    }

    fn resume(&mut self) {
        self.device.set_paused(false);
    }
}

/// The PCI configuration access capability (4.1.4.9): a way to the BAR for those who cannot map
/// it. The driver writes bar, offset and length, then reads or writes the data field.
struct Window;

impl Window {
    const BAR: usize = 2;
    const OFFSET: usize = 6;
    const LENGTH: usize = 10;
    const DATA: usize = 14;
    const END: usize = 18;

    fn capability() -> Capability {
        let mut body = structure(spec::CFG_PCI, &(0..0), 0);
        body.extend([0; 4]);
        let mut writable = vec![0; body.len()];
        writable[Self::BAR] = 0xff;
        writable[Self::OFFSET..Self::END].fill(0xff);
        Capability { id: spec::CAPABILITY_VENDOR, body, writable }
    }

    /// If an access touches the data field and the other fields are sensible: the offset in the
    /// BAR, and the data.
    fn target(body: &mut [u8], touched: Range<usize>) -> Option<(u64, &mut [u8])> {
        let field = |at: usize| body.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let (offset, len) = (u64::from(field(Self::OFFSET)?), field(Self::LENGTH)?);
        let sensible = *body.get(Self::BAR)? == BAR
            && matches!(len, 1 | 2 | 4)
            && offset.is_multiple_of(len.into())
            && offset + u64::from(len) <= BAR_SIZE;
        let hit = touched.start < Self::END && touched.end > Self::DATA;
        let data = body.get_mut(Self::DATA..Self::DATA + len as usize);
        if sensible && hit { Some((offset, data?)) } else { None }
    }
}
