//! What surrounds the processor: memory, ports, clocks and the host's own arithmetic.

use iced_x86::Instruction;

use crate::CpuState;
use crate::cpuid::CpuidResult;
use crate::exception::Exception;

/// An integer as wide as a memory access or a general-purpose register.
pub trait Word:
    Copy
    + Eq
    + core::fmt::Debug
    + core::fmt::LowerHex
    + Into<u64>
    + crate::alu::Alu
    + crate::alu::Shift
    + 'static
{
    /// Size in bytes.
    const SIZE: usize;
    /// Size in bits.
    const BITS: u32 = Self::SIZE as u32 * 8;
    /// The low bits of `value`.
    fn truncate(value: u64) -> Self;
    /// The value, sign-extended.
    fn sign_extend(self) -> u64;
}

macro_rules! word {
    ($($unsigned:ty, $signed:ty;)*) => {$(
        impl Word for $unsigned {
            const SIZE: usize = size_of::<$unsigned>();
            #[inline(always)]
            fn truncate(value: u64) -> Self {
                value as $unsigned
            }
            #[inline(always)]
            fn sign_extend(self) -> u64 {
                self as $signed as i64 as u64
            }
        }
    )*};
}

word! {
    u8, i8;
    u16, i16;
    u32, i32;
    u64, i64;
}

/// What surrounds one processor. Called on the thread that runs it.
pub trait Env {
    /// A page of RAM as the host reaches it: usually a pointer.
    type Page: Copy + PartialEq;

    /// The page of RAM that holds guest physical address `gpa`, or `None` if that is not RAM.
    fn ram_page(&self, gpa: u64) -> Option<Self::Page>;

    /// Loads from RAM, in one access if aligned. `offset + W::SIZE` is at most 4096.
    fn load<W: Word>(&self, page: Self::Page, offset: usize) -> W;

    /// Stores to RAM, in one access if aligned. `offset + W::SIZE` is at most 4096.
    fn store<W: Word>(&self, page: Self::Page, offset: usize, value: W);

    /// Atomically replaces `current` by `new`; returns what was there, as an error if that was
    /// something else. `offset + W::SIZE` is at most 4096.
    fn compare_exchange<W: Word>(
        &self,
        page: Self::Page,
        offset: usize,
        current: W,
        new: W,
    ) -> Result<W, W>;

    /// The same for 16 bytes (CMPXCHG16B); `offset` is a multiple of 16.
    fn compare_exchange_128(
        &self,
        page: Self::Page,
        offset: usize,
        current: u128,
        new: u128,
    ) -> Result<u128, u128>;

    /// Sets accessed and dirty bits: replaces a paging-structure entry that is `entry` by `marked`.
    /// `false` if it was something else.
    #[inline]
    fn mark_entry<W: Word>(&self, page: Self::Page, offset: usize, entry: W, marked: W) -> bool {
        self.compare_exchange(page, offset, entry, marked).is_ok()
    }

    /// Copies out of RAM. `offset + data.len()` is at most 4096.
    fn load_bytes(&self, page: Self::Page, offset: usize, data: &mut [u8]);

    /// Whether RAM holds exactly `bytes`. `offset + bytes.len()` is at most 4096.
    fn matches(&self, page: Self::Page, offset: usize, bytes: &[u8]) -> bool;

    /// Copies into RAM. `offset + data.len()` is at most 4096.
    fn store_bytes(&self, page: Self::Page, offset: usize, data: &[u8]);

    /// Loads from a physical address that is not RAM; 1 to 8 bytes.
    fn mmio_read(&mut self, gpa: u64, data: &mut [u8]);

    /// Stores to a physical address that is not RAM; 1 to 8 bytes.
    fn mmio_write(&mut self, gpa: u64, data: &[u8]);

    /// IN; 1, 2 or 4 bytes.
    fn port_read(&mut self, port: u16, data: &mut [u8]);

    /// OUT; 1, 2 or 4 bytes.
    fn port_write(&mut self, port: u16, data: &[u8]);

    /// RDMSR of a register that is not the processor core's: local APIC, paravirtual clock.
    /// `None` if there is no such register.
    fn read_msr(&mut self, index: u32) -> Option<u64>;

    /// WRMSR of such a register. `None` if it does not exist or refuses the value.
    fn write_msr(&mut self, index: u32, value: u64) -> Option<()>;

    /// The host's time stamp counter.
    fn host_tsc(&self) -> u64;

    /// CPUID.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult;

    /// CR8: bits 7:4 of the local APIC's task priority.
    fn read_cr8(&mut self) -> u64;

    /// Sets CR8; `value` is below 16.
    fn write_cr8(&mut self, value: u64);

    /// A random number from the host (RDRAND, RDSEED).
    fn random(&mut self) -> u64;

    /// Something waits for the owner of the processor: a kick, or an interrupt or NMI that it
    /// would take now. The run loop stops at the next instruction boundary. Asked once a block,
    /// so it must be cheap.
    fn attention(&self, takes_interrupts: bool, takes_nmis: bool) -> bool;

    /// The guest set its time stamp counter: it is now the host's plus `offset`.
    fn tsc_offset_changed(&mut self, offset: u64);

    /// Runs one x87, MMX, SSE or AVX instruction on the host's processor. Registers come from
    /// and go to `state`; if the instruction has a memory operand, it works on `memory` instead
    /// (64-byte aligned, up to a whole 512-byte FXSAVE area long). An exception changes nothing
    /// in `state` but MXCSR's flags.
    fn execute_native(
        &mut self,
        insn: &Instruction,
        state: &mut CpuState,
        memory: &mut NativeOperand,
    ) -> Result<(), Exception>;
}

/// A stand-in for the memory operand of an instruction that runs on the host.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct NativeOperand(pub [u8; 512]);
