//! Jumps through the jump cache without a look-up, or with one that is not right.

use crate::common::*;
use iced_x86::code_asm::*;

refused! {
    the_look_up_has_no_comparison: UncheckedJump, |b| {
        b.a.mov(rbx, rcx)?;
        jump_index(b)?;
        jump(b)?;
    }
    the_look_up_has_no_branch: UncheckedJump, |b| {
        b.a.mov(rbx, rcx)?;
        jump_index(b)?;
        b.a.cmp(rbx, table(rbp, T.jump))?;
        jump(b)?;
    }
    the_look_up_branches_if_equal: UncheckedJump, |b| {
        b.a.mov(rbx, rcx)?;
        jump_index(b)?;
        b.a.cmp(rbx, table(rbp, T.jump))?;
        b.a.je(b.miss)?;
        jump(b)?;
    }
    the_look_up_compares_half: Context, |b| {
        b.a.mov(rbx, rcx)?;
        jump_index(b)?;
        b.a.cmp(ebx, table(rbp, T.jump))?;
        b.a.jne(b.miss)?;
        jump(b)?;
    }
    the_look_up_is_in_another_view: Context, |b| {
        b.a.mov(rbx, rcx)?;
        jump_index(b)?;
        b.a.cmp(rbx, table(rbp, tables(0).jump))?;
        b.a.jne(b.miss)?;
        jump(b)?;
    }
    the_jump_is_in_another_view: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        b.has_end = false;
        b.a.jmp(qword_ptr(table(rbp, tables(2).jump + HOST)))?;
    }
    the_jump_is_through_the_wrong_table: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        b.has_end = false;
        b.a.jmp(qword_ptr(table(rbp, T.jump)))?;
    }
    the_jump_is_through_another_entry: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        b.has_end = false;
        b.a.jmp(qword_ptr(table(rbp, T.jump + HOST + 8)))?;
    }
    the_jump_has_another_index: UncheckedJump, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        b.has_end = false;
        b.a.jmp(qword_ptr(table(rdx, T.jump + HOST)))?;
    }
    the_index_changes_before_the_jump: UncheckedJump, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        b.a.and(ebp, 1)?;
        jump(b)?;
    }
    the_address_changes_before_the_jump: UncheckedJump, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        b.a.inc(rbx)?;
        jump(b)?;
    }
    the_address_is_in_another_register: UncheckedJump, |b| {
        b.a.mov(rbp, rcx)?;
        b.a.shr(ebp, 12)?;
        b.a.xor(ebp, ecx)?;
        b.a.and(ebp, JUMP_MASK)?;
        b.a.cmp(rcx, table(rbp, T.jump))?;
        b.a.jne(b.miss)?;
        jump(b)?;
    }
    the_jump_index_is_not_masked: Index, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.mov(ebp, ebx)?;
        b.a.shr(ebp, 12)?;
        b.a.xor(ebp, ebx)?;
        b.a.cmp(rbx, table(rbp, T.jump))?;
    }
    // An empty entry could be hit: it is marked by an address that belongs elsewhere.
    the_jump_index_is_not_that_of_the_address: Index, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.mov(ebp, ebx)?;
        b.a.and(ebp, JUMP_MASK)?;
        b.a.cmp(rbx, table(rbp, T.jump))?;
        b.a.jne(b.miss)?;
        jump(b)?;
    }
    the_jump_has_an_operand_size: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        let at = (T.jump + HOST).to_le_bytes();
        b.a.db(&[0x66, 0xff, 0xa4, 0xec, at[0], at[1], at[2], at[3]])?;
    }
    the_jump_has_32_bit_addressing: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        let at = (T.jump + HOST).to_le_bytes();
        b.a.db(&[0x67, 0xff, 0xa4, 0xec, at[0], at[1], at[2], at[3]])?;
    }
    the_jump_is_not_in_the_context: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        b.has_end = false;
        b.a.jmp(qword_ptr(rbp * 8 + (T.jump + HOST) as i32))?;
    }
    the_jump_has_another_base: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        b.has_end = false;
        b.a.jmp(qword_ptr(rcx + rbp * 8 + (T.jump + HOST) as i32))?;
    }
    the_jump_has_a_segment: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        b.has_end = false;
        b.a.jmp(qword_ptr(table(rbp, T.jump + HOST)).gs())?;
    }
    the_jump_has_the_data_segment: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        let at = (T.jump + HOST).to_le_bytes();
        b.a.db(&[0x3e, 0xff, 0xa4, 0xec, at[0], at[1], at[2], at[3]])?;
    }
    the_jump_has_half_the_scale: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        b.has_end = false;
        b.a.jmp(qword_ptr(rsp + rbp * 4 + (T.jump + HOST) as i32))?;
    }
    the_jump_is_through_the_next_entry: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        b.has_end = false;
        b.a.jmp(qword_ptr(table(rbp, T.jump + 16 + HOST)))?;
    }
    the_jump_is_through_the_soft_tlb: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        b.has_end = false;
        b.a.jmp(qword_ptr(table(rbp, T.write + HOST)))?;
    }
    the_jump_is_through_a_page_of_the_tlb: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.has_end = false;
        b.a.jmp(qword_ptr(table(rbp, T.read + HOST)))?;
    }
    the_jump_index_is_odd: Index, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.mov(ebp, ebx)?;
        b.a.shr(ebp, 12)?;
        b.a.xor(ebp, ebx)?;
        b.a.and(ebp, JUMP_MASK + 1)?;
        b.a.cmp(rbx, table(rbp, T.jump))?;
    }
    the_jump_index_becomes_odd: UncheckedJump, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        b.a.lea(rbp, ptr(rbp + 1))?;
        jump(b)?;
    }
    the_jump_index_is_of_the_tlb: Index, |b| {
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.cmp(rbx, table(rbp, T.jump))?;
    }
    // Of the pages' numbers shifted by one, as the soft TLB has them.
    the_jump_index_is_shifted_like_the_tlbs: Index, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.mov(ebp, ebx)?;
        b.a.shr(ebp, 11)?;
        b.a.xor(ebp, ebx)?;
        b.a.and(ebp, JUMP_MASK)?;
        b.a.cmp(rbx, table(rbp, T.jump))?;
    }
    the_look_up_compares_the_host_half: Leak, |b| {
        b.a.mov(rbx, rcx)?;
        jump_index(b)?;
        b.a.cmp(rbx, table(rbp, T.jump + HOST))?;
    }
    the_look_up_compares_with_a_tag: Index, |b| {
        b.a.mov(rbx, rcx)?;
        jump_index(b)?;
        b.a.cmp(rbx, table(rbp, T.read))?;
    }
}
