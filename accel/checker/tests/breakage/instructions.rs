//! Instructions that have no place in translated code.

use crate::common::*;
use crate::make_live;
use checker::Problem;
use iced_x86::Decoder;
use iced_x86::code_asm::*;

refused! {
    the_stack_pointer_is_read: StackPointer, |b| { b.a.mov(rcx, rsp)?; }
    the_stack_pointer_is_written: StackPointer, |b| { b.a.mov(rsp, rcx)?; }
    the_stack_pointer_is_moved: StackPointer, |b| { b.a.add(rsp, 8)?; }
    the_stack_pointer_is_moved_by_lea: StackPointer, |b| { b.a.lea(rsp, ptr(rsp + 8))?; }
    the_stack_pointers_low_byte: StackPointer, |b| { b.a.mov(spl, cl)?; }
    memory_at_the_stack_pointer: Context, |b| { b.a.mov(rcx, ptr(rsp + 8))?; }
    the_stack_pointer_is_exchanged: StackPointer, |b| { b.a.xchg(rsp, rcx)?; }
    the_stack_pointer_is_exchanged_with_memory: StackPointer, |b| {
        b.a.xchg(context(GPR), rsp)?;
    }
    the_stack_pointer_is_stored: StackPointer, |b| { b.a.mov(context(GPR), rsp)?; }
    the_stack_pointer_is_stored_in_guest_memory: StackPointer, |b| {
        checked(b)?;
        b.a.mov(ptr(rbx), rsp)?;
    }
    the_stack_pointer_is_loaded: StackPointer, |b| { b.a.mov(rsp, context(GPR))?; }
    the_stack_pointer_is_loaded_from_guest_memory: StackPointer, |b| {
        checked(b)?;
        b.a.mov(rsp, ptr(rbx))?;
    }
    the_stack_pointers_lower_half: StackPointer, |b| { b.a.mov(esp, ecx)?; }
    the_stack_pointers_lower_half_is_read: StackPointer, |b| { b.a.mov(ecx, esp)?; }
    the_stack_pointers_lower_half_is_cleared: StackPointer, |b| { b.a.xor(esp, esp)?; }
    the_stack_pointers_word: StackPointer, |b| { b.a.inc(sp)?; }
    the_stack_pointer_is_moved_conditionally: StackPointer, |b| { b.a.cmove(rsp, rcx)?; }
    the_stack_pointer_is_rotated: StackPointer, |b| { b.a.rorx(rsp, rcx, 11)?; }
    the_stack_pointer_is_rotated_away: StackPointer, |b| { b.a.rorx(rbp, rsp, 11)?; }
    the_stack_pointer_is_a_product: StackPointer, |b| { b.a.mulx(rsp, rcx, rsi)?; }
    the_stack_pointer_is_swapped: StackPointer, |b| { b.a.bswap(rsp)?; }
    the_stack_pointer_is_exchanged_and_added: StackPointer, |b| { b.a.xadd(rcx, rsp)?; }
    the_stack_pointer_is_compared: StackPointer, |b| { b.a.cmp(rsp, rcx)?; }
    the_stack_pointer_is_tested: StackPointer, |b| { b.a.test(rsp, rsp)?; }
    the_stack_pointer_is_a_bit_offset: StackPointer, |b| { b.a.bt(context(GPR), rsp)?; }
    the_stack_pointer_is_set_by_a_flag: StackPointer, |b| { b.a.setne(spl)?; }
    the_stack_pointer_comes_from_a_vector: StackPointer, |b| {
        b.a.call(LOAD_VECTORS)?;
        b.a.movq(rsp, xmm0)?;
    }
    the_stack_pointer_goes_to_a_vector: StackPointer, |b| {
        b.a.call(LOAD_VECTORS)?;
        b.a.movq(xmm0, rsp)?;
    }
    the_stack_pointer_comes_from_a_mask: StackPointer, |b| {
        b.a.call(LOAD_VECTORS)?;
        b.a.kmovq(rsp, k1)?;
    }
    the_stack_pointer_counts: StackPointer, |b| { b.a.popcnt(rsp, context(GPR))?; }
    the_time_stamp_counter: NotAllowed, |b| { b.a.rdtsc()?; }
}

/// Instructions that have no place in translated code, whatever their operands hold. RBX is a
/// checked address before each.
const FORBIDDEN: &[(&str, &[u8])] = &[
    // The stack.
    ("push rax", &[0x50]),
    ("push imm", &[0x6a, 0x01]),
    ("push imm of 32 bits", &[0x68, 7, 0, 0, 0]),
    ("push [rbx]", &[0xff, 0x33]),
    ("push rsp", &[0x54]),
    ("push [rsp + 32]", &[0xff, 0x74, 0x24, 0x20]),
    ("pop rsp", &[0x5c]),
    ("pop [rsp + 32]", &[0x8f, 0x44, 0x24, 0x20]),
    ("popfd", &[0x66, 0x9d]),
    ("enter of level 1", &[0xc8, 0, 0, 1]),
    ("call [rsp + 32]", &[0xff, 0x54, 0x24, 0x20]),
    ("call [rbx]", &[0xff, 0x13]),
    ("push fs", &[0x0f, 0xa0]),
    ("pop rax", &[0x58]),
    ("pop [rbx]", &[0x8f, 0x03]),
    ("pop gs", &[0x0f, 0xa9]),
    ("pushfq", &[0x9c]),
    ("popfq", &[0x9d]),
    ("enter", &[0xc8, 0x10, 0x00, 0x00]),
    ("leave", &[0xc9]),
    ("ret", &[0xc3]),
    ("ret imm", &[0xc2, 0x08, 0x00]),
    ("retf", &[0xcb]),
    ("iretq", &[0x48, 0xcf]),
    // Strings and other operands that are not named.
    ("movsb", &[0xa4]),
    ("rep movsq", &[0xf3, 0x48, 0xa5]),
    ("stosb", &[0xaa]),
    ("rep stosq", &[0xf3, 0x48, 0xab]),
    ("lodsb", &[0xac]),
    ("scasb", &[0xae]),
    ("cmpsb", &[0xa6]),
    ("insb", &[0x6c]),
    ("outsb", &[0x6e]),
    ("xlatb", &[0xd7]),
    ("maskmovdqu", &[0x66, 0x0f, 0xf7, 0xc1]),
    ("vmaskmovdqu", &[0xc5, 0xf9, 0xf7, 0xc1]),
    ("maskmovq", &[0x0f, 0xf7, 0xc1]),
    ("movdir64b", &[0x66, 0x0f, 0x38, 0xf8, 0x03]),
    ("monitor", &[0x0f, 0x01, 0xc8]),
    ("clzero", &[0x0f, 0x01, 0xfc]),
    // The system.
    ("syscall", &[0x0f, 0x05]),
    ("sysret", &[0x48, 0x0f, 0x07]),
    ("sysenter", &[0x0f, 0x34]),
    ("sysexit", &[0x0f, 0x35]),
    ("int 80h", &[0xcd, 0x80]),
    ("int3", &[0xcc]),
    ("int1", &[0xf1]),
    ("ud2", &[0x0f, 0x0b]),
    ("hlt", &[0xf4]),
    ("cli", &[0xfa]),
    ("sti", &[0xfb]),
    ("in al, dx", &[0xec]),
    ("in al, imm", &[0xe4, 0x60]),
    ("out dx, al", &[0xee]),
    ("out imm, al", &[0xe6, 0x60]),
    ("vmcall", &[0x0f, 0x01, 0xc1]),
    ("vmmcall", &[0x0f, 0x01, 0xd9]),
    ("cpuid", &[0x0f, 0xa2]),
    ("rdtscp", &[0x0f, 0x01, 0xf9]),
    ("rdpmc", &[0x0f, 0x33]),
    ("rdpid", &[0xf3, 0x0f, 0xc7, 0xf9]),
    ("rdrand", &[0x48, 0x0f, 0xc7, 0xf0]),
    ("rdseed", &[0x48, 0x0f, 0xc7, 0xf8]),
    ("rdmsr", &[0x0f, 0x32]),
    ("wrmsr", &[0x0f, 0x30]),
    ("lgdt", &[0x0f, 0x01, 0x13]),
    ("lidt", &[0x0f, 0x01, 0x1b]),
    ("lldt", &[0x0f, 0x00, 0xd1]),
    ("ltr", &[0x0f, 0x00, 0xd9]),
    ("sgdt", &[0x0f, 0x01, 0x03]),
    ("sidt", &[0x0f, 0x01, 0x0b]),
    ("sldt", &[0x0f, 0x00, 0xc1]),
    ("str", &[0x0f, 0x00, 0xc9]),
    ("smsw", &[0x0f, 0x01, 0xe1]),
    ("lmsw", &[0x0f, 0x01, 0xf1]),
    ("verr", &[0x0f, 0x00, 0xe1]),
    ("verw", &[0x0f, 0x00, 0xe9]),
    ("lar", &[0x0f, 0x02, 0xc1]),
    ("lsl", &[0x0f, 0x03, 0xc1]),
    ("clts", &[0x0f, 0x06]),
    ("invd", &[0x0f, 0x08]),
    ("wbinvd", &[0x0f, 0x09]),
    ("invlpg", &[0x0f, 0x01, 0x3b]),
    ("mov cr0", &[0x0f, 0x22, 0xc0]),
    ("mov from cr3", &[0x0f, 0x20, 0xd8]),
    ("mov dr7", &[0x0f, 0x23, 0xf8]),
    ("swapgs", &[0x0f, 0x01, 0xf8]),
    ("wrpkru", &[0x0f, 0x01, 0xef]),
    ("xsetbv", &[0x0f, 0x01, 0xd1]),
    ("xgetbv", &[0x0f, 0x01, 0xd0]),
    ("serialize", &[0x0f, 0x01, 0xe8]),
    ("tpause", &[0x66, 0x0f, 0xae, 0xf1]),
    // Segments.
    ("mov ds, ax", &[0x8e, 0xd8]),
    ("mov gs, ax", &[0x8e, 0xe8]),
    ("mov ax, fs", &[0x8c, 0xe0]),
    ("lss", &[0x0f, 0xb2, 0x03]),
    ("lgs", &[0x0f, 0xb5, 0x03]),
    ("wrfsbase", &[0xf3, 0x48, 0x0f, 0xae, 0xd1]),
    ("wrgsbase", &[0xf3, 0x48, 0x0f, 0xae, 0xd9]),
    ("rdfsbase", &[0xf3, 0x48, 0x0f, 0xae, 0xc1]),
    ("rdgsbase", &[0xf3, 0x48, 0x0f, 0xae, 0xc9]),
    // Flags that are the host's.
    ("std", &[0xfd]),
    ("cld", &[0xfc]),
    ("stac", &[0x0f, 0x01, 0xcb]),
    ("clac", &[0x0f, 0x01, 0xca]),
    // Floating-point state and its control.
    ("fld1", &[0xd9, 0xe8]),
    ("fldcw", &[0xd9, 0x2b]),
    ("fnstcw", &[0xd9, 0x3b]),
    ("fninit", &[0xdb, 0xe3]),
    ("fwait", &[0x9b]),
    ("emms", &[0x0f, 0x77]),
    ("paddb mm", &[0x0f, 0xfc, 0xc1]),
    ("movq2dq", &[0xf3, 0x0f, 0xd6, 0xc1]),
    ("cvtpi2ps", &[0x0f, 0x2a, 0xc1]),
    ("ldmxcsr", &[0x0f, 0xae, 0x13]),
    ("stmxcsr", &[0x0f, 0xae, 0x1b]),
    ("vldmxcsr", &[0xc5, 0xf8, 0xae, 0x13]),
    ("fxsave", &[0x0f, 0xae, 0x03]),
    ("fxrstor", &[0x0f, 0xae, 0x0b]),
    ("xsave", &[0x0f, 0xae, 0x23]),
    ("xsaveopt", &[0x0f, 0xae, 0x33]),
    ("xrstor", &[0x0f, 0xae, 0x2b]),
    // Caches and transactions.
    ("clflush", &[0x0f, 0xae, 0x3b]),
    ("clflushopt", &[0x66, 0x0f, 0xae, 0x3b]),
    ("prefetcht0", &[0x0f, 0x18, 0x0b]),
    ("xbegin", &[0xc7, 0xf8, 0, 0, 0, 0]),
    ("xabort", &[0xc6, 0xf8, 0x00]),
    ("xend", &[0x0f, 0x01, 0xd5]),
    ("lock that is elided", &[0xf2, 0xf0, 0x48, 0x01, 0x0b]),
    ("store that releases", &[0xf3, 0x48, 0x89, 0x0b]),
    // Tiles.
    ("tilerelease", &[0xc4, 0xe2, 0x78, 0x49, 0xc0]),
    ("ldtilecfg", &[0xc4, 0xe2, 0x78, 0x49, 0x03]),
];

#[test]
fn forbidden_instructions_are_refused_one_by_one() {
    for (name, bytes) in FORBIDDEN {
        let code = build(|b| {
            b.a.call(LOAD_VECTORS)?;
            checked_with(b, |c| c.limit = 0)?;
            b.a.db(bytes)
        });
        let Err(violation) = code.check() else { panic!("{name} is accepted") };
        let problem = violation.problem;
        assert!(
            matches!(problem, Problem::NotAllowed | Problem::Undecodable),
            "{name} is refused for another reason: {violation}"
        );
    }
}

#[test]
fn every_cut_is_refused() {
    let whole = build(|b| {
        make_live(b)?;
        checked(b)?;
        b.a.mov(ptr(rbx), rcx)?;
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        jump(b)
    });
    whole.check().unwrap();
    for length in 0..whole.bytes.len() {
        let mut cut = whole.clone();
        cut.bytes.truncate(length);
        assert!(cut.check().is_err(), "accepted though cut to {length} bytes");
    }
}

#[test]
fn an_instruction_that_does_not_exist_is_refused() {
    for bytes in [&[0x06][..], &[0x0f, 0x04], &[0x62, 0, 0, 0, 0, 0], &[0xf0, 0x48, 0x8b, 0xc1]] {
        let code = build(|b| b.a.db(bytes));
        assert_refused(&code, Problem::Undecodable);
    }
}

#[test]
fn entries_into_the_middle_are_refused() {
    let whole = build(|b| b.a.mov(rcx, rdx));
    for at in [1, whole.near + 1, whole.bytes.len() as u32, u32::MAX] {
        let entry = |change: fn(&mut Code, u32)| {
            let mut code = whole.clone();
            change(&mut code, at);
            assert_refused(&code, Problem::EntryIntoMiddle);
        };
        entry(|code, at| code.near = at);
        entry(|code, at| code.resumes.push(at));
        entry(|code, at| code.retries.push(checker::Retry { exit: EXITS.start, at }));
    }
}

#[test]
fn execution_that_falls_off_the_end_is_refused() {
    for bytes in [&[0x90][..], &[0x74, 0xfe], &[0x74, 0x00, 0x90], &[0xeb, 0x00, 0x90]] {
        let code = Code {
            bytes: bytes.to_vec(),
            near: 0,
            resumes: Vec::new(),
            retries: Vec::new(),
            links: Vec::new(),
        };
        assert_refused(&code, Problem::FallsOff);
    }
}

#[test]
fn links_that_are_no_distances_are_refused() {
    let code = build(|b| {
        b.a.test(rdx, rdx)?;
        b.a.je(OTHER)?;
        b.a.mov(rcx, 0xe9e9_e9e9_e9e9_e9e9u64)
    });
    code.check().unwrap();
    let distances: Vec<u32> = Decoder::with_ip(64, &code.bytes, 0, 0)
        .iter()
        .filter(|insn| insn.is_jcc_near() || insn.is_jmp_near())
        .map(|insn| insn.next_ip() as u32 - 4)
        .collect();
    assert_eq!(distances.len(), 3);
    for at in (0..code.bytes.len() as u32 + 8).chain([u32::MAX]) {
        let mut linked = code.clone();
        linked.links.push(at);
        match distances.contains(&at) {
            true => linked.check().unwrap(),
            false => assert_refused(&linked, Problem::NoLink),
        }
    }
}

#[test]
fn a_view_without_tables_is_refused() {
    let code = build(|b| b.a.mov(rcx, rdx));
    let mut block = code.block();
    block.view = 3;
    let violation = checker::check(&block, &layout()).unwrap_err();
    assert_eq!(violation.problem, Problem::NoSuchView);
}

#[test]
fn a_field_that_another_view_may_write_is_refused() {
    let code = build(|b| b.a.mov(context(FS_BASE + 8), rcx));
    for (view, is_accepted) in [(0, false), (1, true), (2, true)] {
        let mut block = code.block();
        block.view = view;
        let result = checker::check(&block, &layout()).map_err(|violation| violation.problem);
        assert_eq!(result, if is_accepted { Ok(()) } else { Err(Problem::Context) });
    }
}
