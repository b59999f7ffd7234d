//! What surrounds the interpreter when it helps out: the guest's memory and devices, and whatever
//! KVM keeps of the processor.

use accel::{CpuBus, CpuidTable};
use accel_soft::native::NativeUnit;
use accel_soft::ram::{Page, Ram};
use iced_x86::Instruction;
use kvm_ioctls::VcpuFd;
use x86::cpuid::CpuidResult;
use x86::{CpuState, Env, Exception, NativeOperand, Word};

use super::Around;
use crate::state;
use crate::stores::StoreLog;

/// Where a PC's I/O APIC lies; KVM's is there.
const IOAPIC_BASE: u64 = 0xfec0_0000;
/// IA32_APIC_BASE: the address of the local APIC's page.
const APIC_BASE: u64 = 0x000f_ffff_ffff_f000;

/// The surroundings, for one instruction.
pub struct AssistEnv<'a> {
    ram: &'a Ram,
    native: &'a mut NativeUnit,
    vcpu: &'a VcpuFd,
    cpuid: &'a CpuidTable,
    stores: &'a StoreLog,
    bus: &'a dyn CpuBus,
    /// The page of the local APIC.
    local_apic: u64,
}

impl<'a> AssistEnv<'a> {
    pub fn new(
        ram: &'a Ram,
        native: &'a mut NativeUnit,
        around: &Around<'a>,
        bus: &'a dyn CpuBus,
    ) -> Self {
        let &Around { vcpu, cpuid, stores } = around;
        let local_apic = vcpu.get_sregs().map_or(u64::MAX, |s| s.apic_base & APIC_BASE);
        Self { ram, native, vcpu, cpuid, stores, bus, local_apic }
    }

    /// KVM does not see what is stored from here.
    fn stored(&self, page: Page) {
        if let Some(address) = self.ram.address(page) {
            self.stores.note(address);
        }
    }

    /// Whether an address is one of KVM's interrupt controllers'. They can't be reached from here.
    fn is_chip(&self, gpa: u64) -> bool {
        let page = gpa & !0xfff;
        let is_chip = page == IOAPIC_BASE || page == self.local_apic;
        if is_chip {
            tracing::debug!(
                "an access to the interrupt controller at {gpa:#x} that neither KVM nor the interpreter can do"
            );
        }
        is_chip
    }
}

/// Ports of KVM's interrupt controllers and PIT.
fn is_chip_port(port: u16) -> bool {
    matches!(port, 0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 | 0x40..=0x43 | 0x61)
}

impl Env for AssistEnv<'_> {
    type Page = Page;

    fn ram_page(&self, gpa: u64) -> Option<Page> {
        self.ram.page(gpa)
    }

    fn load<W: Word>(&self, page: Page, offset: usize) -> W {
        page.load(offset)
    }

    fn store<W: Word>(&self, page: Page, offset: usize, value: W) {
        page.store(offset, value);
        self.stored(page);
    }

    fn compare_exchange<W: Word>(
        &self,
        page: Page,
        offset: usize,
        current: W,
        new: W,
    ) -> Result<W, W> {
        let result = page.compare_exchange(offset, current, new);
        self.stored(page);
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
        self.stored(page);
        result
    }

    fn load_bytes(&self, page: Page, offset: usize, data: &mut [u8]) {
        page.load_bytes(offset, data);
    }

    fn matches(&self, page: Page, offset: usize, bytes: &[u8]) -> bool {
        page.matches(offset, bytes)
    }

    fn store_bytes(&self, page: Page, offset: usize, data: &[u8]) {
        page.store_bytes(offset, data);
        self.stored(page);
    }

    fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) {
        if self.is_chip(gpa) {
            data.fill(0xff);
        } else {
            self.bus.mmio_read(gpa, data);
        }
    }

    fn mmio_write(&mut self, gpa: u64, data: &[u8]) {
        if !self.is_chip(gpa) {
            self.bus.mmio_write(gpa, data);
        }
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        if is_chip_port(port) {
            data.fill(0xff);
        } else {
            self.bus.port_read(port, data);
        }
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        if !is_chip_port(port) {
            self.bus.port_write(port, data);
        }
    }

    fn read_msr(&mut self, index: u32) -> Option<u64> {
        state::read_msr(self.vcpu, index).ok().flatten()
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Option<()> {
        state::write_msr(self.vcpu, index, value).ok().filter(|done| *done).map(|_| ())
    }

    fn host_tsc(&self) -> u64 {
        runtime::tsc::read()
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        self.cpuid.get(leaf, subleaf).unwrap_or_default()
    }

    fn read_cr8(&mut self) -> u64 {
        self.vcpu.get_sregs().map_or(0, |s| s.cr8)
    }

    fn write_cr8(&mut self, value: u64) {
        let done = self.vcpu.get_sregs().and_then(|mut s| {
            s.cr8 = value;
            self.vcpu.set_sregs(&s)
        });
        if let Err(error) = done {
            tracing::error!("KVM refuses CR8 = {value}: {error}");
        }
    }

    fn random(&mut self) -> u64 {
        let mut bytes = [0; 8];
        // SAFETY: the buffer is valid for its length. Eight bytes are never delivered in part.
        unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        u64::from_ne_bytes(bytes)
    }

    /// One instruction is executed, whatever waits.
    fn attention(&self, _: bool, _: bool) -> bool {
        false
    }

    /// The offset is stored with the rest of the state.
    fn tsc_offset_changed(&mut self, _: u64) {}

    fn execute_native(
        &mut self,
        insn: &Instruction,
        state: &mut CpuState,
        memory: &mut NativeOperand,
    ) -> Result<(), Exception> {
        self.native.execute(insn, state, memory)
    }
}
