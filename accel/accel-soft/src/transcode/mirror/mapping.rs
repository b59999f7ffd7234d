//! Mappings of guest RAM at the guest's linear addresses, under a protection key of their own.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::super::context::{Context, ContextCell, HIDDEN, STACK, WRITABLE};
use super::super::entry;
use super::pieces::{Pieces, map_at, stack_start};

/// Since this version Linux delivers signals to threads whose own stack is under a locked key.
const LINUX: (u32, u32) = (6, 12);

/// Whether this host's processor and kernel can do it.
pub fn is_possible() -> bool {
    static IS_POSSIBLE: OnceLock<bool> = OnceLock::new();
    *IS_POSSIBLE.get_or_init(|| {
        // CPUID leaf 7: ECX bit 4 is OSPKE. The subleaf exists on every processor with AVX2's leaf.
        let has_keys = std::arch::x86_64::__cpuid(0).eax >= 7
            && std::arch::x86_64::__cpuid_count(7, 0).ecx & 1 << 4 != 0;
        has_keys
            && linux_version().is_some_and(|version| version >= LINUX)
            && stack_start().is_some()
    })
}

fn linux_version() -> Option<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

/// Only one mirror of a process can have all of the low addresses: programs, not mirrors, choose them.
static IS_TAKEN: Mutex<bool> = Mutex::new(false);

/// The mappings of one mirror, and the second place of its context.
pub struct Mapping {
    context: Arc<ContextCell>,
    /// Where the context is seen by code for mirrored memory.
    alias: u64,
    key: Key,
    pieces: Pieces,
    /// At most so many mappings of the process are there because of this mirror.
    mappings: usize,
}

/// The host allows a process 65,530 mappings, if nobody changed that (vm.max_map_count), and the VMM has
/// some hundred without a mirror.
const MAX_MAPPINGS: usize = 56_000;
/// How many are added where a part of one becomes something else, and where a piece is taken.
const CHANGE: usize = 2;
const PIECE: usize = 1;

// SAFETY: the addresses belong to mappings that this value owns; they are not bound to a thread.
unsafe impl Send for Mapping {}

/// A protection key.
struct Key(i32);

impl Key {
    fn new() -> io::Result<Self> {
        // SAFETY: the call touches no memory.
        let key = unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, 0) };
        if key < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(key as i32)) }
    }

    /// PKRU with all keys locked but this.
    fn alone(&self) -> u32 {
        !(3 << (2 * self.0))
    }

    /// Puts mapped pages under the key.
    fn put(&self, at: u64, len: usize, protection: i32) -> io::Result<()> {
        // SAFETY: the caller's own mapping; what it allows to whom does not matter to Rust code, which
        // has no reference into it.
        let result = unsafe { libc::syscall(libc::SYS_pkey_mprotect, at, len, protection, self.0) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // SAFETY: the call touches no memory; no page is under the key any more.
        unsafe { libc::syscall(libc::SYS_pkey_free, self.0) };
    }
}

const READ: i32 = libc::PROT_READ;
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

impl Mapping {
    /// For the processor whose context this is. Its thread alone uses it.
    pub fn new(context: Arc<ContextCell>) -> io::Result<Self> {
        let taken = || IS_TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *taken(), true) {
            return Err(io::Error::other("the process has another mirror"));
        }
        let made = Self::make(context);
        if made.is_err() {
            *taken() = false;
        }
        made
    }

    fn make(context: Arc<ContextCell>) -> io::Result<Self> {
        let key = Key::new()?;
        let size = size_of::<Context>();
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no other memory.
        let alias = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(std::ptr::null_mut(), size, libc::PROT_NONE, flags, -1, 0)
        };
        if alias == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let alias = alias as u64;
        let file = context.file().as_raw_fd();
        let mapping = Self { context, alias, key, pieces: Pieces::new(), mappings: 0 };
        for (part, protection) in [(HIDDEN..WRITABLE, READ_WRITE), (WRITABLE..size, READ)] {
            let (at, len) = (alias + part.start as u64, part.len());
            let file = Some((file, part.start as u64));
            if !map_at(at, len, protection, libc::MAP_FIXED, file) {
                return Err(io::Error::last_os_error());
            }
            mapping.key.put(at, len, protection)?;
        }
        // SAFETY: the context belongs to the processor that this is made for, which does not run.
        let context = unsafe { &mut *mapping.context.get() };
        context.mirrored_sp = alias + STACK as u64;
        // It was that of no place yet.
        context.poll.store(0, Ordering::SeqCst);
        context.mirrored_pkru = mapping.key.alone();
        context.leave_mirrored = entry::leave_mirrored as *const () as u64;
        Ok(mapping)
    }

    /// The context.
    pub fn context(&self) -> *mut Context {
        self.context.get()
    }

    /// Whether a piece may be taken, and so many [`map`](Self::map)s and [`unmap`](Self::unmap)s done, with
    /// `pages` mapped now; if not, it is time to [`clear`](Self::clear): the host might refuse.
    pub fn has_room(&mut self, changes: usize, pages: usize) -> bool {
        let wanted = changes.saturating_mul(CHANGE).saturating_add(PIECE);
        if self.mappings.saturating_add(wanted) > MAX_MAPPINGS {
            // Many a change undid what another did. Now there is a mapping for each page at most, and
            // what is between them.
            self.mappings = self.mappings.min(2 * pages + self.pieces.len());
        }
        self.mappings.saturating_add(wanted) <= MAX_MAPPINGS
    }

    /// Maps `len` bytes of `file` from `offset` on at `linear`, where all is reserved. `false` if the
    /// host refuses.
    pub fn map(
        &mut self,
        linear: u64,
        len: usize,
        writable: bool,
        file: RawFd,
        offset: u64,
    ) -> bool {
        self.mappings += CHANGE;
        let protection = if writable { READ_WRITE } else { READ };
        let flags = libc::MAP_FIXED;
        let done = map_at(linear, len, protection, flags, Some((file, offset)))
            && self.key.put(linear, len, protection).is_ok();
        if !done {
            self.hide(linear, len);
        }
        done
    }

    /// Takes `len` bytes of pages from `linear` on away again.
    pub fn unmap(&mut self, linear: u64, len: usize) {
        self.mappings += CHANGE;
        self.hide(linear, len);
    }

    /// Takes all pages away.
    pub fn clear(&mut self) {
        self.mappings = 0;
        self.pieces.clear();
    }

    /// Lets nothing be seen in a part of a piece. Without that, a program would see what it must not: the
    /// process ends instead.
    fn hide(&self, linear: u64, len: usize) {
        if !map_at(linear, len, libc::PROT_NONE, libc::MAP_FIXED, None) {
            // SAFETY: whole pages of a piece of this value's, without references into them.
            let result = unsafe { libc::munmap(linear as *mut libc::c_void, len) };
            assert!(result == 0, "a page of a mirror cannot be taken away");
        }
    }

    /// See [`Pieces::reserve`].
    pub fn reserve(&mut self, linear: u64) -> Option<Range<u64>> {
        self.mappings += PIECE;
        self.pieces.reserve(linear)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.clear();
        // SAFETY: made by `make`; the processor that used it is gone.
        unsafe { libc::munmap(self.alias as *mut libc::c_void, size_of::<Context>()) };
        *IS_TAKEN.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }
}
