//! What surrounds the shadow: the guest's RAM, to which nothing is stored, and no devices.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use accel::CpuidTable;
use iced_x86::Instruction;
use x86::cpuid::CpuidResult;
use x86::{CpuState, Env, Exception, NativeOperand, Word};

use crate::env::Shared;
use crate::native::NativeUnit;
use crate::ram::Page;

/// The longest store that is kept as one.
const CHUNK: usize = 64;
/// So many bytes on either side of a store are looked at as well.
const MARGIN: usize = 16;
/// More stores are not kept: what is compared has at most a few for each instruction.
const MAX_STORES: usize = 4096;

/// Accessed and dirty bits of a paging-structure entry, in its first byte (SDM Vol. 3, table 4-20).
const MARKS: u8 = 0x60;

/// A store that the shadow would have made.
#[derive(Clone, Copy)]
pub struct Store {
    /// It sets accessed and dirty bits. The processor may know the page and not do so.
    is_mark: bool,
    page: Page,
    offset: usize,
    len: usize,
    value: [u8; CHUNK],
    /// What RAM held around it: from `MARGIN` bytes before it, as far as its page goes.
    before: [u8; CHUNK + 2 * MARGIN],
}

/// A load, with what RAM held.
#[derive(Clone, Copy)]
struct Load {
    page: Page,
    offset: usize,
    len: usize,
    value: [u8; CHUNK],
}

/// A byte of RAM that is not as it should be.
pub struct WrongByte {
    pub gpa: Option<u64>,
    pub expected: u8,
    pub found: u8,
    /// The shadow stored it; else nobody should have.
    pub stored: bool,
}

/// See the module's text.
pub struct ShadowEnv {
    shared: Arc<Shared>,
    cpuid: CpuidTable,
    native: NativeUnit,
    stores: RefCell<Vec<Store>>,
    loads: RefCell<Vec<Load>>,
    is_outside: Cell<bool>,
    is_unmarked: Cell<bool>,
}

impl ShadowEnv {
    pub fn new(shared: Arc<Shared>, cpuid: CpuidTable, native: NativeUnit) -> Self {
        Self {
            shared,
            cpuid,
            native,
            stores: RefCell::default(),
            loads: RefCell::default(),
            is_outside: Cell::new(false),
            is_unmarked: Cell::new(false),
        }
    }

    /// Forgets all loads and stores.
    pub fn clear(&mut self) {
        self.stores.get_mut().clear();
        self.loads.get_mut().clear();
        self.is_outside.set(false);
    }

    /// How many stores there were.
    pub fn stores(&self) -> usize {
        self.stores.borrow().len()
    }

    /// Whether an instruction asked for something that is not the processor's or RAM, and got
    /// nothing.
    pub fn is_outside(&self) -> bool {
        self.is_outside.get()
    }

    /// Whether a translation was used whose accessed and dirty bits were not set, since the last
    /// call. In RAM they were not set for the shadow.
    pub fn take_unmarked(&self) -> bool {
        self.is_unmarked.take()
    }

    /// Whether RAM that was loaded from now holds something else, and not because the first `count`
    /// stores were carried out: a device wrote there.
    pub fn has_raced(&self, count: usize) -> bool {
        let stores = self.stores.borrow();
        self.loads.borrow().iter().any(|load| {
            let mut now = [0; CHUNK];
            load.page.load_bytes(load.offset, &mut now[..load.len]);
            let mut was = load.value;
            for store in &stores[..count.min(stores.len())] {
                store.lay_over(load.page, load.offset, &mut was[..load.len]);
            }
            // The processor marks entries of page tables, perhaps on behalf of other accesses.
            if matches!(load.len, 4 | 8) {
                was[0] |= MARKS & now[0];
            }
            now[..load.len] != was[..load.len]
        })
    }

    /// Looks whether RAM is as the first `count` stores leave it, there and beside them.
    pub fn wrong_byte(&self, count: usize) -> Option<WrongByte> {
        let stores = self.stores.borrow();
        let stores = &stores[..count.min(stores.len())];
        for store in stores {
            let (from, len) = store.window();
            let mut expected = store.before;
            let expected = &mut expected[..len];
            for other in stores {
                other.lay_over(store.page, from, expected);
            }
            let mut found = [0; CHUNK + 2 * MARGIN];
            let found = &mut found[..len];
            store.page.load_bytes(from, found);
            for mark in stores.iter().filter(|other| other.is_mark && other.page == store.page) {
                if let Some(i) = mark.offset.checked_sub(from).filter(|&i| i < len) {
                    expected[i] = expected[i] & !MARKS | found[i] & MARKS;
                }
            }
            if let Some(i) = (0..len).find(|&i| expected[i] != found[i]) {
                let is_there = |other: &Store| {
                    let at = from + i;
                    other.page == store.page && at >= other.offset && at < other.offset + other.len
                };
                return Some(WrongByte {
                    gpa: self.shared.ram.address(store.page).map(|gpa| gpa + (from + i) as u64),
                    expected: expected[i],
                    found: found[i],
                    stored: stores.iter().any(is_there),
                });
            }
        }
        None
    }

    fn keep(&self, page: Page, offset: usize, data: &[u8], is_mark: bool) {
        let mut stores = self.stores.borrow_mut();
        for (chunk, at) in data.chunks(CHUNK).zip((offset..).step_by(CHUNK)) {
            if stores.len() == MAX_STORES {
                self.is_outside.set(true);
                return;
            }
            let mut store = Store {
                is_mark,
                page,
                offset: at,
                len: chunk.len(),
                value: [0; CHUNK],
                before: [0; CHUNK + 2 * MARGIN],
            };
            store.value[..chunk.len()].copy_from_slice(chunk);
            let (from, len) = store.window();
            page.load_bytes(from, &mut store.before[..len]);
            stores.push(store);
        }
    }

    /// What is in RAM with all stores laid over it.
    fn look(&self, page: Page, offset: usize, data: &mut [u8]) {
        page.load_bytes(offset, data);
        for store in self.stores.borrow().iter() {
            store.lay_over(page, offset, data);
        }
    }

    fn note_load(&self, page: Page, offset: usize, data: &[u8]) {
        let mut loads = self.loads.borrow_mut();
        for (chunk, at) in data.chunks(CHUNK).zip((offset..).step_by(CHUNK)) {
            let mut value = [0; CHUNK];
            value[..chunk.len()].copy_from_slice(chunk);
            loads.push(Load { page, offset: at, len: chunk.len(), value });
        }
    }
}

impl Store {
    /// The part of the page that `before` covers: its offset and length.
    fn window(&self) -> (usize, usize) {
        let from = self.offset.saturating_sub(MARGIN);
        let to = (self.offset + self.len + MARGIN).min(0x1000);
        (from, to - from)
    }

    /// Overwrites what of `data`, at `offset` of a page, this store changes.
    fn lay_over(&self, page: Page, offset: usize, data: &mut [u8]) {
        let from = self.offset.max(offset);
        let to = (self.offset + self.len).min(offset + data.len());
        if self.page == page && from < to {
            let value = &self.value[from - self.offset..to - self.offset];
            data[from - offset..to - offset].copy_from_slice(value);
        }
    }
}

impl Env for ShadowEnv {
    type Page = Page;

    fn ram_page(&self, gpa: u64) -> Option<Page> {
        self.shared.ram.page(gpa)
    }

    fn load<W: Word>(&self, page: Page, offset: usize) -> W {
        let value: u64 = page.load::<W>(offset).into();
        let mut data = value.to_le_bytes();
        let data = &mut data[..W::SIZE];
        self.note_load(page, offset, data);
        for store in self.stores.borrow().iter() {
            store.lay_over(page, offset, data);
        }
        let mut whole = [0; 8];
        whole[..W::SIZE].copy_from_slice(data);
        W::truncate(u64::from_le_bytes(whole))
    }

    fn store<W: Word>(&self, page: Page, offset: usize, value: W) {
        let value: u64 = value.into();
        self.keep(page, offset, &value.to_le_bytes()[..W::SIZE], false);
    }

    fn compare_exchange<W: Word>(
        &self,
        page: Page,
        offset: usize,
        current: W,
        new: W,
    ) -> Result<W, W> {
        let old: W = self.load(page, offset);
        if old != current {
            return Err(old);
        }
        self.store(page, offset, new);
        Ok(old)
    }

    /// The processor sets the bits when it walks itself; until then, the shadow sees its own.
    fn mark_entry<W: Word>(&self, page: Page, offset: usize, entry: W, marked: W) -> bool {
        if self.load::<W>(page, offset) != entry {
            return false;
        }
        self.is_unmarked.set(true);
        let marked: u64 = marked.into();
        self.keep(page, offset, &marked.to_le_bytes()[..1], true);
        true
    }

    fn compare_exchange_128(
        &self,
        page: Page,
        offset: usize,
        current: u128,
        new: u128,
    ) -> Result<u128, u128> {
        let mut data = [0; 16];
        self.load_bytes(page, offset, &mut data);
        let old = u128::from_le_bytes(data);
        if old != current {
            return Err(old);
        }
        self.keep(page, offset, &new.to_le_bytes(), false);
        Ok(old)
    }

    fn load_bytes(&self, page: Page, offset: usize, data: &mut [u8]) {
        page.load_bytes(offset, data);
        self.note_load(page, offset, data);
        for store in self.stores.borrow().iter() {
            store.lay_over(page, offset, data);
        }
    }

    fn matches(&self, page: Page, offset: usize, bytes: &[u8]) -> bool {
        if self.stores.borrow().iter().all(|store| store.page != page) {
            return page.matches(offset, bytes);
        }
        let mut data = [0; 256];
        bytes.chunks(data.len()).zip((offset..).step_by(256)).all(|(chunk, at)| {
            let data = &mut data[..chunk.len()];
            self.look(page, at, data);
            data == chunk
        })
    }

    fn store_bytes(&self, page: Page, offset: usize, data: &[u8]) {
        self.keep(page, offset, data, false);
    }

    fn mmio_read(&mut self, _: u64, data: &mut [u8]) {
        self.is_outside.set(true);
        data.fill(0);
    }

    fn mmio_write(&mut self, _: u64, _: &[u8]) {
        self.is_outside.set(true);
    }

    fn port_read(&mut self, _: u16, data: &mut [u8]) {
        self.is_outside.set(true);
        data.fill(0);
    }

    fn port_write(&mut self, _: u16, _: &[u8]) {
        self.is_outside.set(true);
    }

    fn read_msr(&mut self, _: u32) -> Option<u64> {
        self.is_outside.set(true);
        Some(0)
    }

    fn write_msr(&mut self, _: u32, _: u64) -> Option<()> {
        self.is_outside.set(true);
        Some(())
    }

    fn host_tsc(&self) -> u64 {
        runtime::tsc::read()
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        self.cpuid.get(leaf, subleaf).unwrap_or_default()
    }

    fn read_cr8(&mut self) -> u64 {
        self.is_outside.set(true);
        0
    }

    fn write_cr8(&mut self, _: u64) {
        self.is_outside.set(true);
    }

    fn random(&mut self) -> u64 {
        self.is_outside.set(true);
        0
    }

    fn attention(&self, _: bool, _: bool) -> bool {
        false
    }

    fn tsc_offset_changed(&mut self, _: u64) {
        self.is_outside.set(true);
    }

    fn execute_native(
        &mut self,
        insn: &Instruction,
        state: &mut CpuState,
        memory: &mut NativeOperand,
    ) -> Result<(), Exception> {
        self.native.execute(insn, state, memory)
    }
}
