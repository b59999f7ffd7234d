//! Blocks that access the guest's memory without a check, because protection keys hide all else.

mod common;

use checker::{Block, Checker, Problem, Stubs};
use common::*;
use iced_x86::code_asm::*;
use iced_x86::{Decoder, DecoderOptions, Register};

/// No code is there.
const NOWHERE: u64 = u64::MAX;

/// Checks a block as one for mirrored memory; with what lies beside the context as its sites.
fn check(body: impl FnOnce(&mut Builder) -> Built) -> Result<(), Problem> {
    let code = build(body);
    let sites: Vec<u32> = Decoder::with_ip(64, &code.bytes, 0, DecoderOptions::NONE)
        .into_iter()
        .filter(|insn| {
            !matches!(insn.memory_base(), Register::None | Register::RSP) || insn.has_rep_prefix()
        })
        .filter(|insn| insn.code().mnemonic() != iced_x86::Mnemonic::Lea)
        .map(|insn| insn.ip() as u32)
        .collect();
    check_with(&code, &sites)
}

fn check_with(code: &Code, sites: &[u32]) -> Result<(), Problem> {
    let block = Block {
        mirrored: Some(sites),
        flags: 0,
        stubs: Stubs {
            crossing: NOWHERE,
            load_vectors: NOWHERE,
            misses: [NOWHERE; 2],
            strings: &[],
            ..code.block().stubs
        },
        ..code.block()
    };
    Checker::new(layout()).check(&block).map_err(|violation| violation.problem)
}

#[test]
fn the_programs_own_addresses_are_accepted() {
    let verdict = check(|b| {
        b.a.mov(ptr(rdx), rcx)?;
        b.a.mov(rcx, ptr(rsi + rdi * 4 + 0x1234))?;
        b.a.lock().cmpxchg(ptr(rdi), rsi)?;
        // Vector registers are live.
        b.a.vaddps(zmm1, zmm2, ptr(rsi + 64))?;
        b.a.mov(rbx, context(FS_BASE))?;
        b.a.mov(rcx, ptr(rbx + 0x28))?;
        b.a.mov(context(SPILL), rcx)
    });
    assert_eq!(verdict, Ok(()));
}

#[test]
fn repeated_string_instructions_are_accepted() {
    let verdict = check(|b| {
        b.a.mov(rax, r8)?;
        b.a.rep().stosq()?;
        b.a.rep().movsb()
    });
    assert_eq!(verdict, Ok(()));
    for refused in [[0xf2, 0xaa, 0x90], [0xf3, 0x66, 0xab], [0xf3, 0xac, 0x90], [0xaa, 0x90, 0x90]]
    {
        let verdict = check(|b| b.a.db(&refused));
        assert_eq!(verdict, Err(Problem::NotAllowed), "{refused:x?}");
    }
    let code = build(|b| b.a.rep().movsq());
    assert_eq!(check_with(&code, &[]), Err(Problem::Unchecked));
}

#[test]
fn an_access_whose_fault_nobody_knows_is_refused() {
    let code = build(|b| b.a.mov(ptr(rdx), rcx));
    assert_eq!(check_with(&code, &[]), Err(Problem::Unchecked));
    // One byte beside it.
    let at = code.bytes.windows(3).position(|bytes| bytes == [0x48, 0x89, 0x0a]);
    let at = at.expect("the store is there") as u32;
    assert_eq!(check_with(&code, &[at + 1]), Err(Problem::Unchecked));
    assert_eq!(check_with(&code, &[at]), Ok(()));
}

#[test]
fn what_is_not_mirrored_needs_a_check() {
    let code = build(|b| b.a.mov(ptr(rdx), rcx));
    assert!(code.check().is_err());
}

macro_rules! refused {
    ($($name:ident: $problem:ident, |$b:ident| $body:block)*) => {
        $(#[test]
        fn $name() {
            assert_eq!(check(|$b| { $body Ok(()) }), Err(Problem::$problem));
        })*
    };
}

refused! {
    a_segment_of_the_hosts: Unchecked, |b| {
        b.a.mov(rcx, ptr(rdx).fs())?;
    }
    a_segment_of_the_hosts_for_a_store: Unchecked, |b| {
        b.a.mov(ptr(rdx).gs(), rcx)?;
    }
    an_address_of_32_bits: Unchecked, |b| {
        b.a.mov(rcx, ptr(edx))?;
    }
    flags_are_changed: Context, |b| {
        b.a.or(dword_ptr(context(RFLAGS)), 0x400)?;
    }
    interrupts_are_allowed: Context, |b| {
        b.a.or(dword_ptr(context(RFLAGS)), 0x200)?;
    }
    a_segment_base_is_changed: Context, |b| {
        b.a.mov(context(FS_BASE), rcx)?;
    }
    attention_is_turned_away: Context, |b| {
        b.a.mov(dword_ptr(context(ATTENTION)), ecx)?;
    }
    the_stack_is_used: NotAllowed, |b| {
        b.a.push(rcx)?;
    }
    what_lies_below_the_stack_pointer_is_read: Context, |b| {
        b.a.mov(rcx, ptr(rsp - 8))?;
    }
    the_context_is_indexed: Index, |b| {
        b.a.mov(rcx, table(rdx, T.jump))?;
    }
}

/// Instructions that would unlock what is locked, or leave by ways of their own.
#[test]
fn instructions_that_open_doors_are_refused() {
    for (name, bytes) in [
        ("wrpkru", &[0x0f, 0x01, 0xef][..]),
        ("xrstor", &[0x0f, 0xae, 0x2a]),
        ("wrfsbase", &[0xf3, 0x48, 0x0f, 0xae, 0xd1]),
        ("wrgsbase", &[0xf3, 0x48, 0x0f, 0xae, 0xd9]),
        ("syscall", &[0x0f, 0x05]),
        ("sysenter", &[0x0f, 0x34]),
        ("int 80h", &[0xcd, 0x80]),
        ("ret", &[0xc3]),
        ("jmp rcx", &[0xff, 0xe1]),
        ("call to the loader of vector registers", &[0xe8, 0, 0, 0, 0]),
    ] {
        assert!(check(|b| b.a.db(bytes)).is_err(), "{name}");
    }
}
