//! What translated code works on: the guest's registers while they are not in the host's, the
//! soft TLB, the jump cache.
//!
//! The host's stack pointer points at it while translated code runs, so that all of it is reached
//! as `[rsp + offset]` and no register is spent. Processors forward stores to loads from such
//! addresses without delay, as if they were registers, which they do not for those relative to a
//! segment base.

pub mod offset;

use std::io;
use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use checker::{Field, Layout, ViewTables};
use x86::View;
use x86::state::{SegReg, VectorState};

use super::journal::{self, Journal};
use super::placed_jumps::{CodePage, CodeTlb, PLACED, PlacedJump, PlacedJumps};

use crate::host_pages;

/// Bytes below the stack pointer while translated code runs.
pub const STACK: usize = 16 << 10;
/// How many views of memory have tables of their own: [`View::User`], [`View::Supervisor`] and
/// [`View::SupervisorAc`].
pub const VIEWS: usize = 3;
/// Entries of one view's soft TLB, a power of two.
pub const TLB_ENTRIES: usize = 1024;
/// Entries of the first level of each jump cache, powers of two. It takes longer to
/// fill one of user code whose memory is mirrored.
pub const JUMP_ENTRIES: [usize; JUMP_CACHES] = {
    let mut entries = [2048; JUMP_CACHES];
    entries[MIRRORED_JUMPS] = 65536;
    entries
};
/// How many jump caches there are: one for each view, and [`MIRRORED_JUMPS`].
pub const JUMP_CACHES: usize = VIEWS + 1;
/// How many entries of [`MIRRORED_JUMPS`] are filled before all of it is emptied at once.
pub const MIRRORED_CAPACITY: usize = 4096;
/// The jump cache of user code whose memory is mirrored.
pub const MIRRORED_JUMPS: usize = VIEWS;

/// Entries of each of a view's tables that belong to no address, but to what forms it: the stack
/// pointer, or an instruction's constant address. What they are used for mostly stays in one page,
/// and where the entry is need not be computed.
pub const TLB_SLOTS: usize = 32;
/// The slot for addresses relative to RSP.
pub const STACK_SLOT: usize = 0;

/// An entry of a soft TLB. It lies in one cache line.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub struct TlbEntry {
    /// Added to a linear address, gives the offset in the page if it hits, else a number above
    /// 4095.
    pub tag: u64,
    /// The host's address of the page.
    pub host: u64,
}

/// The soft TLB of one view. A linear address belongs to entry `address >> 12 % TLB_ENTRIES`.
#[repr(C)]
pub struct TlbView {
    pub read: [TlbEntry; TLB_ENTRIES + TLB_SLOTS],
    /// For stores, apart: a copy from one array to another must not make two entries fight for
    /// one place.
    pub write: [TlbEntry; TLB_ENTRIES + TLB_SLOTS],
}

/// Entries of the second level of each view's soft TLB, powers of two. Programs use more memory
/// than kernels.
pub const SECOND_ENTRIES: [usize; VIEWS] = [1 << 16, 1 << 13, 1 << 13];

/// An entry of the second level. Its tags are linear page addresses with the number of the
/// address space ([`Context::spaces`]) in the low bits, or [`GLOBAL`](super::journal::GLOBAL).
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub struct SecondEntry {
    /// Loads hit.
    pub read: u64,
    /// Stores hit, if `epoch` is [`Context::write_epoch`].
    pub write: u64,
    /// The host's address of the page.
    pub host: u64,
    pub epoch: u64,
}

impl SecondEntry {
    /// No page has this tag: numbers of address spaces are below 4095.
    pub const EMPTY: Self = Self { read: u64::MAX, write: u64::MAX, host: 0, epoch: 0 };
    /// All bytes are zero, so that a new table takes no memory. Only page 0 has this tag, which belongs to
    /// entry 0: that one must be [`EMPTY`](Self::EMPTY).
    pub const ZERO: Self = Self { read: 0, write: 0, host: 0, epoch: 0 };

    /// A table of empty entries.
    pub fn table(entries: usize) -> Box<[Self]> {
        // SAFETY: all fields are numbers, of which zero is one.
        let mut table = unsafe { Box::<[Self]>::new_zeroed_slice(entries).assume_init() };
        table[0] = Self::EMPTY;
        table
    }

    /// Empties a table.
    pub fn clear(table: &mut [Self]) {
        table.fill(Self::ZERO);
        table[0] = Self::EMPTY;
    }
}

/// An entry of a jump cache. It lies in one cache line.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub struct JumpEntry {
    /// The guest's instruction pointer.
    pub guest: u64,
    /// The far entry of the block there.
    pub host: u64,
}

/// Where indirect and far branches of one view find translated code. Where: see
/// [`JumpView::index`].
#[repr(C)]
pub struct JumpView<const N: usize>([JumpEntry; N]);

/// What an access to mirrored memory faulted with (see [`mirror`](super::mirror)): what is needed to repeat it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MirrorFault {
    /// Where in code memory.
    pub rip: u64,
    /// The linear address, if `has_address`.
    pub linear: u64,
    pub has_address: bool,
    pub write: bool,
    /// What the context had as status flags.
    pub status: u64,
    /// Host registers that are no guest's.
    pub rax: u64,
    pub rbx: u64,
    pub rbp: u64,
    pub rflags: u64,
}

/// What follows lies in another page.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct NextPage;

/// See the module's text. Status flags are kept as LAHF and SETO leave them in AX: OF in AL,
/// the other five in AH.
///
/// User code whose memory is mirrored could reach what translated code can. So it sees the
/// context at a second place, where only the first page behind the stack is writable, which
/// holds nothing but what such a program may change anyway: its registers.
#[repr(C, align(4096))]
pub struct Context {
    /// What lies below the stack pointer: return addresses, for the few calls there are, and
    /// room for a signal's frame, should one come.
    stack: [u64; STACK / 8],
    // What code uses most comes first: small offsets make it shorter.
    /// Linear address of the page that code is executed from.
    pub code_base: u64,
    /// Status flags, in the form of AX.
    pub status: u64,
    /// For one value to survive a check.
    pub spill: u64,
    /// General-purpose registers by number. Guest R8 to R11 always live here.
    pub gpr: [u64; 16],
    /// RBX at an exit: mostly an address.
    pub scratch: u64,
    /// Why translated code was left: the number of an exit.
    pub exit: u32,
    registers_end: NextPage,
    /// Not zero: the processor has something to do besides executing instructions. Any thread
    /// may set it.
    pub attention: AtomicU32,
    /// Not zero: an interrupt waits until the guest allows interrupts. STI looks at both as one
    /// number of 64 bits.
    pub deferred: u32,
    /// Not zero: the guest's vector registers are in the host's. Else they are in memory.
    pub vectors_live: u32,
    /// Vector registers as wide as the host has them: 0 is XMM, 1 is YMM, 2 is ZMM.
    pub width: u32,
    /// Not zero: vector registers were live when translated code was left.
    pub vectors_left: u32,
    /// RFLAGS but for the status flags.
    pub rflags: u64,
    /// Twice the number of the entry of the soft TLB that missed.
    pub missed: u64,
    /// Segment bases.
    pub fs_base: u64,
    pub gs_base: u64,
    /// Not zero: FS, or GS, has a limit, or may not be loaded from or stored to. 32-bit code asks.
    pub is_limited: [u32; 2],
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// Where the last page fault was.
    pub cr2: u64,
    /// Selectors of ES to GS.
    pub selectors: [u32; 6],
    /// IA32_TSC_AUX.
    pub tsc_aux: u32,
    /// The guest's TSC less the host's.
    pub tsc_offset: u64,
    /// Where vector registers are kept while they are not live.
    pub vectors: *mut VectorState,
    /// The host's stack pointer, to leave translated code with.
    pub host_sp: u64,
    /// Where to enter translated code.
    pub target: u64,
    /// The second level of each view's soft TLB: [`SECOND_ENTRIES`] entries.
    pub second: [*mut SecondEntry; VIEWS],
    /// The number of the address space by which each view's second level is tagged.
    pub spaces: [u64; VIEWS],
    /// What keys in [`Context::placed_jumps`] have that each jump cache leads to, besides where the block lies.
    pub jump_settings: [u64; JUMP_CACHES],
    /// What each view's soft TLB and jump cache have that is not global.
    pub tlb_journals: [Journal; VIEWS],
    pub jump_journals: [Journal; VIEWS],
    /// All that the first level of [`MIRRORED_JUMPS`] has.
    pub mirrored_journal: Journal<MIRRORED_CAPACITY>,
    /// Entries of another epoch allow no stores.
    pub write_epoch: u64,
    /// MXCSR as Rust code expects it.
    pub host_mxcsr: u32,
    /// The stack pointers at which the context is seen: here, and by user code whose memory is
    /// mirrored.
    pub plain_sp: u64,
    pub mirrored_sp: u64,
    /// What user code with mirrored memory has in the place of `attention`, and loads from: its own address
    /// at `mirrored_sp`; 0 when the processor has something else to do. That faults, and leaves the status
    /// flags alone.
    pub poll: AtomicU64,
    /// The address of [`entry::leave_mirrored`](super::entry::leave_mirrored).
    pub leave_mirrored: u64,
    /// PKRU as Rust code expects it, and as it is while user code with mirrored memory runs.
    pub host_pkru: u32,
    pub mirrored_pkru: u32,
    /// The last fault of such code.
    pub fault: MirrorFault,
    /// What empty slots of the soft TLB lead to.
    nowhere: [u8; 4096],
    pub tlb: [TlbView; VIEWS],
    jump: [JumpView<{ JUMP_ENTRIES[0] }>; VIEWS],
    mirrored_jump: JumpView<{ JUMP_ENTRIES[MIRRORED_JUMPS] }>,
    /// The second level of jump caches.
    pub code_tlb: [CodeTlb; JUMP_CACHES],
    pub placed_jumps: PlacedJumps,
}

/// Bytes of the context, from its start, up to which user code with mirrored memory cannot even look;
/// and up to which it can write. It can read the rest.
pub const HIDDEN: usize = STACK;
pub const WRITABLE: usize = offset_of!(Context, registers_end);

/// What the checker is told of [`Context`].
pub fn layout() -> Layout {
    const NOBODY: u32 = 0;
    // Views, and code for mirrored memory.
    const ANYBODY: u32 = (1 << JUMP_CACHES) - 1;
    const MIRRORED: u32 = 1 << MIRRORED_JUMPS;
    const KERNEL: u32 = ANYBODY & !(1 << View::User as u32) & !MIRRORED;
    let field = |offset: usize, size: usize, writers: u32| Field {
        offset: (offset - STACK) as u32,
        size: size as u32,
        writers,
    };
    let view = |cache: usize| {
        let view = if cache == MIRRORED_JUMPS { View::User as usize } else { cache };
        let tlb = offset_of!(Context, tlb) - STACK + view * size_of::<TlbView>();
        let jump = offset::jump_guest(cache) as usize;
        ViewTables {
            read: (tlb + offset_of!(TlbView, read)) as u32,
            write: (tlb + offset_of!(TlbView, write)) as u32,
            jump: jump as u32,
            jump_entries: JUMP_ENTRIES[cache] as u32,
        }
    };
    Layout {
        fields: vec![
            // With `deferred` behind it.
            field(offset_of!(Context, attention), 8, NOBODY),
            field(offset_of!(Context, vectors_live), 4, NOBODY),
            field(offset_of!(Context, poll), 8, NOBODY),
            field(offset_of!(Context, gpr), 16 * 8, ANYBODY),
            field(offset_of!(Context, code_base), 8, ANYBODY),
            field(offset_of!(Context, status), 8, ANYBODY),
            field(offset_of!(Context, spill), 8, ANYBODY),
            field(offset_of!(Context, fs_base), 8, NOBODY),
            field(offset_of!(Context, gs_base), 8, KERNEL),
            field(offset_of!(Context, is_limited), 2 * 4, NOBODY),
            field(offset_of!(Context, kernel_gs_base), 8, KERNEL),
            field(offset_of!(Context, cr2), 8, NOBODY),
            field(offset_of!(Context, selectors), 6 * 4, NOBODY),
            field(offset_of!(Context, tsc_aux), 4, NOBODY),
            field(offset_of!(Context, tsc_offset), 8, NOBODY),
        ],
        flags: (offset_of!(Context, rflags) - STACK) as u32,
        vectors_live: (offset_of!(Context, vectors_live) - STACK) as u32,
        views: (0..JUMP_CACHES).map(view).collect(),
        tlb_entries: TLB_ENTRIES as u32,
        tlb_slots: TLB_SLOTS as u32,
    }
}

/// What no branch finds in entry `index` of a jump cache, not even one to an address that is not
/// canonical: an address of another entry; of entry 0 wherever that can be, so that a new table is zero.
fn nowhere(index: usize) -> u64 {
    if index == 0 { 1 << 63 | 2 } else { 0 }
}

/// A number that, added to any address of entry `index`, gives more than 4095: the negated address of
/// a page of another entry; of page 0 wherever that can be, so that a new table is zero.
fn never(index: usize) -> u64 {
    if index == 0 { 0x1000u64.wrapping_neg() } else { 0 }
}

/// By what jump caches find the code at `guest`. The lowest bit is left out: generated code indexes
/// the first level by halves of entries.
pub fn jump_hash(guest: u64) -> usize {
    ((guest >> 12 ^ guest) as u32 >> 1) as usize
}

/// An address for every place of a jump cache that may lead to instructions that begin or end in
/// the page at `linear`. The lowest bit makes no difference there.
pub fn places_of_page(linear: u64) -> impl Iterator<Item = u64> {
    const LONGEST: u64 = 16;
    let first = (linear & !0xfff).wrapping_sub(LONGEST);
    (0..0x1000 + LONGEST).step_by(2).map(move |n| first.wrapping_add(n))
}

/// The page that empty slots have. A slot has to have some page; this one is not canonical, and who
/// goes there nevertheless gets nobody's bytes.
const NOWHERE: u64 = 0x9a5b_17e3_c2d4_6000;

impl TlbView {
    /// Forgets everything. Empty slots lead to `nowhere`.
    fn clear(&mut self, nowhere: u64) {
        clear_entries(&mut self.read, nowhere);
        clear_entries(&mut self.write, nowhere);
    }

    /// Forgets entry `index`.
    fn clear_entry(&mut self, index: usize, nowhere: u64) {
        for entries in [&mut self.read, &mut self.write] {
            if index < TLB_ENTRIES {
                entries[index].tag = never(index);
            } else {
                entries[index] = empty_slot(nowhere);
            }
        }
    }

    /// Forgets the page at `linear`.
    fn clear_page(&mut self, linear: u64, nowhere: u64) {
        let index = (linear >> 12) as usize % TLB_ENTRIES;
        for entries in [&mut self.read, &mut self.write] {
            entries[index].tag = never(index);
            let tag = (linear & !0xfff).wrapping_neg();
            for slot in entries[TLB_ENTRIES..].iter_mut().filter(|slot| slot.tag == tag) {
                *slot = empty_slot(nowhere);
            }
        }
    }

    /// Remembers that the page at `linear` lies at `host`, for loads or for stores, in entry `index`.
    fn fill(&mut self, index: usize, linear: u64, host: u64, write: bool) {
        let entries = if write { &mut self.write } else { &mut self.read };
        entries[index] = TlbEntry { tag: (linear & !0xfff).wrapping_neg(), host };
    }
}

fn clear_entries(entries: &mut [TlbEntry; TLB_ENTRIES + TLB_SLOTS], nowhere: u64) {
    for (index, entry) in entries.iter_mut().take(TLB_ENTRIES).enumerate() {
        entry.tag = never(index);
    }
    entries[TLB_ENTRIES..].fill(empty_slot(nowhere));
}

fn empty_slot(nowhere: u64) -> TlbEntry {
    TlbEntry { tag: NOWHERE.wrapping_neg(), host: nowhere }
}

impl Context {
    fn nowhere(&self) -> u64 {
        self.nowhere.as_ptr() as u64
    }

    /// Forgets what a view's soft TLB has.
    pub fn clear_tlb(&mut self, view: usize) {
        let nowhere = self.nowhere();
        self.tlb[view].clear(nowhere);
        self.tlb_journals[view].clear();
    }

    /// Forgets what a view's soft TLB has of this address space.
    pub fn leave_space(&mut self, view: usize) {
        let nowhere = self.nowhere();
        let tlb = &mut self.tlb[view];
        if !self.tlb_journals[view].drain(|index| tlb.clear_entry(index, nowhere)) {
            tlb.clear(nowhere);
        }
        let jump = &mut self.jump[view];
        if !self.jump_journals[view].drain(|index| jump.clear_entry(index)) {
            jump.clear();
        }
    }

    /// Remembers in a view's soft TLB that the page at `linear` lies at `host`: in the entry that
    /// missed last.
    pub fn fill_tlb(&mut self, view: usize, linear: u64, host: u64, write: bool, global: bool) {
        let index = self.missed as usize / 2;
        if !global {
            self.tlb_journals[view].note(index);
        }
        self.tlb[view].fill(index, linear, host, write);
    }

    /// Forgets where a jump cache leads.
    pub fn clear_jumps(&mut self, cache: usize) {
        match cache {
            MIRRORED_JUMPS => {
                let jump = &mut self.mirrored_jump;
                if !self.mirrored_journal.drain(|index| jump.clear_entry(index)) {
                    jump.clear();
                }
            }
            view => {
                self.jump[view].clear();
                self.jump_journals[view].clear();
            }
        }
    }

    /// Forgets where jump caches lead for the page at `linear`.
    pub fn clear_jumps_to(&mut self, linear: u64) {
        self.code_tlb.iter_mut().for_each(|tlb| tlb.clear_page(linear));
        self.jump.iter_mut().for_each(|jump| jump.clear_page(linear));
        self.mirrored_jump.clear_page(linear);
    }

    /// The far entry of the block at `guest`, if a level of a jump cache knows it.
    pub fn find_jump(&self, cache: usize, guest: u64) -> Option<u64> {
        let first = match cache {
            MIRRORED_JUMPS => self.mirrored_jump.find(guest),
            view => self.jump[view].find(guest),
        };
        first.or_else(|| {
            let spaces = [self.spaces[0], journal::GLOBAL];
            let gpa = self.code_tlb[cache].find(guest, spaces)?;
            self.placed_jumps.find(gpa | self.jump_settings[cache])
        })
    }

    /// Remembers in a jump cache that the code at `guest` is entered at `host`.
    pub fn fill_jump(&mut self, cache: usize, guest: u64, host: u64, global: bool) {
        if cache == MIRRORED_JUMPS {
            let index = self.mirrored_jump.fill(guest, host);
            return self.mirrored_journal.note(index);
        }
        let index = self.jump[cache].fill(guest, host);
        if !global {
            self.jump_journals[cache].note(index);
        }
    }

    /// Forgets what the soft TLBs allow to store to.
    pub fn clear_writes(&mut self) {
        let nowhere = self.nowhere();
        self.tlb.iter_mut().for_each(|tlb| clear_entries(&mut tlb.write, nowhere));
    }

    /// Forgets the page at `linear`.
    pub fn clear_page(&mut self, linear: u64) {
        let nowhere = self.nowhere();
        self.tlb.iter_mut().for_each(|tlb| tlb.clear_page(linear, nowhere));
    }
}

impl<const N: usize> JumpView<N> {
    /// Forgets everything.
    fn clear(&mut self) {
        for (index, entry) in self.0.iter_mut().enumerate() {
            entry.guest = nowhere(index);
        }
    }

    /// Forgets entry `index`.
    fn clear_entry(&mut self, index: usize) {
        self.0[index].guest = nowhere(index);
    }

    /// Forgets what lies in the page at `linear`, or reaches into it.
    fn clear_page(&mut self, linear: u64) {
        for guest in places_of_page(linear) {
            let index = Self::index(guest);
            if self.0[index].guest & !1 == guest {
                self.0[index].guest = nowhere(index);
            }
        }
    }

    /// The far entry of the block at `guest`.
    fn find(&self, guest: u64) -> Option<u64> {
        let entry = &self.0[Self::index(guest)];
        (entry.guest == guest).then_some(entry.host)
    }

    /// Remembers that the code at `guest` is entered at `host`; returns the number of the entry.
    fn fill(&mut self, guest: u64, host: u64) -> usize {
        let index = Self::index(guest);
        self.0[index] = JumpEntry { guest, host };
        index
    }

    fn index(guest: u64) -> usize {
        jump_hash(guest) % N
    }
}

/// A context at an address that does not change. One processor's thread works on it; any other
/// may [`ring`](Self::ring).
pub struct ContextCell {
    context: NonNull<Context>,
    /// What the context's pages are, so that they can be seen at another place, too.
    file: OwnedFd,
}

// SAFETY: other threads than the processor's touch `attention` only, which is atomic.
unsafe impl Send for ContextCell {}
// SAFETY: as above.
unsafe impl Sync for ContextCell {}

impl ContextCell {
    /// A context with empty tables. Fails if the host has no memory for it.
    pub fn new(width: u32) -> io::Result<Arc<Self>> {
        let size = size_of::<Context>();
        let file = host_pages::memory_file(c"lodge-context", size)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let pages = host_pages::map(&file, size, protection)?;
        let cell = Self { context: pages.cast(), file };
        // SAFETY: the pages are zero, which is a value of every field; nobody else has them.
        let context = unsafe { &mut *cell.get() };
        context.width = width;
        context.host_mxcsr = 0x1f80;
        context.plain_sp = cell.get() as u64 + STACK as u64;
        // Tables of zeros are empty but for what is said here.
        let nowhere = context.nowhere();
        for tlb in &mut context.tlb {
            (TLB_ENTRIES..TLB_ENTRIES + TLB_SLOTS).for_each(|slot| tlb.clear_entry(slot, nowhere));
            tlb.clear_entry(0, nowhere);
        }
        context.jump.iter_mut().for_each(|jump| jump.clear_entry(0));
        context.mirrored_jump.clear_entry(0);
        context.jump_settings = [PLACED; JUMP_CACHES];
        context.code_tlb.iter_mut().for_each(CodeTlb::clear);
        Ok(Arc::new(cell))
    }

    /// The file that the context's pages belong to.
    pub fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// Makes translated code return soon. From any thread.
    pub fn ring(&self) {
        // SAFETY: the field is atomic, and no reference to the whole context is made.
        let (attention, poll) = unsafe { (&(*self.get()).attention, &(*self.get()).poll) };
        poll.store(0, Ordering::SeqCst);
        attention.store(1, Ordering::SeqCst);
    }

    /// Whether somebody rang.
    pub fn is_rung(&self) -> bool {
        // SAFETY: as in `ring`.
        let (attention, poll) = unsafe { (&(*self.get()).attention, &(*self.get()).poll) };
        // Whoever answered while somebody rang may have missed one of them.
        attention.load(Ordering::Relaxed) != 0 || poll.load(Ordering::Relaxed) == 0
    }

    /// Takes the ring back; what it was about must be looked at afterwards.
    pub fn answer(&self) {
        // SAFETY: as in `ring`.
        let (attention, poll) = unsafe { (&(*self.get()).attention, &(*self.get()).poll) };
        // SAFETY: only this processor's thread, which calls, ever changes it.
        let quiet = unsafe { (*self.get()).mirrored_sp }.wrapping_add_signed(offset::POLL.into());
        poll.swap(quiet, Ordering::SeqCst);
        attention.swap(0, Ordering::SeqCst);
    }

    /// The context, for its processor's thread.
    pub fn get(&self) -> *mut Context {
        self.context.as_ptr()
    }
}

impl Drop for ContextCell {
    fn drop(&mut self) {
        host_pages::unmap(self.context.cast(), size_of::<Context>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_entries_are_never_hit() {
        for index in 0..2048 {
            assert_ne!(JumpView::<2048>::index(nowhere(index)), index);
        }
        for index in 0..TLB_ENTRIES {
            let page = never(index).wrapping_neg();
            assert_ne!((page >> 12) as usize % TLB_ENTRIES, index);
        }
    }

    #[test]
    fn a_new_context_is_as_one_that_was_emptied() {
        let cell = ContextCell::new(0).unwrap();
        // SAFETY: nobody else has the context.
        let context = unsafe { &mut *cell.get() };
        let look = |context: &Context| {
            let tlb = context.tlb.iter().flat_map(|tlb| tlb.read.iter().chain(&tlb.write));
            let jumps =
                context.jump.iter().flat_map(|jump| &jump.0).chain(&context.mirrored_jump.0);
            let tlb = tlb.map(|entry| entry.tag);
            tlb.chain(jumps.map(|entry| entry.guest)).collect::<Vec<_>>()
        };
        let new = look(context);
        (0..VIEWS).for_each(|view| context.clear_tlb(view));
        (0..VIEWS).for_each(|view| context.jump[view].clear());
        context.mirrored_jump.clear();
        assert!(look(context) == new);
        assert_eq!(SecondEntry::table(4)[0].read, SecondEntry::EMPTY.read);
    }
}
