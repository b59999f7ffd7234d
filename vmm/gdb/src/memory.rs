//! Guest memory as a debugger sees it: by linear address, and without the breakpoints in it.

use std::collections::BTreeMap;

use accel::CpuState;
use mem::vm_memory::{Bytes, GuestMemoryBackend};
use mem::{GuestAddress, GuestMemory};
use x86::{Physical, probe};

/// The one byte of INT3.
const INT3: u8 = 0xcc;

/// Guest memory, with the breakpoints that were put into it.
pub struct Memory {
    ram: GuestMemory,
    /// By guest physical address.
    breakpoints: BTreeMap<u64, Breakpoint>,
}

/// An INT3 in the guest's code.
struct Breakpoint {
    /// The byte that was there.
    original: u8,
    /// Where the debugger put it.
    linear: u64,
}

struct Ram<'a>(&'a GuestMemory);

impl Physical for Ram<'_> {
    fn read(&self, gpa: u64, data: &mut [u8]) -> bool {
        self.0.read_slice(data, GuestAddress(gpa)).is_ok()
    }
}

impl Memory {
    pub fn new(ram: GuestMemory) -> Self {
        Self { ram, breakpoints: BTreeMap::new() }
    }

    /// Reads from `linear` on, as far as there is RAM; says how far.
    pub fn read(&self, state: &CpuState, linear: u64, data: &mut [u8]) -> usize {
        let mut done = 0;
        for (offset, len) in pages(linear, data.len()) {
            let Some(gpa) = self.place(state, linear.wrapping_add(offset as u64)) else { break };
            let chunk = &mut data[offset..offset + len];
            if self.ram.read_slice(chunk, GuestAddress(gpa)).is_err() {
                break;
            }
            for (at, breakpoint) in self.breakpoints.range(gpa..gpa + len as u64) {
                let byte = &mut chunk[(at - gpa) as usize];
                // Unless the guest changed it meanwhile.
                if *byte == INT3 {
                    *byte = breakpoint.original;
                }
            }
            done += len;
        }
        done
    }

    /// Writes all of `data`, or nothing if some of it has no RAM.
    pub fn write(&mut self, state: &CpuState, linear: u64, data: &[u8]) -> Option<()> {
        let chunks: Vec<_> = pages(linear, data.len()).collect();
        let place = |&(offset, len): &(usize, usize)| {
            let gpa = self.place(state, linear.wrapping_add(offset as u64))?;
            self.ram.check_range(GuestAddress(gpa), len).then_some(gpa)
        };
        let places = chunks.iter().map(place).collect::<Option<Vec<_>>>()?;
        for ((offset, len), gpa) in chunks.into_iter().zip(places) {
            let mut chunk = data[offset..offset + len].to_vec();
            for (at, breakpoint) in self.breakpoints.range_mut(gpa..gpa + len as u64) {
                breakpoint.original = std::mem::replace(&mut chunk[(at - gpa) as usize], INT3);
            }
            self.ram.write_slice(&chunk, GuestAddress(gpa)).ok()?;
        }
        Some(())
    }

    /// Puts a breakpoint at `linear`. `None` if there is no RAM.
    pub fn add_breakpoint(&mut self, state: &CpuState, linear: u64) -> Option<()> {
        let gpa = self.place(state, linear)?;
        if self.breakpoints.contains_key(&gpa) {
            return Some(());
        }
        let original = self.ram.read_obj(GuestAddress(gpa)).ok()?;
        self.ram.write_obj(INT3, GuestAddress(gpa)).ok()?;
        self.breakpoints.insert(gpa, Breakpoint { original, linear });
        Some(())
    }

    /// Takes the breakpoints away that were put at `linear`, whatever it leads to now.
    pub fn remove_breakpoint(&mut self, linear: u64) {
        let (gone, kept) = std::mem::take(&mut self.breakpoints)
            .into_iter()
            .partition(|(_, breakpoint)| breakpoint.linear == linear);
        self.breakpoints = kept;
        self.restore(gone);
    }

    /// Takes all breakpoints away.
    pub fn remove_breakpoints(&mut self) {
        let gone = std::mem::take(&mut self.breakpoints);
        self.restore(gone);
    }

    /// There are breakpoints.
    pub fn has_breakpoints(&self) -> bool {
        !self.breakpoints.is_empty()
    }

    /// Whether the INT3 at the instruction pointer is a breakpoint, and not the guest's own.
    pub fn is_at_breakpoint(&self, state: &CpuState) -> bool {
        let linear = if state.is_64bit() {
            state.rip
        } else {
            state.segment(x86::state::SegReg::Cs).base.wrapping_add(state.rip) & 0xffff_ffff
        };
        self.place(state, linear).is_some_and(|gpa| self.breakpoints.contains_key(&gpa))
    }

    fn restore(&self, breakpoints: BTreeMap<u64, Breakpoint>) {
        for (gpa, Breakpoint { original, .. }) in breakpoints {
            let at = GuestAddress(gpa);
            // What the guest wrote there since stays.
            if self.ram.read_obj::<u8>(at).is_ok_and(|byte| byte == INT3) {
                // What was read can be written.
                let _ = self.ram.write_obj(original, at);
            }
        }
    }

    fn place(&self, state: &CpuState, linear: u64) -> Option<u64> {
        probe(&Ram(&self.ram), state, linear)
    }
}

/// The parts of `len` bytes at `linear` that lie in one page each: offset and length.
fn pages(linear: u64, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut offset = 0;
    std::iter::from_fn(move || {
        let room = 0x1000 - (linear.wrapping_add(offset as u64) & 0xfff) as usize;
        let part = (offset, room.min(len - offset));
        offset += part.1;
        (part.1 != 0).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mem::RamRange;
    use x86::state::{Cr0, Cr4, Efer};

    const LINEAR: u64 = 0xffff_8000_0000_0000;

    /// Two pages at `LINEAR`, the second of which lies before the first in memory, and a third
    /// that leads out of it.
    fn guest() -> (GuestMemory, CpuState) {
        let ram = mem::allocate(&[RamRange { start: 0, len: 0x10000 }]).unwrap();
        let entry = |at: u64, value: u64| ram.write_obj(value, GuestAddress(at)).unwrap();
        entry(0x1800, 0x2003);
        entry(0x2000, 0x3003);
        entry(0x3000, 0x4003);
        entry(0x4000, 0x9003);
        entry(0x4008, 0x8003);
        entry(0x4010, 0x80_0003);
        let mut state = CpuState::reset(0);
        state.cr0 |= Cr0::PE | Cr0::PG;
        state.cr4 |= Cr4::PAE;
        state.efer |= Efer::LME | Efer::LMA;
        state.cr3 = 0x1000;
        (ram, state)
    }

    #[test]
    fn memory_is_read_and_written_by_linear_address() {
        let (ram, state) = guest();
        let mut memory = Memory::new(ram.clone());
        memory.write(&state, LINEAR + 0xffe, &[1, 2, 3, 4]).unwrap();
        assert_eq!(ram.read_obj::<u16>(GuestAddress(0x9ffe)).unwrap(), 0x0201);
        assert_eq!(ram.read_obj::<u16>(GuestAddress(0x8000)).unwrap(), 0x0403);
        let mut data = [0; 4];
        assert_eq!(memory.read(&state, LINEAR + 0xffe, &mut data), 4);
        assert_eq!(data, [1, 2, 3, 4]);
        // What there is not.
        assert_eq!(memory.read(&state, LINEAR + 0x1ffe, &mut data), 2);
        assert_eq!(memory.read(&state, LINEAR + 0x3000, &mut data), 0);
        assert_eq!(memory.read(&state, 1 << 50, &mut data), 0);
        assert_eq!(memory.write(&state, LINEAR + 0x1ffe, &[9; 4]), None);
        assert_eq!(ram.read_obj::<u16>(GuestAddress(0x8ffe)).unwrap(), 0);
    }

    #[test]
    fn breakpoints_are_in_memory_and_not_seen() {
        let (ram, mut state) = guest();
        let byte = || ram.read_obj::<u8>(GuestAddress(0x9010)).unwrap();
        let mut memory = Memory::new(ram.clone());
        memory.write(&state, LINEAR + 0x10, &[0x90]).unwrap();
        memory.add_breakpoint(&state, LINEAR + 0x10).unwrap();
        memory.add_breakpoint(&state, LINEAR + 0x10).unwrap();
        assert_eq!(byte(), INT3);
        state.seg[1].attributes = x86::state::SegmentAttributes::CODE64;
        state.rip = LINEAR + 0x10;
        assert!(memory.is_at_breakpoint(&state));
        let mut data = [0; 3];
        assert_eq!(memory.read(&state, LINEAR + 0xf, &mut data), 3);
        assert_eq!(data, [0, 0x90, 0]);
        memory.write(&state, LINEAR + 0xf, &[1, 2, 3]).unwrap();
        assert_eq!(byte(), INT3);
        memory.read(&state, LINEAR + 0xf, &mut data);
        assert_eq!(data, [1, 2, 3]);
        memory.remove_breakpoint(LINEAR + 0x10);
        assert_eq!(byte(), 2);
        assert!(!memory.is_at_breakpoint(&state) && !memory.has_breakpoints());
        assert_eq!(memory.add_breakpoint(&state, LINEAR + 0x2000), None);
    }

    #[test]
    fn what_the_guest_put_in_place_of_a_breakpoint_stays() {
        let (ram, state) = guest();
        let mut memory = Memory::new(ram.clone());
        memory.add_breakpoint(&state, LINEAR).unwrap();
        ram.write_obj(7u8, GuestAddress(0x9000)).unwrap();
        let mut data = [0];
        memory.read(&state, LINEAR, &mut data);
        assert_eq!(data, [7]);
        memory.remove_breakpoints();
        assert_eq!(ram.read_obj::<u8>(GuestAddress(0x9000)).unwrap(), 7);
    }
}
