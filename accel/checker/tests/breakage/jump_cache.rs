//! Jumps through the jump cache without a look-up, or with one that is not right.

use crate::common::*;
use iced_x86::code_asm::*;

refused! {
    the_look_up_has_no_comparison: UncheckedJump, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.mov(ebp, ebx)?;
        b.a.shr(ebp, 12)?;
        b.a.xor(ebp, ebx)?;
        b.a.and(ebp, 4095)?;
        jump(b)?;
    }
    the_look_up_has_no_branch: UncheckedJump, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.mov(ebp, ebx)?;
        b.a.shr(ebp, 12)?;
        b.a.xor(ebp, ebx)?;
        b.a.and(ebp, 4095)?;
        b.a.cmp(rbx, table(rbp, T.jump_guest))?;
        jump(b)?;
    }
    the_look_up_branches_if_equal: UncheckedJump, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.mov(ebp, ebx)?;
        b.a.shr(ebp, 12)?;
        b.a.xor(ebp, ebx)?;
        b.a.and(ebp, 4095)?;
        b.a.cmp(rbx, table(rbp, T.jump_guest))?;
        b.a.je(b.miss)?;
        jump(b)?;
    }
    the_look_up_compares_half: Context, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.mov(ebp, ebx)?;
        b.a.shr(ebp, 12)?;
        b.a.xor(ebp, ebx)?;
        b.a.and(ebp, 4095)?;
        b.a.cmp(ebx, table(rbp, T.jump_guest))?;
        b.a.jne(b.miss)?;
        jump(b)?;
    }
    the_look_up_is_in_another_view: Context, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.mov(ebp, ebx)?;
        b.a.shr(ebp, 12)?;
        b.a.xor(ebp, ebx)?;
        b.a.and(ebp, 4095)?;
        b.a.cmp(rbx, table(rbp, tables(0).jump_guest))?;
        b.a.jne(b.miss)?;
        jump(b)?;
    }
    the_jump_is_in_another_view: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        b.has_end = false;
        b.a.jmp(qword_ptr(table(rbp, tables(2).jump_host)))?;
    }
    the_jump_is_through_the_wrong_table: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        b.has_end = false;
        b.a.jmp(qword_ptr(table(rbp, T.jump_guest)))?;
    }
    the_jump_is_through_another_entry: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        b.has_end = false;
        b.a.jmp(qword_ptr(table(rbp, T.jump_host + 8)))?;
    }
    the_jump_has_another_index: UncheckedJump, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        b.has_end = false;
        b.a.jmp(qword_ptr(table(rdx, T.jump_host)))?;
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
        b.a.and(ebp, 4095)?;
        b.a.cmp(rcx, table(rbp, T.jump_guest))?;
        b.a.jne(b.miss)?;
        jump(b)?;
    }
    the_jump_index_is_not_masked: Index, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.mov(ebp, ebx)?;
        b.a.shr(ebp, 12)?;
        b.a.xor(ebp, ebx)?;
        b.a.cmp(rbx, table(rbp, T.jump_guest))?;
    }
    // An empty entry could be hit: it is marked by an address that belongs elsewhere.
    the_jump_index_is_not_that_of_the_address: UncheckedJump, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.mov(ebp, ebx)?;
        b.a.and(ebp, 4095)?;
        b.a.cmp(rbx, table(rbp, T.jump_guest))?;
        b.a.jne(b.miss)?;
        jump(b)?;
    }
    the_jump_has_an_operand_size: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        let at = T.jump_host.to_le_bytes();
        b.a.db(&[0x65, 0x66, 0xff, 0x24, 0xed, at[0], at[1], at[2], at[3]])?;
    }
    the_jump_has_32_bit_addressing: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        let at = T.jump_host.to_le_bytes();
        b.a.db(&[0x67, 0x65, 0xff, 0x24, 0xed, at[0], at[1], at[2], at[3]])?;
    }
    the_jump_has_no_segment: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        b.has_end = false;
        b.a.jmp(qword_ptr(rbp * 8 + T.jump_host as i32))?;
    }
}
