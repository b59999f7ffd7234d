//! Who gets which part of the guest's RAM while it is being loaded.

use std::ops::Range;

use mem::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, Source};
use crate::memory_map::{E820Kind, MemoryMap};

/// The usable RAM that nothing has been loaded to yet.
pub(super) struct Placement<'a> {
    memory: &'a GuestMemory,
    /// Free ranges, apart and sorted.
    free: Vec<Range<u64>>,
}

/// Below this lies base memory, where boot structures go: every boot protocol can point there.
const BASE_MEMORY_END: u64 = 640 << 10;
/// Real-mode vectors and the BIOS data area are left alone when a place is chosen.
const FIRST_CHOSEN: u64 = 0x1000;
/// How much is copied at once.
const CHUNK: usize = 1 << 20;

impl<'a> Placement<'a> {
    pub(super) fn new(memory: &'a GuestMemory, map: &MemoryMap) -> Self {
        let free = map
            .e820()
            .into_iter()
            .filter(|e| e.kind == E820Kind::Usable)
            .map(|e| e.start..e.start + e.len)
            .collect();
        Self { memory, free }
    }

    /// Takes exactly `len` bytes at `addr`. Fails where there is no RAM, and where something
    /// else has been loaded.
    pub(super) fn claim(&mut self, what: &str, addr: u64, len: u64) -> Result<(), BootError> {
        if len == 0 {
            return Ok(());
        }
        let no_room =
            || BootError::NoRoom { what: what.to_owned(), len, place: format!(" at {addr:#x}") };
        let end = addr.checked_add(len).ok_or_else(no_room)?;
        let at =
            self.free.iter().position(|r| r.start <= addr && end <= r.end).ok_or_else(no_room)?;
        let Range { start, end: old_end } = self.free[at].clone();
        let rest = [start..addr, end..old_end].into_iter().filter(|r| !r.is_empty());
        self.free.splice(at..=at, rest);
        Ok(())
    }

    /// Takes `len` bytes as low as possible at or above `min`, at a multiple of `align`.
    pub(super) fn claim_lowest(
        &mut self,
        what: &str,
        len: u64,
        align: u64,
        min: u64,
        limit: u64,
    ) -> Result<u64, BootError> {
        let addr = self.free.iter().find_map(|r| {
            let addr = r.start.max(min).checked_next_multiple_of(align)?;
            (addr.checked_add(len)? <= r.end.min(limit)).then_some(addr)
        });
        self.claim_found(what, len, addr, limit)
    }

    /// Takes `len` bytes as high as possible below `limit`, at a multiple of `align`.
    pub(super) fn claim_highest(
        &mut self,
        what: &str,
        len: u64,
        align: u64,
        limit: u64,
    ) -> Result<u64, BootError> {
        let addr = self.free.iter().rev().find_map(|r| {
            let addr = r.end.min(limit).checked_sub(len)? / align * align;
            (addr >= r.start.max(FIRST_CHOSEN)).then_some(addr)
        });
        self.claim_found(what, len, addr, limit)
    }

    fn claim_found(
        &mut self,
        what: &str,
        len: u64,
        addr: Option<u64>,
        limit: u64,
    ) -> Result<u64, BootError> {
        let addr = addr.ok_or_else(|| BootError::NoRoom {
            what: what.to_owned(),
            len,
            place: format!(" below {limit:#x}"),
        })?;
        self.claim(what, addr, len)?;
        Ok(addr)
    }

    /// Finds room in base memory for `bytes`, writes them there and returns their address.
    pub(super) fn put_low(
        &mut self,
        what: &str,
        bytes: &[u8],
        align: u64,
    ) -> Result<u64, BootError> {
        let len = bytes.len() as u64;
        let addr = self.claim_lowest(what, len, align, FIRST_CHOSEN, BASE_MEMORY_END)?;
        self.write(addr, bytes)?;
        Ok(addr)
    }

    /// Writes `bytes` to memory that has been claimed.
    pub(super) fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), BootError> {
        Ok(self.memory.write_slice(bytes, GuestAddress(addr))?)
    }

    /// Copies `len` bytes of `source` from `offset` to claimed memory at `addr`.
    pub(super) fn copy(
        &self,
        source: &Source,
        offset: u64,
        len: u64,
        addr: u64,
    ) -> Result<(), BootError> {
        if let Some(bytes) = source.in_memory() {
            let end = offset.checked_add(len).and_then(|end| usize::try_from(end).ok());
            let part = end.and_then(|end| bytes.get(offset as usize..end));
            return self.write(addr, part.ok_or_else(|| source.too_short(offset, len))?);
        }
        let mut buf = vec![0; len.min(CHUNK as u64) as usize];
        let mut done = 0;
        while done < len {
            let step = (len - done).min(CHUNK as u64) as usize;
            let chunk = &mut buf[..step];
            // `claim` has checked `addr + len`; `read_at` checks the offset.
            source.read_at(offset.saturating_add(done), chunk)?;
            self.write(addr + done, chunk)?;
            done += step as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn machine() -> (GuestMemory, MemoryMap) {
        let map = MemoryMap::new(8 << 20, 40).unwrap();
        (mem::allocate(map.ram()).unwrap(), map)
    }

    #[test]
    fn claims_do_not_overlap() {
        let (memory, map) = machine();
        let mut ram = Placement::new(&memory, &map);
        ram.claim("a", 0x10_0000, 0x1000).unwrap();
        assert!(ram.claim("b", 0x10_0fff, 1).is_err());
        ram.claim("b", 0x10_1000, 1).unwrap();
        assert!(ram.claim("c", 0x10_0000 - 1, 2).is_err());
        assert!(ram.claim("rom", 0xf_0000, 1).is_err());
        assert!(ram.claim("wrap", u64::MAX, 2).is_err());
        assert_eq!(ram.claim_highest("d", 0x1800, 0x1000, u64::MAX).unwrap(), 0x7f_e000);
        assert_eq!(ram.claim_lowest("e", 0x10, 0x10, 0x10_0000, u64::MAX).unwrap(), 0x10_1010);
    }

    proptest! {
        #[test]
        fn nothing_is_given_twice(
            claims in prop::collection::vec((0u64..0x90_0000, 0u64..0x20_0000, 0u8..3), 0..40)
        ) {
            let (memory, map) = machine();
            let mut ram = Placement::new(&memory, &map);
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for (addr, len, how) in claims {
                let got = match how {
                    0 => ram.claim("x", addr, len).map(|()| addr),
                    1 => ram.claim_lowest("x", len, 4096, addr, u64::MAX),
                    _ => ram.claim_highest("x", len, 4096, addr),
                };
                if let Ok(start) = got && len > 0 {
                    prop_assert!(taken.iter().all(|&(s, e)| start + len <= s || e <= start));
                    prop_assert!(start + len <= 8 << 20);
                    taken.push((start, start + len));
                }
            }
        }
    }
}
