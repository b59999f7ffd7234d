//! The MSI-X table and pending bits (PCI Local Bus 3.0, 6.8.2) as a pure state machine: what is
//! to be sent comes back as a message.

use irqchip::Msi;

use crate::spec::msix::{ENTRY, VECTOR_CONTROL, VECTOR_MASKED};

/// The vectors of one function.
pub(crate) struct Msix {
    table: Vec<u8>,
    pending: Vec<u64>,
    enabled: bool,
    function_mask: bool,
    /// A message is a memory write, so it needs Bus Master Enable.
    bus_master: bool,
}

impl Msix {
    /// `vectors` vectors, all masked and without address.
    pub fn new(vectors: u16) -> Self {
        let mut msix = Self {
            table: vec![0; usize::from(vectors) * ENTRY],
            pending: vec![0; usize::from(vectors).div_ceil(64)],
            enabled: false,
            function_mask: false,
            bus_master: false,
        };
        msix.reset();
        msix
    }

    pub fn reset(&mut self) {
        for entry in self.table.chunks_exact_mut(ENTRY) {
            entry.fill(0);
            entry[VECTOR_CONTROL] = VECTOR_MASKED;
        }
        self.pending.fill(0);
        (self.enabled, self.function_mask, self.bus_master) = (false, false, false);
    }

    /// The table.
    pub fn table(&self) -> &[u8] {
        &self.table
    }

    /// A bit for each vector that waits.
    pub fn pending(&self) -> &[u64] {
        &self.pending
    }

    /// Has vectors wait, as far as they exist.
    pub fn set_pending(&mut self, pending: &[u64]) {
        let vectors = self.vectors();
        for (word, (to, from)) in self.pending.iter_mut().zip(pending).enumerate() {
            let beyond = usize::from(vectors) - 64 * word;
            *to = from & if beyond < 64 { (1 << beyond) - 1 } else { u64::MAX };
        }
    }

    pub fn vectors(&self) -> u16 {
        (self.table.len() / ENTRY) as u16 // made from a u16
    }

    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// The device raises `vector`: a message to send now, or a pending bit.
    pub fn raise(&mut self, vector: u16) -> Option<Msi> {
        if !self.enabled || vector >= self.vectors() {
            return None;
        }
        let message = self.deliverable(vector);
        if message.is_none() {
            self.pending[usize::from(vector / 64)] |= 1 << (vector % 64);
        }
        message
    }

    /// The guest wrote Message Control: what became deliverable.
    pub fn set_control(&mut self, enabled: bool, function_mask: bool) -> Vec<Msi> {
        if !enabled {
            // What was raised for vectors that no longer exist is forgotten.
            self.pending.fill(0);
        }
        (self.enabled, self.function_mask) = (enabled, function_mask);
        self.take_deliverable(0..self.vectors())
    }

    /// The guest wrote Bus Master Enable: what became deliverable.
    pub fn set_bus_master(&mut self, enabled: bool) -> Vec<Msi> {
        self.bus_master = enabled;
        self.take_deliverable(0..self.vectors())
    }

    pub fn table_read(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.table.get(at).copied().unwrap_or(0);
        }
    }

    /// A write to the table: what became deliverable.
    pub fn table_write(&mut self, offset: usize, data: &[u8]) -> Vec<Msi> {
        for (at, &value) in (offset..).zip(data) {
            // Of vector control only the mask bit exists.
            let exists = match at % ENTRY {
                0 => 0xfc, // the address is that of a dword
                VECTOR_CONTROL => VECTOR_MASKED,
                at if at > VECTOR_CONTROL => 0,
                _ => 0xff,
            };
            if let Some(byte) = self.table.get_mut(at) {
                *byte = value & exists;
            }
        }
        let first = (offset / ENTRY).min(usize::from(self.vectors())) as u16;
        let end = (offset + data.len()).div_ceil(ENTRY).min(usize::from(self.vectors())) as u16;
        self.take_deliverable(first..end)
    }

    pub fn pba_read(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let bits = self.pending.get(at / 8).copied().unwrap_or(0);
            *byte = bits.to_le_bytes()[at % 8];
        }
    }

    /// The message of a vector that nothing masks.
    fn deliverable(&self, vector: u16) -> Option<Msi> {
        let entry = self.table.get(usize::from(vector) * ENTRY..)?.first_chunk::<ENTRY>()?;
        let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, control, ..] = *entry;
        let masked = control & VECTOR_MASKED != 0 || self.function_mask;
        (self.enabled && self.bus_master && !masked).then(|| Msi {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            data: u32::from_le_bytes([d0, d1, d2, d3]),
        })
    }

    /// Clears the pending bits of vectors that can be delivered now, and returns their messages.
    fn take_deliverable(&mut self, vectors: std::ops::Range<u16>) -> Vec<Msi> {
        let mut messages = Vec::new();
        if self.pending.iter().all(|&bits| bits == 0) {
            return messages;
        }
        for vector in vectors {
            let (word, bit) = (usize::from(vector / 64), 1u64 << (vector % 64));
            if self.pending[word] & bit != 0
                && let Some(message) = self.deliverable(vector)
            {
                self.pending[word] &= !bit;
                messages.push(message);
            }
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(n: u32) -> Msi {
        Msi { address: 0xfee0_1000, data: n }
    }

    fn program(msix: &mut Msix, vector: usize, n: u32, control: u32) -> Vec<Msi> {
        let mut entry = [0; ENTRY];
        entry[..8].copy_from_slice(&0xfee0_1000u64.to_le_bytes());
        entry[8..12].copy_from_slice(&n.to_le_bytes());
        entry[12..].copy_from_slice(&control.to_le_bytes());
        msix.table_write(vector * ENTRY, &entry)
    }

    fn enabled(vectors: u16) -> Msix {
        let mut msix = Msix::new(vectors);
        msix.set_bus_master(true);
        msix.set_control(true, false);
        msix
    }

    #[test]
    fn sends_unmasked_vectors_only() {
        let mut msix = enabled(2);
        program(&mut msix, 0, 7, 0);
        assert_eq!(msix.raise(0), Some(message(7)));
        assert_eq!(msix.raise(1), None); // masked since reset
        assert_eq!(msix.raise(2), None); // does not exist
        let mut pba = [0; 8];
        msix.pba_read(0, &mut pba);
        assert_eq!(pba, [2, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn what_waits_is_sent_once_when_unmasked() {
        let mut msix = enabled(70);
        program(&mut msix, 69, 9, 1);
        assert_eq!(msix.raise(69), None);
        assert_eq!(msix.raise(69), None);
        assert_eq!(msix.table_write(69 * ENTRY + VECTOR_CONTROL, &[0, 0, 0, 0]), [message(9)]);
        assert_eq!(msix.table_write(69 * ENTRY + VECTOR_CONTROL, &[0, 0, 0, 0]), []);
    }

    #[test]
    fn function_mask_and_bus_master_hold_messages_back() {
        let mut msix = enabled(1);
        program(&mut msix, 0, 3, 0);
        msix.set_control(true, true);
        assert_eq!(msix.raise(0), None);
        msix.set_bus_master(false);
        assert_eq!(msix.set_control(true, false), []);
        assert_eq!(msix.set_bus_master(true), [message(3)]);
        assert_eq!(msix.raise(0), Some(message(3)));
    }

    #[test]
    fn disabling_forgets_what_was_pending() {
        let mut msix = enabled(1);
        assert_eq!(msix.raise(0), None);
        msix.set_control(false, false);
        assert_eq!(msix.raise(0), None);
        msix.set_control(true, false);
        assert_eq!(program(&mut msix, 0, 1, 0), []);
    }

    #[test]
    fn reserved_bits_stay_zero_and_the_end_is_the_end() {
        let mut msix = enabled(1);
        assert_eq!(msix.table_write(0, &[0xff; 64]), []);
        let mut entry = [0; 20];
        msix.table_read(0, &mut entry);
        assert_eq!(entry[0], 0xfc);
        assert_eq!(entry[1..12], [0xff; 11]);
        assert_eq!(entry[12..], [1, 0, 0, 0, 0, 0, 0, 0]);
        msix.table_write(4096, &[1]);
        msix.pba_read(4096, &mut entry);
        assert_eq!(entry, [0; 20]);
    }
}
