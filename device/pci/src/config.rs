//! One function's configuration space: bytes, and which bits of them the guest may write.
//!
//! BAR sizing needs no code of its own: the address bits below a BAR's size are not writable, so
//! a guest that writes all ones reads the size back (PCI Local Bus 3.0, 6.2.5.1).

use std::ops::Range;

use crate::description::{Bar, BarKind, Description, DescriptionError, Identity};
use crate::spec::{self, bar, capability, command, express, msix, status};

/// A type 0 configuration space.
pub(crate) struct ConfigSpace {
    bytes: Box<[u8; spec::CONFIG_SIZE]>,
    writable: Box<[u8; spec::CONFIG_SIZE]>,
    /// Bodies of the description's capabilities, in its order.
    capabilities: Vec<Range<usize>>,
    /// The body of the MSI-X capability.
    msix: Option<Range<usize>>,
    /// While laying out: the last link of the list, and where the next capability goes.
    link: usize,
    free: usize,
}

impl ConfigSpace {
    /// Lays out header and capabilities. `is_endpoint` adds the PCI Express capability.
    pub fn new(description: &Description, is_endpoint: bool) -> Result<Self, DescriptionError> {
        description.check()?;
        let mut space = Self {
            bytes: Box::new([0; spec::CONFIG_SIZE]),
            writable: Box::new([0; spec::CONFIG_SIZE]),
            capabilities: Vec::new(),
            msix: None,
            link: spec::CAPABILITIES,
            free: spec::FIRST_CAPABILITY,
        };
        space.lay_out_header(&description.identity);
        for bar in &description.bars {
            space.lay_out_bar(bar);
        }
        if let Some(interrupts) = &description.interrupts {
            space.bytes[spec::INTERRUPT_PIN] = 1; // INTA
            space.writable[spec::INTERRUPT_LINE] = 0xff;
            if let Some(layout) = description.msix {
                let mut body = [0; msix::BODY_LEN];
                let control = interrupts.vectors().saturating_sub(1);
                let bir = u32::from(layout.bar);
                body[msix::CONTROL..][..2].copy_from_slice(&control.to_le_bytes());
                body[msix::TABLE..][..4]
                    .copy_from_slice(&(layout.table_offset | bir).to_le_bytes());
                body[msix::PBA..][..4].copy_from_slice(&(layout.pba_offset | bir).to_le_bytes());
                let writable = (msix::ENABLE | msix::FUNCTION_MASK).to_le_bytes();
                space.msix = Some(space.add_capability(capability::MSIX, &body, &writable)?);
            }
        }
        if is_endpoint {
            space.add_express()?;
        }
        for c in &description.capabilities {
            let body = space.add_capability(c.id, &c.body, &c.writable)?;
            space.capabilities.push(body);
        }
        Ok(space)
    }

    fn lay_out_header(&mut self, id: &Identity) {
        self.set_u16(spec::VENDOR_ID, id.vendor_id);
        self.set_u16(spec::DEVICE_ID, id.device_id);
        self.bytes[spec::REVISION_ID] = id.revision;
        self.bytes[spec::CLASS_CODE] = id.class.interface;
        self.bytes[spec::CLASS_CODE + 1] = id.class.sub;
        self.bytes[spec::CLASS_CODE + 2] = id.class.base;
        self.set_u16(spec::SUBSYSTEM_VENDOR_ID, id.subsystem_vendor_id);
        self.set_u16(spec::SUBSYSTEM_ID, id.subsystem_id);
        self.writable[spec::COMMAND..][..2].copy_from_slice(&command::WRITABLE.to_le_bytes());
        // Read-write without effect on a PCI Express function (7.5.1.1.7).
        self.writable[spec::CACHE_LINE_SIZE] = 0xff;
    }

    fn lay_out_bar(&mut self, bar: &Bar) {
        let at = spec::BAR0 + 4 * usize::from(bar.index);
        let address_bits = !(bar.size - 1);
        let (flags, width) = match bar.kind {
            BarKind::Io => (bar::IO, 4),
            BarKind::Memory32 => (0, 4),
            BarKind::Memory64 { prefetchable: false } => (bar::MEMORY_64, 8),
            BarKind::Memory64 { prefetchable: true } => (bar::MEMORY_64 | bar::PREFETCHABLE, 8),
        };
        self.bytes[at..][..4].copy_from_slice(&flags.to_le_bytes());
        self.writable[at..][..width].copy_from_slice(&address_bits.to_le_bytes()[..width]);
    }

    fn add_express(&mut self) -> Result<(), DescriptionError> {
        let mut body = [0; express::BODY_LEN];
        let mut writable = [0; express::BODY_LEN];
        body[..2].copy_from_slice(&express::FLAGS.to_le_bytes());
        body[express::DEVICE_CAPABILITIES..][..4]
            .copy_from_slice(&express::ROLE_BASED_ERRORS.to_le_bytes());
        writable[express::DEVICE_CONTROL..][..2]
            .copy_from_slice(&express::DEVICE_CONTROL_WRITABLE.to_le_bytes());
        self.add_capability(capability::EXPRESS, &body, &writable).map(drop)
    }

    /// Appends a capability to the list and returns where its body lies.
    fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<Range<usize>, DescriptionError> {
        let at = self.free;
        let range = at + 2..at + 2 + body.len();
        if range.end > spec::COMPATIBLE_SIZE || writable.len() > body.len() {
            return Err(DescriptionError::CapabilitySpace);
        }
        self.bytes[self.link] = at as u8; // below COMPATIBLE_SIZE
        self.bytes[at] = id;
        (self.link, self.free) = (at + 1, range.end.next_multiple_of(4));
        self.bytes[range.clone()].copy_from_slice(body);
        self.writable[range.start..][..writable.len()].copy_from_slice(writable);
        let status = self.u16(spec::STATUS) | status::CAPABILITIES_LIST;
        self.set_u16(spec::STATUS, status);
        Ok(range)
    }

    /// Fills `data` from `offset`; beyond the end it reads as ones.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    /// Writes the writable bits of `data` at `offset`.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, &value) in (offset..).zip(data) {
            if let (Some(byte), Some(&mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = *byte & !mask | value & mask;
            }
        }
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8; spec::CONFIG_SIZE] {
        &self.bytes
    }

    /// Whether the registers by which software knows a device are those of this one.
    pub fn is_same_device(&self, bytes: &[u8; spec::CONFIG_SIZE]) -> bool {
        let same = |at: usize, len: usize| bytes[at..at + len] == self.bytes[at..at + len];
        same(spec::VENDOR_ID, 4) && same(spec::REVISION_ID, 4) && same(spec::SUBSYSTEM_VENDOR_ID, 4)
    }

    /// All registers, to be put back by [`ConfigSpace::restore`].
    pub fn snapshot(&self) -> Box<[u8; spec::CONFIG_SIZE]> {
        self.bytes.clone()
    }

    /// Puts registers back.
    pub fn restore(&mut self, bytes: &[u8; spec::CONFIG_SIZE]) {
        *self.bytes = *bytes;
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        self.u16(spec::COMMAND)
    }

    /// Sets the command register.
    pub fn set_command(&mut self, value: u16) {
        self.set_u16(spec::COMMAND, value & command::WRITABLE);
    }

    /// Shows the level of INTx in the status register.
    pub fn set_interrupt_status(&mut self, pending: bool) {
        let others = self.u16(spec::STATUS) & !status::INTERRUPT;
        self.set_u16(spec::STATUS, others | if pending { status::INTERRUPT } else { 0 });
    }

    /// Sets the Interrupt Line register, which only carries a number from firmware to the guest.
    pub fn set_interrupt_line(&mut self, line: u8) {
        self.bytes[spec::INTERRUPT_LINE] = line;
    }

    /// Enable and function mask of MSI-X.
    pub fn msix_control(&self) -> Option<(bool, bool)> {
        let control = self.u16(self.msix.as_ref()?.start + msix::CONTROL);
        Some((control & msix::ENABLE != 0, control & msix::FUNCTION_MASK != 0))
    }

    /// Whether an access hits the MSI-X capability.
    pub fn hits_msix(&self, access: &Range<usize>) -> bool {
        self.msix.as_ref().is_some_and(|body| overlap(body, access).is_some())
    }

    /// The capability of the description that an access hits: its index, and which bytes of its
    /// body are touched.
    pub fn hit_capability(&self, access: &Range<usize>) -> Option<(usize, Range<usize>)> {
        self.capabilities.iter().enumerate().find_map(|(index, body)| {
            let hit = overlap(body, access)?;
            Some((index, hit.start - body.start..hit.end - body.start))
        })
    }

    /// The body of the `index`th capability.
    pub fn capability_mut(&mut self, index: usize) -> &mut [u8] {
        match self.capabilities.get(index) {
            Some(body) => &mut self.bytes[body.clone()],
            None => &mut [],
        }
    }

    /// Where a BAR decodes now: nothing while its kind is disabled in the command register or its
    /// address is zero, which is how an unassigned BAR reads.
    pub fn bar_range(&self, bar: &Bar) -> Option<std::ops::RangeInclusive<u64>> {
        let at = spec::BAR0 + 4 * usize::from(bar.index);
        let low = u64::from(self.u32(at));
        let (enable, address) = match bar.kind {
            BarKind::Io => (command::IO_SPACE, low & !bar::IO_FLAGS),
            BarKind::Memory32 => (command::MEMORY_SPACE, low & !bar::MEMORY_FLAGS),
            BarKind::Memory64 { .. } => {
                let high = u64::from(self.u32(at + 4));
                (command::MEMORY_SPACE, high << 32 | low & !bar::MEMORY_FLAGS)
            }
        };
        let enabled = self.command() & enable != 0 && address != 0;
        // The address is a multiple of the size, so the end does not wrap.
        enabled.then(|| address..=address | (bar.size - 1))
    }

    /// Assigns an address, which is a multiple of the BAR's size.
    pub fn assign_bar(&mut self, bar: &Bar, address: u64) {
        let at = spec::BAR0 + 4 * usize::from(bar.index);
        let width = 4 * usize::from(bar.kind.registers());
        self.write(at, &address.to_le_bytes()[..width]);
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    fn set_u16(&mut self, at: usize, value: u16) {
        self.bytes[at..][..2].copy_from_slice(&value.to_le_bytes());
    }
}

/// The bytes that two ranges share.
pub(crate) fn overlap(a: &Range<usize>, b: &Range<usize>) -> Option<Range<usize>> {
    let shared = a.start.max(b.start)..a.end.min(b.end);
    (!shared.is_empty()).then_some(shared)
}
