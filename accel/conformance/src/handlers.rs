//! Generic handlers for all vectors in all code sizes. They record what they see and return to
//! where the case says, or end it.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::guest::Guest;
use crate::layout::{self, eoi, port, sel};
use crate::start::Start;
use crate::tables::{access, gate};

type Result<T = ()> = std::result::Result<T, IcedError>;

/// Vectors whose frames hold an error code.
const WITH_CODE: [u8; 9] = [8, 10, 11, 12, 13, 14, 17, 21, 29];

/// Writes handlers and tables of all code sizes.
pub fn install(guest: &mut Guest) {
    let built = (|| {
        let (code, stubs) = handlers16()?;
        guest.write(layout::HANDLERS16, &code);
        if matches!(guest.start, Start::Real | Start::Reset) {
            guest.handlers = stubs.clone();
        }
        for (vector, stub) in (0..).zip(stubs) {
            guest.write32(layout::IVT + vector * 4, stub as u32);
        }
        let (code, stubs) = handlers32()?;
        guest.write(layout::HANDLERS32, &code);
        if !guest.start.is_long() && guest.handlers.is_empty() {
            guest.handlers = stubs.clone();
        }
        for (vector, stub) in (0..).zip(stubs) {
            let gate = gate(sel::KCODE32, stub, access::INTERRUPT_GATE, 0);
            guest.write64(layout::IDT32 + vector * 8, gate);
        }
        let (code, stubs) = handlers64()?;
        guest.write(layout::HANDLERS64, &code);
        if guest.start.is_long() {
            guest.handlers = stubs.clone();
        }
        for (vector, stub) in (0..).zip(stubs) {
            let gate = gate(sel::KCODE64, stub, access::INTERRUPT_GATE, 0);
            guest.write64(layout::IDT64 + vector * 16, gate);
        }
        Result::Ok(())
    })();
    built.expect("the generic handlers can be assembled");
}

/// A stub for each vector that pushes what the processor did not, and the vector, and goes to
/// `common`.
fn stubs(a: &mut CodeAssembler, common: CodeLabel, codes: bool) -> Result<Vec<CodeLabel>> {
    (0..=255u8)
        .map(|vector| {
            let mut label = a.create_label();
            a.set_label(&mut label)?;
            if codes && !WITH_CODE.contains(&vector) {
                a.push(0)?;
            }
            a.push(i32::from(vector))?;
            a.jmp(common)?;
            Ok(label)
        })
        .collect()
}

fn assemble(mut a: CodeAssembler, base: u64, labels: &[CodeLabel]) -> Result<(Vec<u8>, Vec<u64>)> {
    use iced_x86::BlockEncoderOptions;
    let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let result = a.assemble_options(base, options)?;
    let places = labels.iter().map(|label| result.label_ip(label)).collect::<Result<_>>()?;
    let code = result.inner.code_buffer;
    assert!(code.len() <= 0x1000, "handlers fit their page");
    Ok((code, places))
}

fn handlers64() -> Result<(Vec<u8>, Vec<u64>)> {
    let mut a = CodeAssembler::new(64)?;
    let mut common = a.create_label();
    let labels = stubs(&mut a, common, true)?;
    a.set_label(&mut common)?;
    a.push(rax)?;
    a.push(rcx)?;
    a.push(rdx)?;
    // From the vector on, the frame is what the record wants.
    for i in 0..7 {
        a.mov(rax, qword_ptr(rsp + (24 + i * 8)))?;
        a.mov(qword_ptr(layout::RECORD + i as u64 * 8), rax)?;
    }
    a.mov(rax, cr2)?;
    a.mov(qword_ptr(layout::RECORD + 56), rax)?;
    let mut not_debug = a.create_label();
    a.cmp(qword_ptr(rsp + 24), 1)?;
    a.jne(not_debug)?;
    a.mov(rax, dr6)?;
    a.mov(qword_ptr(layout::RECORD + 64), rax)?;
    a.mov(rax, qword_ptr(layout::DEBUG_FLAGS))?;
    a.or(qword_ptr(rsp + 56), rax)?;
    a.set_label(&mut not_debug)?;
    a.out(u32::from(port::RECORD), al)?;

    let mut done = a.create_label();
    end_of_interrupt64(&mut a, done)?;
    a.set_label(&mut done)?;

    let (mut resume, mut back) = (a.create_label(), a.create_label());
    a.mov(rax, qword_ptr(layout::RECOVER))?;
    a.test(rax, rax)?;
    a.je(resume)?;
    a.mov(qword_ptr(rsp + 40), rax)?;
    a.mov(qword_ptr(layout::RECOVER), 0)?;
    a.jmp(back)?;
    a.set_label(&mut resume)?;
    a.mov(rax, qword_ptr(rsp + 24))?;
    a.bt(qword_ptr(layout::RESUME), rax)?;
    a.jb(back)?;
    stop(&mut a)?;
    a.set_label(&mut back)?;
    a.pop(rdx)?;
    a.pop(rcx)?;
    a.pop(rax)?;
    a.add(rsp, 16)?;
    a.iretq()?;
    assemble(a, layout::HANDLERS64, &labels)
}

fn end_of_interrupt64(a: &mut CodeAssembler, done: CodeLabel) -> Result {
    let (mut not_x2apic, mut not_xapic) = (a.create_label(), a.create_label());
    a.cmp(qword_ptr(rsp + 24), 32)?;
    a.jb(done)?;
    a.mov(rax, qword_ptr(layout::EOI))?;
    a.cmp(eax, eoi::X2APIC as i32)?;
    a.jne(not_x2apic)?;
    a.mov(ecx, 0x80bu32)?;
    a.xor(eax, eax)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    a.jmp(done)?;
    a.set_label(&mut not_x2apic)?;
    a.cmp(eax, eoi::XAPIC as i32)?;
    a.jne(not_xapic)?;
    a.mov(eax, 0xfee0_00b0u32)?;
    a.mov(dword_ptr(rax), 0)?;
    a.jmp(done)?;
    a.set_label(&mut not_xapic)?;
    a.cmp(eax, eoi::PIC as i32)?;
    a.jne(done)?;
    end_at_pic(a)
}

fn end_at_pic(a: &mut CodeAssembler) -> Result {
    a.mov(al, 0x20)?;
    a.out(0xa0, al)?;
    a.out(0x20, al)
}

fn stop(a: &mut CodeAssembler) -> Result {
    let mut here = a.create_label();
    a.out(u32::from(port::EXIT), al)?;
    a.set_label(&mut here)?;
    a.jmp(here)
}

fn handlers32() -> Result<(Vec<u8>, Vec<u64>)> {
    let mut a = CodeAssembler::new(32)?;
    let mut common = a.create_label();
    let labels = stubs(&mut a, common, true)?;
    a.set_label(&mut common)?;
    a.push(eax)?;
    a.push(ecx)?;
    a.push(ds)?;
    a.mov(eax, u32::from(sel::KDATA))?;
    a.mov(ds, eax)?;
    for i in 0..7 {
        a.mov(eax, dword_ptr(esp + (12 + i * 4)))?;
        a.mov(dword_ptr(layout::RECORD + i as u64 * 8), eax)?;
    }
    a.mov(eax, cr2)?;
    a.mov(dword_ptr(layout::RECORD + 56), eax)?;
    let mut not_debug = a.create_label();
    a.cmp(dword_ptr(esp + 12), 1)?;
    a.jne(not_debug)?;
    a.mov(eax, dr6)?;
    a.mov(dword_ptr(layout::RECORD + 64), eax)?;
    a.mov(eax, dword_ptr(layout::DEBUG_FLAGS))?;
    a.or(dword_ptr(esp + 28), eax)?;
    a.set_label(&mut not_debug)?;
    a.out(u32::from(port::RECORD), al)?;

    let mut done = a.create_label();
    a.cmp(dword_ptr(esp + 12), 32)?;
    a.jb(done)?;
    a.cmp(dword_ptr(layout::EOI), eoi::PIC as i32)?;
    a.jne(done)?;
    end_at_pic(&mut a)?;
    a.set_label(&mut done)?;

    let (mut resume, mut back) = (a.create_label(), a.create_label());
    a.mov(eax, dword_ptr(layout::RECOVER))?;
    a.test(eax, eax)?;
    a.je(resume)?;
    a.mov(dword_ptr(esp + 20), eax)?;
    a.mov(dword_ptr(layout::RECOVER), 0)?;
    a.jmp(back)?;
    a.set_label(&mut resume)?;
    a.mov(eax, dword_ptr(esp + 12))?;
    a.bt(dword_ptr(layout::RESUME), eax)?;
    a.jb(back)?;
    stop(&mut a)?;
    a.set_label(&mut back)?;
    a.pop(ds)?;
    a.pop(ecx)?;
    a.pop(eax)?;
    a.add(esp, 8)?;
    a.iretd()?;
    assemble(a, layout::HANDLERS32, &labels)
}

fn handlers16() -> Result<(Vec<u8>, Vec<u64>)> {
    let mut a = CodeAssembler::new(16)?;
    let mut common = a.create_label();
    let labels = stubs(&mut a, common, false)?;
    a.set_label(&mut common)?;
    a.push(eax)?;
    a.push(bp)?;
    a.push(ds)?;
    a.mov(bp, sp)?;
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    // Vector; then IP, CS and flags.
    a.mov(ax, word_ptr(bp + 8))?;
    a.mov(word_ptr(layout::RECORD as i32), ax)?;
    for i in 0..3 {
        a.mov(ax, word_ptr(bp + (10 + i * 2)))?;
        a.mov(word_ptr(layout::RECORD as i32 + 16 + i * 8), ax)?;
    }
    a.out(u32::from(port::RECORD), al)?;

    let (mut done, mut resume, mut back) = (a.create_label(), a.create_label(), a.create_label());
    a.cmp(word_ptr(bp + 8), 32)?;
    a.jb(done)?;
    a.cmp(word_ptr(layout::EOI as i32), eoi::PIC as i32)?;
    a.jne(done)?;
    end_at_pic(&mut a)?;
    a.set_label(&mut done)?;
    a.mov(ax, word_ptr(layout::RECOVER as i32))?;
    a.test(ax, ax)?;
    a.je(resume)?;
    a.mov(word_ptr(bp + 10), ax)?;
    a.mov(word_ptr(layout::RECOVER as i32), 0)?;
    a.jmp(back)?;
    a.set_label(&mut resume)?;
    a.mov(ax, word_ptr(bp + 8))?;
    a.bt(word_ptr(layout::RESUME as i32), ax)?;
    a.jb(back)?;
    stop(&mut a)?;
    a.set_label(&mut back)?;
    a.pop(ds)?;
    a.pop(bp)?;
    a.pop(eax)?;
    a.add(sp, 2)?;
    a.iret()?;
    assemble(a, layout::HANDLERS16, &labels)
}
