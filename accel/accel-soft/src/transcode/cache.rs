//! Translated blocks and where they are.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::time::{Duration, Instant};

use x86::View;

use super::assembler::{Assembler, Mem, Reg};
use super::context::{JUMP_CACHES, MIRRORED_JUMPS, VIEWS, offset};
use super::far_links::Linked;
use super::packed_exit::PackedExit;
use super::sites::{Site, Sites};
use super::strings::{self, STRING_OPS, StringOp};
use super::translate::{Common, Departure, Exit, Link, Setting, Translated, WITH_FLAGS};
use super::{entry, second_level};
use crate::code_memory::CodeMemory;

/// Bytes of code that one processor may have.
pub const CODE_SIZE: usize = 28 << 20;

/// What a block is found by: the guest physical address of its first byte and its setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

impl Key {
    pub fn new(gpa: u64, setting: Setting) -> Self {
        Self(gpa | Self::of(setting))
    }

    /// What the keys of all blocks of a setting have in common, besides where they lie.
    pub fn of(setting: Setting) -> u64 {
        setting.number() << 56
    }

    /// It as a number.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The guest physical address of the page.
    pub fn page(self) -> u64 {
        self.0 & 0x00ff_ffff_ffff_f000
    }

    /// The same setting at another offset in the page.
    pub fn at(self, offset: u16) -> Self {
        Self(self.0 & !0xfff | u64::from(offset & 0xfff))
    }

    /// Whether it is code for mirrored memory.
    fn is_mirrored(self) -> bool {
        self.0 & u64::from(Setting::MIRRORED) << 56 != 0
    }

    /// Where a jump leads.
    fn target(self, link: &Link) -> Self {
        let narrow = u64::from(Setting::NARROW) << 56;
        let Self(key) = self.at(link.target);
        Self(key & !narrow | if link.narrow { narrow } else { 0 })
    }

    /// A number to count by.
    pub fn hash(self) -> usize {
        (self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
    }
}

/// How much there is in a cache, and how much of it there may be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fill {
    pub bytes: usize,
    pub capacity: usize,
    pub exits: usize,
    pub exits_capacity: usize,
    pub blocks: usize,
}

/// Where translated code is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Host addresses: with `code_base` set, and with the instruction pointer in RBX.
    Code { near: u64, far: u64 },
    /// Its first instruction reaches into the next page: see [`Cache::find_crossing`].
    Crossing,
    /// Its first instruction is one for the interpreter, for reasons of its own.
    Interpret,
}

/// A [`Block`] in eight bytes: its far entry as an offset in code memory, and how far behind that the near one
/// is. For other kinds, there is a number that no offset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packed {
    far: u32,
    to_near: u32,
}

impl Packed {
    const CROSSING: Self = Self { far: u32::MAX, to_near: 0 };
    const INTERPRET: Self = Self { far: u32::MAX, to_near: 1 };
}

/// The code of a block and what belongs to it.
pub struct Emitted<'a> {
    pub code: &'a [u8],
    pub exits: &'a [Departure],
    pub links: &'a [Link],
    pub sites: &'a [Site],
}

/// Keys are spread well by one multiplication.
#[derive(Default)]
pub struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

pub type Set<K> = HashSet<K, BuildHasherDefault<KeyHasher>>;
type Map<K, V> = HashMap<K, V, BuildHasherDefault<KeyHasher>>;

/// What is known of one page's code.
#[derive(Default)]
struct PageBlocks {
    blocks: Vec<Key>,
    /// Blocks whose first instruction begins or ends in this page: by their key and the address
    /// of the page it ends in.
    crossings: Vec<(Key, u64)>,
    /// Jumps to code of this page that is not yet there: the key they wait for, and where their
    /// distance stands.
    waiting: Vec<(Key, u32)>,
}

/// One processor's translated code.
pub struct Cache {
    code: CodeMemory,
    pub common: Common,
    /// Where direct jumps between pages go that are not linked.
    far_jumps: u32,
    /// Where blocks lead that were forgotten, and those for mirrored memory.
    forgotten: [u64; 2],
    /// The end of the code that is always there.
    common_end: usize,
    blocks: Map<Key, Packed>,
    crossings: Map<(Key, u64), Packed>,
    pages: Map<u64, PageBlocks>,
    exits: Vec<PackedExit>,
    sites: Sites,
    /// How often code of a page was changed, and since when that is counted.
    changes: Map<u64, (u32, Instant)>,
}

/// Code of a page that was changed this often within [`REST`] is not translated until that is over.
const MAX_CHANGES: u32 = 64;
const REST: Duration = Duration::from_secs(1);
/// The exit of code that was forgotten: to wherever the branch that led to it wanted to go.
const FORGOTTEN: Departure = Departure { exit: Exit::Branch { at: 0, stack: 0 }, back: 0 };
/// The number of the exit of accesses that faulted.
pub const FAULT_EXIT: u32 = 1;
const FAULT: Departure = Departure { exit: Exit::Fault, back: 0 };
/// The first exit of a block.
const FIRST_EXIT: usize = 2;
/// More exits than this are never kept: 8 bytes each.
const MAX_EXITS: usize = 5 << 17;
/// More blocks are never known: those are what a table of 2^18 places holds.
const MAX_BLOCKS: usize = 7 << 15;
/// More pages are never known to have changed.
const MAX_CHANGED: usize = 1 << 14;

impl Cache {
    pub fn new() -> io::Result<Self> {
        let mut code = CodeMemory::new(CODE_SIZE)?;
        let mut asm = Assembler::default();
        // JMP and CALL reach 2 GiB, which may not be as far as the program's own code.
        let jump_to = |asm: &mut Assembler, address: u64| {
            // JMP [RIP+0], and the address.
            asm.bytes(&[0xff, 0x25, 0, 0, 0, 0]);
            asm.bytes(&address.to_le_bytes());
        };
        let leave_label = asm.here();
        jump_to(&mut asm, entry::leave as *const () as u64);
        let leave_mirrored = asm.code.len() as u32;
        let leave_mirrored_label = asm.here();
        // Code memory cannot be read there.
        asm.jmp_mem(Mem::Context(offset::LEAVE_MIRRORED));
        let leave_with_flags = asm.code.len() as u32;
        asm.save_status();
        asm.jmp(leave_mirrored_label);
        let load_vectors = asm.code.len() as u32;
        jump_to(&mut asm, entry::load_vectors as *const () as u64);
        let mut second_level = [[0; 2]; VIEWS];
        let mut second_jumps = [0; JUMP_CACHES];
        let mut far_jumps = 0;
        for view in [View::User, View::Supervisor, View::SupervisorAc] {
            for write in [false, true] {
                second_level[view as usize][usize::from(write)] = asm.code.len() as u32;
                second_level::emit_access(&mut asm, view, write, leave_label);
            }
        }
        for (cache, place) in second_jumps.iter_mut().enumerate() {
            let leave = if cache == MIRRORED_JUMPS { leave_mirrored_label } else { leave_label };
            if cache == MIRRORED_JUMPS {
                far_jumps = asm.code.len() as u32;
                second_level::emit_far(&mut asm);
            }
            *place = asm.code.len() as u32;
            second_level::emit_branch(&mut asm, cache, leave);
        }
        let mut strings = [[0; STRING_OPS]; VIEWS];
        for view in [View::User, View::Supervisor, View::SupervisorAc] {
            for op in StringOp::ALL {
                strings[view as usize][op.number()] = asm.code.len() as u32;
                strings::emit(&mut asm, view, op, leave_label);
            }
        }
        let crossing = asm.code.len() as u32;
        asm.load32(Reg::RBP, Mem::Context(offset::EXIT));
        asm.jmp(leave_label);
        let common = Common {
            leave: 0,
            leave_mirrored,
            leave_with_flags,
            crossing,
            load_vectors,
            second_level,
            second_jumps,
            strings,
        };
        let forgotten = [leave_label, leave_mirrored_label].map(|leave| {
            // Leaves by exit 0.
            let at = asm.code.len();
            if leave == leave_mirrored_label {
                asm.save_status();
            }
            asm.mov_imm(Reg::RBP, 0);
            asm.jmp(leave);
            at
        });
        if !asm.resolve() || code.append(&asm.code) != Some(0) {
            return Err(io::Error::other("the common code does not lie where it should"));
        }
        let (common_end, _) = code.fill();
        // Never moved, so that there are never two of it.
        let mut exits = Vec::with_capacity(MAX_EXITS);
        exits.extend([FORGOTTEN, FAULT].map(PackedExit::pack));
        Ok(Self {
            forgotten: forgotten.map(|at| code.address(at)),
            sites: Sites::new(),
            code,
            common,
            far_jumps,
            common_end,
            blocks: Map::default(),
            crossings: Map::default(),
            pages: Map::default(),
            exits,
            changes: Map::default(),
        })
    }

    /// The access to mirrored memory whose instruction is at host address `rip`.
    pub fn site(&self, rip: u64) -> Option<Site> {
        let at = rip.checked_sub(self.code.address(0))?;
        self.sites.find(u32::try_from(at).ok()?)
    }

    /// The host addresses of code memory.
    pub fn range(&self) -> std::ops::Range<u64> {
        self.code.address(0)..self.code.address(CODE_SIZE)
    }

    pub fn find(&self, key: Key) -> Option<Block> {
        self.blocks.get(&key).map(|&packed| self.unpack(packed))
    }

    pub fn exit(&self, number: u32) -> Option<Departure> {
        self.exits.get(number as usize).map(|exit| exit.unpack())
    }

    /// The offset that the next block will have, and the number of its first exit; `None` if
    /// there may be too little room.
    pub fn next_place(&self) -> Option<(u32, u32)> {
        let (used, size) = self.code.fill();
        let has_room = used + (64 << 10) < size
            && self.exits.len() + 1024 < MAX_EXITS
            && self.blocks.len() < MAX_BLOCKS
            && self.sites.have_room();
        has_room.then_some((used as u32, self.exits.len() as u32))
    }

    /// How much there is.
    pub fn fill(&self) -> Fill {
        let (bytes, capacity) = self.code.fill();
        let (exits, exits_capacity) = (self.exits.len(), MAX_EXITS);
        Fill { bytes, capacity, exits, exits_capacity, blocks: self.blocks.len() }
    }

    /// The host's address of an offset in code memory.
    pub fn address(&self, offset: u32) -> u64 {
        self.code.address(offset as usize)
    }

    /// The block whose first instruction reaches from `key` into the page at `second`.
    pub fn find_crossing(&self, key: Key, second: u64) -> Option<Block> {
        self.crossings.get(&(key, second)).map(|&packed| self.unpack(packed))
    }

    /// Keeps a block that was translated for [`next_place`](Self::next_place). `second` is the
    /// address of the page that its first instruction reaches into, if it does.
    pub fn insert(
        &mut self,
        key: Key,
        second: Option<u64>,
        translated: &Translated,
        emitted: &Emitted<'_>,
    ) -> Option<Block> {
        let &Emitted { code, exits, links, sites } = emitted;
        let base = self.code.append(code)?;
        self.sites.add(base as u32, sites);
        let packed = Packed { far: base as u32, to_near: translated.near };
        self.exits.extend(exits.iter().map(|&exit| PackedExit::pack(exit)));
        if let Some(second) = second {
            self.crossings.insert((key, second), packed);
            self.insert_at(key, Packed::CROSSING);
            for page in [key.page(), second] {
                self.pages.entry(page).or_default().crossings.push((key, second));
            }
        } else {
            self.insert_at(key, packed);
        }
        let block = self.unpack(packed);
        for link in links {
            let to = key.target(link);
            let at = base as u32 + link.at;
            match self.find(to) {
                Some(Block::Code { near, .. }) => self.link(at, near),
                _ => self.pages.entry(key.page()).or_default().waiting.push((to, at)),
            }
        }
        if second.is_some() {
            return Some(block);
        }
        let page = self.pages.entry(key.page()).or_default();
        let mut ready = Vec::new();
        page.waiting.retain(|&(wanted, at)| {
            if wanted == key {
                ready.push(at);
            }
            wanted != key
        });
        if let Block::Code { near, .. } = block {
            for at in ready {
                self.link(at, near);
            }
        }
        Some(block)
    }

    /// Remembers that code at `key` begins with an instruction for the interpreter.
    pub fn insert_interpreted(&mut self, key: Key) {
        self.insert_at(key, Packed::INTERPRET);
    }

    fn unpack(&self, packed: Packed) -> Block {
        match packed {
            Packed::CROSSING => Block::Crossing,
            Packed::INTERPRET => Block::Interpret,
            Packed { far, to_near } => {
                Block::Code { near: self.address(far + to_near), far: self.address(far) }
            }
        }
    }

    fn insert_at(&mut self, key: Key, block: Packed) {
        if self.blocks.insert(key, block).is_none() {
            self.pages.entry(key.page()).or_default().blocks.push(key);
        }
    }

    /// Makes the jump whose distance stands at `at` lead to `to`.
    fn link(&mut self, at: u32, to: u64) {
        let from = self.code.address(at as usize + 4);
        let distance = to.wrapping_sub(from) as i32;
        self.code.write(at as usize, &distance.to_le_bytes());
    }

    /// Has the jump whose distance stands at `at` lead to the block with this far entry, or, without
    /// one, through the jump cache.
    pub fn link_far(&mut self, at: u32, far: Option<u64>) -> Linked {
        let jump_cache = self.address(self.far_jumps);
        let before = self.code.read_distance(at as usize);
        self.link(at, far.map_or(jump_cache, |far| far + u64::from(WITH_FLAGS)));
        Linked { at, before }
    }

    /// Has a jump that was linked go through the jump cache.
    pub fn retire_far(&mut self, link: Linked) {
        self.link(link.at, self.address(self.far_jumps));
    }

    /// Takes back what [`link_far`](Self::link_far) did.
    pub fn unlink_far(&mut self, link: Linked) {
        self.code.write(link.at as usize, &link.before.to_le_bytes());
    }

    /// Forgets all code of a page. Its host code is not reused. Jump caches may still lead to it:
    /// it then leads out.
    pub fn forget_page(&mut self, page: u64) {
        if let Some(page) = self.pages.remove(&page) {
            let blocks = page.blocks.iter().map(|&key| (key, self.blocks.remove(&key)));
            let mut forgotten: Vec<(Key, Option<Packed>)> = blocks.collect();
            let crossings = page.crossings.iter();
            forgotten.extend(crossings.map(|at| (at.0, self.crossings.remove(at))));
            for (key, block) in forgotten {
                if let Some(Block::Code { far, .. }) = block.map(|packed| self.unpack(packed)) {
                    let is_mirrored = key.is_mirrored();
                    let at = far.wrapping_sub(self.code.address(0)) as u32
                        + if is_mirrored { WITH_FLAGS } else { 0 };
                    self.code.write(at as usize, &[0xe9]);
                    self.link(at + 1, self.forgotten[usize::from(is_mirrored)]);
                }
            }
        }
        let now = Instant::now();
        if self.changes.len() >= MAX_CHANGED {
            self.changes.clear();
        }
        let (changes, since) = self.changes.entry(page).or_insert((0, now));
        if now.duration_since(*since) > REST {
            (*changes, *since) = (0, now);
        }
        *changes += 1;
    }

    /// Whether code of a page changes so often that translating it is in vain.
    pub fn is_restless(&self, page: u64) -> bool {
        let changes = self.changes.get(&page);
        changes.is_some_and(|&(n, since)| n >= MAX_CHANGES && since.elapsed() <= REST)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.code.truncate(self.common_end);
        self.blocks.clear();
        self.crossings.clear();
        self.pages.clear();
        self.exits.truncate(FIRST_EXIT);
        self.sites.clear();
        self.changes.clear();
    }
}
