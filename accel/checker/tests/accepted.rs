//! Code in other shapes than the translator's, which is as safe.

mod common;

use common::*;
use iced_x86::code_asm::*;

macro_rules! accepted {
    ($($name:ident: |$b:ident| $body:block)*) => {
        $(#[test]
        fn $name() {
            if let Err(violation) = build(|$b| { $body Ok(()) }).check() {
                panic!("{violation}");
            }
        })*
    };
}

// What 32-bit code becomes.
accepted! {
    an_address_of_32_bits: |b| {
        b.a.lea(ebx, ptr(rcx + 8))?;
        CHECK.emit(b)?;
        b.a.mov(ptr(rbx + 4), ecx)?;
    }
    a_register_cut_to_32_bits: |b| {
        b.a.mov(ebx, r10d)?;
        CHECK.emit(b)?;
        b.a.mov(ptr(rbx), ecx)?;
        b.a.mov(ptr(rbx + 4), edx)?;
    }
    a_segment_with_a_base_of_32_bits: |b| {
        b.a.lea(ebx, ptr(rcx + 8))?;
        b.a.cmp(dword_ptr(context(LIMITED)), 0)?;
        b.a.jne(b.miss)?;
        b.a.add(ebx, context(FS_BASE))?;
        CHECK.emit(b)?;
        b.a.mov(ptr(rbx), ecx)?;
    }
    a_branch_to_32_bits_from_memory: |b| {
        b.a.mov(ebx, r10d)?;
        let mut check = CHECK;
        check.loads();
        check.emit(b)?;
        b.a.mov(ebx, ptr(rbx + 4))?;
        b.a.lea(r10d, ptr(r10 + 4))?;
        look_up(b)?;
        jump(b)?;
    }
    a_branch_to_32_bits_of_a_register: |b| {
        b.a.mov(ebx, ecx)?;
        look_up(b)?;
        jump(b)?;
    }
    a_branch_to_32_bits_from_here: |b| {
        b.a.mov(rbx, context(CODE_BASE))?;
        b.a.lea(ebx, ptr(rbx - 0xfc0))?;
        look_up(b)?;
        jump(b)?;
    }
}

accepted! {
    nothing: |b| { b.a.nop()?; }
    a_jump_if_rcx_is_zero: |b| {
        let mut over = b.a.create_label();
        b.a.jrcxz(over)?;
        b.a.dec(rcx)?;
        b.a.set_label(&mut over)?;
        b.a.nop()?;
    }
    a_side_exit: |b| {
        let mut aside = b.a.create_label();
        checked(b)?;
        b.a.test(rcx, rcx)?;
        b.a.je(aside)?;
        b.a.mov(ptr(rbx), rcx)?;
        b.a.jmp(b.miss)?;
        b.a.set_label(&mut aside)?;
        b.a.lahf()?;
        b.a.seto(al)?;
        b.a.jmp(OTHER)?;
        b.has_end = false;
    }
    a_side_exit_that_looks_up: |b| {
        let (mut aside, mut not_there) = (b.a.create_label(), b.a.create_label());
        checked(b)?;
        b.a.test(rcx, rcx)?;
        b.a.je(aside)?;
        b.a.mov(ptr(rbx), rcx)?;
        b.a.jmp(b.miss)?;
        b.a.set_label(&mut aside)?;
        b.a.mov(rbx, context(CODE_BASE))?;
        b.a.lea(rbx, ptr(rbx + 0x1234))?;
        jump_index(b)?;
        b.a.cmp(rbx, table(rbp, T.jump))?;
        b.a.jne(not_there)?;
        jump(b)?;
        b.a.set_label(&mut not_there)?;
        b.a.mov(ebp, BRANCH_EXIT)?;
        b.a.jmp(BRANCH)?;
    }
    a_side_exit_that_stores_under_the_same_check: |b| {
        let mut aside = b.a.create_label();
        checked(b)?;
        b.a.test(rcx, rcx)?;
        b.a.je(aside)?;
        b.a.jmp(b.miss)?;
        b.a.set_label(&mut aside)?;
        b.a.mov(ptr(rbx), rcx)?;
    }
    several_side_exits_to_one_place: |b| {
        let mut aside = b.a.create_label();
        checked(b)?;
        b.a.test(rcx, rcx)?;
        b.a.je(aside)?;
        b.a.js(aside)?;
        b.a.mov(ptr(rbx), rcx)?;
        b.a.jo(aside)?;
        b.a.jmp(b.miss)?;
        b.a.set_label(&mut aside)?;
        b.a.mov(ptr(rbx), rdx)?;
    }
    a_branch_whose_target_is_looked_up_by_the_stub_only: |b| {
        b.a.mov(rbx, rcx)?;
        b.a.mov(ebp, BRANCH_EXIT)?;
        b.a.jmp(BRANCH)?;
        b.has_end = false;
    }
    a_repeated_string_instruction: |b| {
        checked(b)?;
        b.a.mov(ebp, EXITS.start)?;
        b.a.call(STRINGS[1])?;
        checked(b)?;
        b.a.mov(ptr(rbx), rcx)?;
    }
    an_address_that_is_a_lower_half: |b| {
        b.a.mov(ecx, edx)?;
        b.a.mov(rbx, rcx)?;
        CHECK.emit(b)?;
        b.a.mov(ptr(rbx), rcx)?;
    }
    a_branch_to_a_lower_half: |b| {
        b.a.mov(ecx, edx)?;
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        jump(b)?;
    }
    a_branch_to_a_constant: |b| {
        b.a.mov(ebx, 0x1234)?;
        look_up(b)?;
        jump(b)?;
    }
    flags_put_aside: |b| {
        b.a.mov(context(STATUS), rax)?;
        b.a.mov(eax, 1)?;
        b.a.mov(rax, context(STATUS))?;
    }
    one_check_for_several_operands: |b| {
        checked_with(b, |c| c.limit = 4096 - 32)?;
        b.a.mov(ptr(rbx), rcx)?;
        b.a.mov(ptr(rbx + 8), rdx)?;
        b.a.mov(rcx, ptr(rbx + 24))?;
        b.a.add(byte_ptr(rbx + 31), 1)?;
    }
    an_address_kept_in_other_registers: |b| {
        checked_with(b, |c| c.limit = 4096 - 16)?;
        b.a.mov(rbp, rbx)?;
        b.a.mov(rbx, rcx)?;
        b.a.mov(ptr(rbp + 8), rbx)?;
        b.a.mov(rax, rbp)?;
        b.a.mov(ptr(rax), rcx)?;
        b.a.mov(eax, 1)?;
    }
    an_address_kept_over_flags_and_branches: |b| {
        let mut over = b.a.create_label();
        checked(b)?;
        b.a.test(rcx, rcx)?;
        b.a.je(over)?;
        b.a.inc(rcx)?;
        b.a.set_label(&mut over)?;
        b.a.mov(ptr(rbx), rcx)?;
    }
    an_address_moved_within_its_bytes: |b| {
        checked_with(b, |c| c.limit = 4096 - 64)?;
        b.a.lea(rbx, ptr(rbx + 32))?;
        b.a.mov(ptr(rbx - 32), rcx)?;
        b.a.mov(ptr(rbx + 24), rcx)?;
        b.a.sub(rbx, 16)?;
        b.a.mov(ptr(rbx + 40), rcx)?;
        b.a.add(rbx, 48)?;
        b.a.mov(ptr(rbx - 64), rcx)?;
    }
    a_load_under_a_check_for_stores: |b| { checked(b)?; b.a.mov(rcx, ptr(rbx))?; }
    loads_under_a_check_for_loads: |b| {
        checked_with(b, |c| c.loads())?;
        b.a.add(rcx, ptr(rbx))?;
        b.a.cmp(ptr(rbx), rcx)?;
        b.a.bt(dword_ptr(rbx), 5)?;
    }
    a_test_for_alignment: |b| { checked(b)?; b.a.test(bl, 7)?; b.a.jne(b.miss)?; }
    a_whole_page: |b| {
        checked_with(b, |c| c.limit = 0)?;
        b.a.mov(byte_ptr(rbx + 4095), cl)?;
    }
    a_limit_that_excludes_itself: |b| {
        checked_with(b, |c| { c.limit = 4089; c.over = Over::Ae; })?;
        b.a.mov(ptr(rbx), rcx)?;
    }
    a_check_that_branches_when_it_succeeds: |b| {
        let mut hit = b.a.create_label();
        let miss = b.miss;
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.add(rbx, table(rbp, T.write))?;
        b.a.cmp(rbx, 4088)?;
        b.a.jbe(hit)?;
        b.a.jmp(miss)?;
        b.a.set_label(&mut hit)?;
        b.a.add(rbx, table(rbp, T.write + HOST))?;
        b.a.mov(ptr(rbx), rcx)?;
    }
    an_index_by_shifting: |b| {
        b.a.mov(rbx, rcx)?;
        b.a.mov(rbp, rbx)?;
        b.a.shr(rbp, 11)?;
        b.a.and(rbp, TLB_MASK)?;
        b.a.add(rbx, table(rbp, T.write))?;
        b.a.cmp(rbx, 4088)?;
        b.a.ja(b.miss)?;
        b.a.add(rbx, table(rbp, T.write + HOST))?;
        b.a.mov(ptr(rbx), rcx)?;
    }
    an_index_by_shifting_the_lower_half: |b| {
        b.a.mov(rbx, rcx)?;
        b.a.mov(ebp, ebx)?;
        b.a.shr(ebp, 11)?;
        b.a.and(ebp, TLB_MASK)?;
        b.a.add(rbx, table(rbp, T.write))?;
        b.a.cmp(rbx, 4088)?;
        b.a.ja(b.miss)?;
        b.a.add(rbx, table(rbp, T.write + HOST))?;
        b.a.mov(ptr(rbx), rcx)?;
    }
    an_index_in_a_guest_register_of_its_own: |b| {
        b.a.rorx(rax, rcx, 11)?;
        b.a.and(eax, TLB_MASK)?;
        b.a.mov(rbx, table(rax, T.write))?;
        b.a.add(rbx, rcx)?;
        b.a.cmp(rbx, 4088)?;
        b.a.ja(b.miss)?;
        b.a.mov(rbp, table(rax, T.write + HOST))?;
        b.a.mov(ptr(rbp + rbx), rcx)?;
        b.a.lea(rbx, ptr(rbp + rbx))?;
        b.a.mov(ptr(rbx), rcx)?;
        b.a.mov(eax, 0)?;
    }
    one_index_for_loads_and_stores: |b| {
        checked_with(b, |c| c.loads())?;
        b.a.mov(rdx, ptr(rbx))?;
        b.a.lea(rbx, ptr(rcx + 8))?;
        CHECK.emit(b)?;
        b.a.mov(ptr(rbx), rdx)?;
    }
    the_address_of_a_miss_computed_again: |b| {
        let (mut miss, mut done) = (b.a.create_label(), b.a.create_label());
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.add(rbx, table(rbp, T.write))?;
        b.a.cmp(rbx, 4088)?;
        b.a.ja(miss)?;
        b.a.add(rbx, table(rbp, T.write + HOST))?;
        b.a.mov(ptr(rbx), rcx)?;
        b.a.jmp(done)?;
        b.a.set_label(&mut miss)?;
        b.a.sub(rbx, table(rbp, T.write))?;
        b.a.mov(context(SPILL), rbx)?;
        b.a.set_label(&mut done)?;
    }
    two_ways_that_check_alike: |b| {
        let (mut join, mut other) = (b.a.create_label(), b.a.create_label());
        b.a.test(rdx, rdx)?;
        b.a.je(other)?;
        checked_with(b, |c| c.limit = 4064)?;
        b.a.jmp(join)?;
        b.a.set_label(&mut other)?;
        checked(b)?;
        b.a.set_label(&mut join)?;
        b.a.mov(ptr(rbx), rcx)?;
    }
    a_loop_that_checks_each_time: |b| {
        let mut back = b.a.create_label();
        b.a.set_label(&mut back)?;
        checked(b)?;
        b.a.mov(ptr(rbx), rdx)?;
        b.a.dec(rcx)?;
        b.a.jne(back)?;
    }
    flags_that_may_be_changed: |b| {
        b.a.and(dword_ptr(context(RFLAGS)), !0x400)?;
        b.a.or(dword_ptr(context(RFLAGS)), 0x400)?;
        b.a.and(qword_ptr(context(RFLAGS)), !0x400)?;
        b.a.mov(rcx, context(RFLAGS))?;
    }
    fields_of_all_sizes: |b| {
        b.a.mov(cl, context(GPR + 65))?;
        b.a.mov(context(GPR + 66), cx)?;
        b.a.mov(context(GPR + 68), ecx)?;
        b.a.add(context(GPR + 8 * 15), rcx)?;
        b.a.cmp(qword_ptr(context(ATTENTION)), 0)?;
        b.a.mov(ecx, context(SELECTORS + 20))?;
    }
    vectors_behind_a_retry: |b| {
        b.a.call(LOAD_VECTORS)?;
        let mut label = b.a.create_label();
        b.a.set_label(&mut label)?;
        b.retry = Some((EXITS.start + 1, label));
        b.a.mov(rbx, rcx)?;
        b.a.paddb(xmm0, xmm1)?;
        b.a.vpaddb(ymm0, ymm1, ymm2)?;
        b.a.vpaddb(zmm30.k1(), zmm1, zmm2)?;
        b.a.kmovq(rcx, k1)?;
    }
    a_jump_to_another_block: |b| { b.a.jmp(OTHER)?; b.has_end = false; }
    a_jump_to_the_block_itself: |b| { b.a.jmp(b.near)?; b.has_end = false; }
    a_conditional_jump_to_another_block: |b| { b.a.jo(OTHER)?; }
    code_that_nothing_leads_to: |b| {
        b.a.jmp(b.miss)?;
        b.a.mov(ptr(rcx), rcx)?;
    }
    dividing_and_multiplying: |b| {
        b.a.mov(rax, r8)?;
        b.a.mul(rcx)?;
        b.a.mov(r8, rax)?;
        b.a.cqo()?;
        b.a.idiv(rcx)?;
        b.a.mulx(r9, r10, r11)?;
        b.a.imul_2(rcx, rdx)?;
    }
}

#[test]
fn the_time_stamp_counter_where_it_is_allowed() {
    let code = build(|b| b.a.rdtsc());
    let mut block = code.block();
    block.time = true;
    checker::check(&block, &layout()).unwrap();
}
