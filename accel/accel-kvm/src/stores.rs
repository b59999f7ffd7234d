//! Which pages of RAM the processors store to, as KVM notes it: in rings, one for each processor,
//! else in a bitmap for each region of RAM (Documentation/virt/kvm/api.rst, 4.8, 4.117, 8.29).
//!
//! Rings say in so many words what was stored to, so that looking takes as long as there are such
//! pages, not as long as there is memory. When one is full, its processor leaves the guest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use accel::{Fault, StoredPages};
use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{VcpuFd, VmFd};
use mem::vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use mem::{GuestAddress, GuestMemory};

use crate::host::{Host, failed};
use crate::ring::{self, DirtyRing};
use crate::sys;

/// Entries of a ring. KVM keeps some 600 of them in reserve (a processor of Intel's notes 512 pages
/// before KVM looks); these take 32 KiB.
const RING_ENTRIES: u32 = 2048;
/// Pages that are protected anew in one call, for which processors may have to wait. A multiple of 64.
const CHUNK: u64 = 64 << 10;

/// A machine's RAM as KVM has it, and the log of stores to it.
pub struct StoreLog {
    vm: Arc<VmFd>,
    memory: GuestMemory,
    way: Way,
    /// One for each processor, if that is the way.
    rings: Mutex<Vec<DirtyRing>>,
    /// While stores are noted: those that have been taken from rings, and those of this program.
    noted: Mutex<Option<Vec<StoredPages>>>,
    /// Stores are noted.
    is_on: AtomicBool,
}

/// How KVM notes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Rings,
    /// A bitmap that is fetched first and cleared then, part by part.
    BitmapInParts,
    /// A bitmap that is fetched and cleared at once.
    Bitmap,
}

impl StoreLog {
    /// Gives KVM the guest's RAM, and chooses the way to log stores. The machine has no processors
    /// yet.
    pub fn new(host: &Host, vm: Arc<VmFd>, memory: GuestMemory) -> Result<Self, Fault> {
        let way = choose(host, &vm);
        let log = Self {
            vm,
            memory,
            way,
            rings: Mutex::default(),
            noted: Mutex::default(),
            is_on: AtomicBool::new(false),
        };
        log.map_memory(0)?;
        Ok(log)
    }

    /// The RAM.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Takes note of a new processor.
    pub fn add_processor(&self, vcpu: &VcpuFd) -> Result<(), Fault> {
        if self.way == Way::Rings {
            let ring = DirtyRing::map(vcpu, RING_ENTRIES)
                .map_err(|e| failed("KVM does not share its notes of stores", e))?;
            lock(&self.rings).push(ring);
        }
        Ok(())
    }

    /// Begins or ends to note stores.
    pub fn switch(&self, on: bool) -> Result<(), Fault> {
        let mut noted = lock(&self.noted);
        *noted = None;
        self.is_on.store(false, Ordering::Relaxed);
        self.map_memory(0)?;
        self.empty_rings(None)?;
        if on {
            self.map_memory(KVM_MEM_LOG_DIRTY_PAGES)?;
            *noted = Some(self.nothing());
            self.is_on.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// What was stored to since this was asked last.
    pub fn take(&self) -> Result<Vec<StoredPages>, Fault> {
        let mut noted = lock(&self.noted);
        let Some(pages) = &mut *noted else {
            return Err(Fault::Unsupported("it is not noted which pages are stored to".to_owned()));
        };
        if self.way == Way::Rings {
            self.empty_rings(Some(pages))?;
        } else {
            for ((slot, region), pages) in (0..).zip(self.memory.iter()).zip(pages.iter_mut()) {
                let words = self.take_bitmap(slot, region)?;
                pages.pages.iter_mut().zip(words).for_each(|(noted, word)| *noted |= word);
            }
        }
        Ok(std::mem::replace(pages, self.nothing()))
    }

    /// A processor's store that this program did in KVM's stead, to the page at `address`.
    pub fn note(&self, address: u64) {
        if !self.is_on.load(Ordering::Relaxed) {
            return;
        }
        let mut noted = lock(&self.noted);
        for (region, pages) in self.memory.iter().zip(noted.iter_mut().flatten()) {
            if let Some(at) = region.to_region_addr(GuestAddress(address)) {
                pages.add(at.0 >> 12);
            }
        }
    }

    /// A processor's ring is full.
    pub fn make_room(&self) -> Result<(), Fault> {
        let mut noted = lock(&self.noted);
        self.empty_rings(noted.as_mut())
    }

    fn take_bitmap(&self, slot: u32, region: &impl GuestMemoryRegion) -> Result<Vec<u64>, Fault> {
        let len = usize::try_from(region.len()).unwrap_or(usize::MAX);
        let cannot = |e| failed("KVM does not say what was stored to", e);
        let pages = self.vm.get_dirty_log(slot, len).map_err(cannot)?;
        if self.way == Way::BitmapInParts {
            let count = region.len() >> 12;
            for (index, words) in pages.chunks(CHUNK as usize / 64).enumerate() {
                if words.iter().any(|&word| word != 0) {
                    let first = index as u64 * CHUNK;
                    let pages = CHUNK.min(count - first) as u32;
                    sys::clear_dirty_log(&self.vm, slot, first, pages, words).map_err(cannot)?;
                }
            }
        }
        Ok(pages)
    }

    /// Takes what is in the rings, adds it to `pages`, and has KVM note those pages anew.
    fn empty_rings(&self, mut pages: Option<&mut Vec<StoredPages>>) -> Result<(), Fault> {
        let mut rings = lock(&self.rings);
        let mut count = 0;
        for ring in rings.iter_mut() {
            while let Some((slot, page)) = ring.take() {
                count += 1;
                // The upper half is an address space: system management mode has its own.
                let slot = (slot & 0xffff) as usize;
                if let Some(region) = pages.as_mut().and_then(|pages| pages.get_mut(slot)) {
                    region.add(page);
                }
            }
        }
        if count > 0 {
            sys::reset_dirty_rings(&self.vm)
                .map_err(|e| failed("KVM does not take its notes of stores back", e))?;
        }
        Ok(())
    }

    /// No pages of all regions.
    fn nothing(&self) -> Vec<StoredPages> {
        let regions = self.memory.iter();
        regions.map(|r| StoredPages::none(r.start_addr().raw_value(), r.len())).collect()
    }

    /// Gives KVM the guest's RAM, or changes the flags with which it has it.
    fn map_memory(&self, flags: u32) -> Result<(), Fault> {
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped as long as `self`, which lives as long as the processors;
            // without one of them KVM uses no memory. Everything in this program treats it as
            // memory that others change at any time.
            unsafe { self.vm.set_user_memory_region(slot) }
                .map_err(|e| failed("KVM refuses the guest's memory", e))?;
        }
        Ok(())
    }
}

/// Chooses the best way that this KVM has. A machine must do so before its first processor.
fn choose(host: &Host, vm: &VmFd) -> Way {
    let enable = |cap, value| {
        let mut enable = kvm_enable_cap { cap, ..Default::default() };
        enable.args[0] = value;
        host.has(cap) && vm.enable_cap(&enable).is_ok()
    };
    let bytes = RING_ENTRIES * ring::ENTRY;
    for ring in [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING] {
        if host.capability(ring) >= bytes && enable(ring, bytes.into()) {
            return Way::Rings;
        }
    }
    let in_parts = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
    if host.capability(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) & in_parts != 0
        && enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, in_parts.into())
    {
        return Way::BitmapInParts;
    }
    Way::Bitmap
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
