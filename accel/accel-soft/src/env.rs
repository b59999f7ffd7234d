//! What surrounds a processor of this engine.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use accel::{CpuBus, CpuidTable, PvEpoch};
use iced_x86::Instruction;
use irqchip::Lapic;
use x86::cpuid::CpuidResult;
use x86::{CpuState, Env, Exception, NativeOperand, Word};

use crate::chips::{Slot, Timed};
use crate::clock::{Epoch, PvClock};
use crate::native::NativeUnit;
use crate::ram::{Page, Ram};
use crate::transcode::watch::Watch;

/// What all processors of a machine share.
pub(crate) struct Shared {
    pub ram: Ram,
    pub chips: Timed,
    pub epoch: Mutex<Epoch>,
    /// For how many ticks of the host's TSC the machine has been paused, in all.
    pub skipped: AtomicU64,
    /// Tells processors of code that changes.
    pub watch: Watch,
    /// MSRs that the guest asked for in vain, so that each is logged once.
    pub unknown_msrs: Mutex<HashSet<u32>>,
    /// Keeps the timer thread.
    pub _timers: Arc<runtime::Timers>,
}

impl Shared {
    /// From where guest time counts.
    pub fn epoch(&self) -> Epoch {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The paravirtual clock's epoch as processor 0's TSC tells it, which no pause changes.
    pub fn pv_epoch(&self) -> PvEpoch {
        let epoch = self.epoch();
        PvEpoch { tsc: epoch.host_tsc.wrapping_add(self.chips.tsc_offset(0)), ns: epoch.ns }
    }

    /// Has the paravirtual clock count from there. Processor 0's TSC is what it is to be.
    pub fn set_pv_epoch(&self, from: PvEpoch) {
        let mut epoch = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        epoch.host_tsc = from.tsc.wrapping_sub(self.chips.tsc_offset(0));
        epoch.ns = from.ns;
    }

    /// Has guest time and all TSCs go on from where they stood so many ticks ago. Each processor
    /// takes note of it when it runs next; until then, timers go by what is changed here.
    pub fn skip_time(&self, ticks: u64) {
        let mut epoch = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        epoch.host_tsc = epoch.host_tsc.wrapping_add(ticks);
        self.skipped.fetch_add(ticks, Ordering::Relaxed);
        self.chips.skip_time(ticks);
    }
}

/// The bus of the machine, while a processor runs.
#[derive(Clone, Copy)]
struct BusPointer(*const (dyn CpuBus + 'static));

// SAFETY: the pointer is used only between `enter` and `leave`, on the thread that called
// `enter`, which holds the reference it was made from.
unsafe impl Send for BusPointer {}

/// What surrounds one processor.
pub(crate) struct SoftEnv {
    pub shared: Arc<Shared>,
    pub index: usize,
    cpuid: CpuidTable,
    native: NativeUnit,
    pub pv_clock: PvClock,
    tsc_offset: u64,
    bus: Option<BusPointer>,
}

impl SoftEnv {
    pub fn new(
        shared: Arc<Shared>,
        index: usize,
        cpuid: CpuidTable,
        native: NativeUnit,
        tsc_offset: u64,
    ) -> Self {
        let pv_clock = PvClock::default();
        Self { shared, index, cpuid, native, pv_clock, tsc_offset, bus: None }
    }

    /// This processor's local APIC.
    pub fn slot(&self) -> &Slot {
        self.shared.chips.slot(self.index)
    }

    /// Lets the processor use `bus` until [`leave`](Self::leave).
    pub fn enter(&mut self, bus: &dyn CpuBus) {
        let bus: *const (dyn CpuBus + '_) = bus;
        // SAFETY: only the lifetime changes; `leave` is called before it ends.
        let bus = unsafe {
            std::mem::transmute::<*const (dyn CpuBus + '_), *const (dyn CpuBus + 'static)>(bus)
        };
        self.bus = Some(BusPointer(bus));
    }

    /// Ends what [`enter`](Self::enter) began.
    pub fn leave(&mut self) {
        self.bus = None;
    }

    /// Sees to it that translated code is forgotten if a store changed it.
    #[inline(always)]
    fn stored(&self, page: Page, offset: usize, len: usize) {
        if page.take_code(offset, len) {
            self.shared.watch.changed(page);
        }
    }

    /// Whether this host has an instruction.
    pub fn host_has(&mut self, insn: &Instruction) -> bool {
        self.native.host_has(insn)
    }

    fn bus(&self) -> Option<&dyn CpuBus> {
        // SAFETY: the pointer is there only while `enter`'s caller holds the reference.
        self.bus.map(|bus| unsafe { &*bus.0 })
    }

    fn log_unknown_msr(&self, index: u32, access: &str) {
        let mut known = self.shared.unknown_msrs.lock().unwrap_or_else(PoisonError::into_inner);
        // A guest may try all of them.
        if known.len() < 256 && known.insert(index) {
            tracing::debug!("guest {access} unknown MSR {index:#x}: #GP");
        }
    }
}

impl Env for SoftEnv {
    type Page = Page;

    #[inline]
    fn ram_page(&self, gpa: u64) -> Option<Page> {
        self.shared.ram.page(gpa)
    }

    #[inline(always)]
    fn load<W: Word>(&self, page: Page, offset: usize) -> W {
        page.load(offset)
    }

    #[inline(always)]
    fn store<W: Word>(&self, page: Page, offset: usize, value: W) {
        page.store(offset, value);
        self.stored(page, offset, W::SIZE);
    }

    #[inline]
    fn compare_exchange<W: Word>(
        &self,
        page: Page,
        offset: usize,
        current: W,
        new: W,
    ) -> Result<W, W> {
        let result = page.compare_exchange(offset, current, new);
        self.stored(page, offset, W::SIZE);
        result
    }

    fn compare_exchange_128(
        &self,
        page: Page,
        offset: usize,
        current: u128,
        new: u128,
    ) -> Result<u128, u128> {
        let result = page.compare_exchange_128(offset, current, new);
        self.stored(page, offset, 16);
        result
    }

    fn load_bytes(&self, page: Page, offset: usize, data: &mut [u8]) {
        page.load_bytes(offset, data);
    }

    #[inline]
    fn matches(&self, page: Page, offset: usize, bytes: &[u8]) -> bool {
        page.matches(offset, bytes)
    }

    fn store_bytes(&self, page: Page, offset: usize, data: &[u8]) {
        page.store_bytes(offset, data);
        self.stored(page, offset, data.len());
    }

    fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) {
        if self.shared.chips.mmio_read(self.index, gpa, data) {
            return;
        }
        match self.bus() {
            Some(bus) => bus.mmio_read(gpa, data),
            None => data.fill(0xff),
        }
    }

    fn mmio_write(&mut self, gpa: u64, data: &[u8]) {
        if self.shared.chips.mmio_write(self.index, gpa, data) {
            return;
        }
        if let Some(bus) = self.bus() {
            bus.mmio_write(gpa, data);
        }
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        if self.shared.chips.port_read(port, data) {
            return;
        }
        match self.bus() {
            Some(bus) => bus.port_read(port, data),
            None => data.fill(0xff),
        }
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        if self.shared.chips.port_write(port, data) {
            return;
        }
        if let Some(bus) = self.bus() {
            bus.port_write(port, data);
        }
    }

    fn read_msr(&mut self, index: u32) -> Option<u64> {
        if Lapic::owns_msr(index) {
            return self.shared.chips.read_msr(self.index, index);
        }
        let value = self.pv_clock.read_msr(index);
        if value.is_none() {
            self.log_unknown_msr(index, "reads");
        }
        value
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Option<()> {
        if Lapic::owns_msr(index) {
            return self.shared.chips.write_msr(self.index, index, value);
        }
        let ram = &self.shared.ram;
        let epoch = self.shared.epoch();
        let done = self.pv_clock.write_msr(index, value, ram, &epoch, self.tsc_offset);
        if done.is_none() {
            self.log_unknown_msr(index, "writes");
        }
        done
    }

    #[inline]
    fn host_tsc(&self) -> u64 {
        runtime::tsc::read()
    }

    /// Leaves that do not exist are all zeroes, as on AMD's processors.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        self.cpuid.get(leaf, subleaf).unwrap_or_default()
    }

    fn read_cr8(&mut self) -> u64 {
        self.shared.chips.cr8(self.index).into()
    }

    fn write_cr8(&mut self, value: u64) {
        self.shared.chips.set_cr8(self.index, value as u8);
    }

    fn random(&mut self) -> u64 {
        let mut bytes = [0; 8];
        // SAFETY: the buffer is valid for its length. Eight bytes are never delivered in part.
        unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        u64::from_ne_bytes(bytes)
    }

    #[inline(always)]
    fn attention(&self, takes_interrupts: bool, takes_nmis: bool) -> bool {
        self.slot().attention(takes_interrupts, takes_nmis)
    }

    fn tsc_offset_changed(&mut self, offset: u64) {
        self.tsc_offset = offset;
        self.shared.chips.set_tsc_offset(self.index, offset);
        self.pv_clock.publish(&self.shared.ram, &self.shared.epoch(), offset);
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
