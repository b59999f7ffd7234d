//! The ring in which KVM notes what a processor stores to (Documentation/virt/kvm/api.rst, 8.29).

use std::os::fd::AsRawFd;
use std::ptr::{NonNull, addr_of, addr_of_mut};
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn};
use kvm_ioctls::{Error, VcpuFd};

/// Of an entry's flags: KVM has filled it; it was read, and KVM may have it back.
const DIRTY: u32 = 1;
const RESET: u32 = 2;

/// Bytes of an entry.
pub const ENTRY: u32 = size_of::<kvm_dirty_gfn>() as u32;

/// A processor's ring, shared with KVM.
pub struct DirtyRing {
    entries: NonNull<kvm_dirty_gfn>,
    /// How many; a power of two.
    len: u32,
    next: u32,
}

// SAFETY: the mapping belongs to this structure alone, whichever thread has it.
unsafe impl Send for DirtyRing {}

impl DirtyRing {
    /// Maps the ring of a processor whose machine has rings of `len` entries.
    pub fn map(vcpu: &VcpuFd, len: u32) -> Result<Self, Error> {
        let bytes = len as usize * ENTRY as usize;
        // SAFETY: a new mapping, wherever there is room; KVM checks that the ring is that long.
        let place = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                libc::off_t::from(KVM_DIRTY_LOG_PAGE_OFFSET) * 4096,
            )
        };
        if place == libc::MAP_FAILED {
            return Err(Error::last());
        }
        let entries = NonNull::new(place.cast()).ok_or(Error::new(libc::ENOMEM))?;
        Ok(Self { entries, len, next: 0 })
    }

    /// Takes the next entry: a memory slot, and the index of a page in it.
    pub fn take(&mut self) -> Option<(u32, u64)> {
        let index = (self.next % self.len) as usize;
        // SAFETY: the index is within the mapping, which is there as long as `self`. KVM changes an
        // entry only while its flags do not say that it is filled.
        unsafe {
            let entry = self.entries.as_ptr().add(index);
            let flags = AtomicU32::from_ptr(addr_of_mut!((*entry).flags));
            if flags.load(Ordering::Acquire) & (DIRTY | RESET) != DIRTY {
                return None;
            }
            let slot = addr_of!((*entry).slot).read_volatile();
            let page = addr_of!((*entry).offset).read_volatile();
            flags.store(RESET, Ordering::Release);
            self.next = self.next.wrapping_add(1);
            Some((slot, page))
        }
    }
}

impl Drop for DirtyRing {
    fn drop(&mut self) {
        let bytes = self.len as usize * ENTRY as usize;
        // SAFETY: the mapping was made with this length, and nobody else uses it.
        unsafe { libc::munmap(self.entries.as_ptr().cast(), bytes) };
    }
}
