//! Guests of a few instructions, for tests that need a guest but no operating system in it.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// A flat multiboot kernel that sleeps until it is ended: `hlt; jmp .-1`.
#[must_use]
pub fn sleeper() -> Vec<u8> {
    multiboot(&[0xf4, 0xeb, 0xfd])
}

/// A flat multiboot kernel that writes `ready` to its first serial port and then each byte that it
/// reads there: `mov dx, 0x3f8`, `mov al, 'r'; out dx, al` and so on; `again: mov dx, 0x3fd;
/// in al, dx; test al, 1; jz again; mov dx, 0x3f8; in al, dx; out dx, al; jmp again`.
#[must_use]
pub fn echo() -> Vec<u8> {
    const ECHO: &[u8] = &[
        0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec, 0xee,
        0xeb, 0xef,
    ];
    let ready = b"ready\n".iter().flat_map(|&byte| [0xb0, byte, 0xee]);
    multiboot(
        &[0x66, 0xba, 0xf8, 0x03]
            .into_iter()
            .chain(ready)
            .chain(ECHO.iter().copied())
            .collect::<Vec<_>>(),
    )
}

/// A flat multiboot kernel that counts in EAX: `inc eax; nop; jmp .-2`.
#[must_use]
pub fn counter() -> Vec<u8> {
    multiboot(&[0x40, 0x90, 0xeb, 0xfc])
}

/// A flat multiboot kernel that goes to 64-bit mode, where it for ever makes a little loop, calls a
/// function and asks for CPUID, which no processor of the host answers for it.
///
/// # Panics
///
/// If this module has a mistake.
#[must_use]
pub fn busy64() -> Vec<u8> {
    multiboot(&go_to_64_bits().expect("instructions that exist"))
}

fn go_to_64_bits() -> Result<Vec<u8>, IcedError> {
    /// Page tables, in RAM that nothing else is in.
    const PML4: u32 = 0x7_0000;
    const PDPT: u32 = PML4 + 0x1000;
    const STACK: u32 = 0x8_0000;
    const EFER: u32 = 0xc000_0080;
    let mut a = CodeAssembler::new(32)?;
    // One page of 1 GiB, the same at both ends (SDM Vol. 3, 4.5.4; the flags are P, R/W, PS).
    a.mov(edi, PML4)?;
    a.xor(eax, eax)?;
    a.mov(ecx, 0x2000 / 4)?;
    a.rep().stosd()?;
    a.mov(dword_ptr(PML4), PDPT | 3)?;
    a.mov(dword_ptr(PDPT), 0x83)?;
    // PAE, the tables, LME, and paging at last (SDM Vol. 3, 10.8.5).
    a.mov(eax, 1 << 5)?;
    a.mov(cr4, eax)?;
    a.mov(eax, PML4)?;
    a.mov(cr3, eax)?;
    a.mov(ecx, EFER)?;
    a.rdmsr()?;
    a.or(eax, 1 << 8)?;
    a.wrmsr()?;
    a.mov(eax, cr0)?;
    a.or(eax, 1 << 31)?;
    a.mov(cr0, eax)?;
    // A descriptor table behind the code: null and 64-bit code. Its address is on the stack then.
    a.mov(esp, STACK)?;
    let mut tables = a.create_label();
    a.call(tables)?;
    a.dq(&[0, 0x00af_9b00_0000_ffff])?;
    a.set_label(&mut tables)?;
    a.pop(eax)?;
    a.sub(esp, 6)?;
    a.mov(word_ptr(esp), 15)?;
    a.mov(dword_ptr(esp + 2), eax)?;
    a.lgdt(fword_ptr(esp))?;
    a.mov(esp, STACK)?;
    // A far return to what follows it.
    let mut far = a.create_label();
    a.push(8)?;
    a.call(far)?;
    let mut long = CodeAssembler::new(64)?;
    let (mut again, mut spin) = (long.create_label(), long.create_label());
    let mut function = long.create_label();
    long.set_label(&mut again)?;
    long.mov(ecx, 1000)?;
    long.set_label(&mut spin)?;
    long.dec(ecx)?;
    long.jnz(spin)?;
    long.call(function)?;
    long.xor(eax, eax)?;
    long.cpuid()?;
    long.jmp(again)?;
    long.set_label(&mut function)?;
    long.mov(rax, qword_ptr(PML4))?;
    long.ret()?;
    a.db(&long.assemble(0)?)?;
    a.set_label(&mut far)?;
    a.retf()?;
    a.assemble(START.into())
}

/// Where the kernels' code begins.
pub(crate) const START: u32 = LOAD + HEADER;
const LOAD: u32 = 0x10_0000;
const HEADER: u32 = 32;

/// A flat multiboot kernel of this 32-bit code (Multiboot 0.6.96, 3.1: header with addresses). It
/// is loaded at 1 MiB, header and all.
#[must_use]
pub fn multiboot(code: &[u8]) -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    const HAS_ADDRESSES: u32 = 1 << 16;
    let checksum = MAGIC.wrapping_add(HAS_ADDRESSES).wrapping_neg();
    // Where the header is, where to load, until where (0: all), no bss, where to begin.
    let header = [MAGIC, HAS_ADDRESSES, checksum, LOAD, LOAD, 0, 0, START];
    [header.map(u32::to_le_bytes).as_flattened(), code].concat()
}
