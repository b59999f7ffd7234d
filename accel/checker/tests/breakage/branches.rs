//! Branches to where they must not lead.

use crate::common::*;
use iced_x86::code_asm::*;

refused! {
    a_jump_into_the_middle: IntoMiddle, |b| { b.a.jmp(CODE + 1)?; }
    a_condition_into_the_middle: IntoMiddle, |b| { b.a.jne(CODE + 2)?; }
    a_jump_before_the_block: Outside, |b| { b.a.jmp(CODE - 1)?; }
    a_jump_behind_the_block: Outside, |b| { b.a.jmp(CODE + 0x1000)?; }
    a_condition_out_of_the_block: Outside, |b| { b.a.je(0x10u64)?; }
    a_jump_to_the_stub_that_is_called: Outside, |b| { b.a.jmp(LOAD_VECTORS)?; }
    a_jump_next_to_the_stub: Outside, |b| { b.a.mov(ebp, 7)?; b.a.jmp(LEAVE + 1)?; }
    a_jump_next_to_another_block: Outside, |b| { b.a.jmp(OTHER + 1)?; }
    a_call_into_the_block: NotAllowed, |b| { b.a.call(b.near)?; }
    a_call_of_another_block: NotAllowed, |b| { b.a.call(OTHER)?; }
    a_call_of_the_stub_that_leaves: NotAllowed, |b| { b.a.call(LEAVE)?; }
    a_jump_to_a_register: NotAllowed, |b| { b.a.jmp(rcx)?; }
    a_call_of_a_register: NotAllowed, |b| { b.a.call(rcx)?; }
    a_jump_through_guest_memory: NotAllowed, |b| { checked(b)?; b.a.jmp(qword_ptr(rbx))?; }
    a_jump_through_a_field: NotAllowed, |b| { b.a.jmp(qword_ptr(context(GPR)))?; }
    a_call_through_the_jump_cache: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        look_up(b)?;
        b.a.call(qword_ptr(table(rbp, T.jump + HOST)))?;
    }
    a_loop_instruction: NotAllowed, |b| { b.a.loop_(b.near)?; }
    a_jump_if_ecx_is_zero: NotAllowed, |b| { b.a.db(&[0x67, 0xe3, 0])?; }
    a_jump_with_an_operand_size: NotAllowed, |b| { b.a.db(&[0x66, 0xe9, 0, 0, 0, 0])?; }
    a_condition_with_an_operand_size: NotAllowed, |b| { b.a.db(&[0x66, 0x0f, 0x84, 0, 0, 0, 0])?; }
    a_jump_with_a_bound_prefix: NotAllowed, |b| { b.a.db(&[0xf2, 0xe9, 0, 0, 0, 0])?; }
    the_number_of_the_exit_is_of_another_block: WrongExit, |b| {
        b.a.mov(ebp, EXITS.end)?;
        b.a.jmp(LEAVE)?;
    }
    the_number_of_the_exit_is_less_than_the_first: WrongExit, |b| {
        b.a.mov(ebp, EXITS.start - 1)?;
        b.a.jmp(LEAVE)?;
    }
    the_number_of_the_exit_is_missing: WrongExit, |b| { b.a.jmp(LEAVE)?; }
    the_number_of_the_exit_is_in_another_register: WrongExit, |b| {
        b.a.mov(ebx, EXITS.start)?;
        b.a.jmp(LEAVE)?;
    }
    strings_without_an_exit: WrongExit, |b| { b.a.call(STRINGS[0])?; }
    strings_with_an_exit_of_another_block: WrongExit, |b| {
        b.a.mov(ebp, EXITS.end)?;
        b.a.call(STRINGS[0])?;
    }
    a_call_next_to_strings: NotAllowed, |b| {
        b.a.mov(ebp, EXITS.start)?;
        b.a.call(STRINGS[0] + 1)?;
    }
    a_jump_to_strings: Outside, |b| { b.a.mov(ebp, EXITS.start)?; b.a.jmp(STRINGS[0])?; }
    a_check_is_taken_for_good_behind_strings: Unchecked, |b| {
        checked(b)?;
        b.a.mov(ebp, EXITS.start)?;
        b.a.call(STRINGS[0])?;
        b.a.mov(ptr(rbx), rcx)?;
    }
    strings_may_be_given_a_hosts_address: Leak, |b| {
        checked(b)?;
        b.a.mov(rcx, rbx)?;
        b.a.mov(ebp, EXITS.start)?;
        b.a.call(STRINGS[0])?;
    }
    the_number_of_the_exit_is_a_guests: WrongExit, |b| { b.a.mov(ebp, ecx)?; b.a.jmp(LEAVE)?; }
    the_number_of_the_exit_was_changed: WrongExit, |b| {
        b.a.mov(ebp, EXITS.start)?;
        b.a.add(ebp, ecx)?;
        b.a.jmp(LEAVE)?;
    }
    the_number_of_the_exit_was_changed_in_part: WrongExit, |b| {
        b.a.mov(ebp, EXITS.start)?;
        b.a.mov(bpl, cl)?;
        b.a.jmp(LEAVE)?;
    }
    the_stub_for_branches_is_called: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.mov(ebp, EXITS.start)?;
        b.a.call(BRANCH)?;
    }
    next_to_the_stub_for_branches: Outside, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.mov(ebp, EXITS.start)?;
        b.a.jmp(BRANCH + 1)?;
    }
    a_branch_without_the_number_of_an_exit: WrongExit, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.jmp(BRANCH)?;
    }
    a_branch_by_the_exit_of_another_block: WrongExit, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.mov(ebp, EXITS.end)?;
        b.a.jmp(BRANCH)?;
    }
    a_branch_whose_index_is_still_in_rbp: WrongExit, |b| {
        b.a.mov(rbx, rcx)?;
        jump_index(b)?;
        b.a.cmp(rbx, table(rbp, T.jump))?;
        b.a.jne(BRANCH)?;
    }
    a_branch_with_an_exit_pushed: NotAllowed, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.push(EXITS.start as i32)?;
        b.a.jmp(BRANCH)?;
    }
    a_branch_to_a_host_address: Leak, |b| {
        checked(b)?;
        b.a.mov(ebp, EXITS.start)?;
        b.a.jmp(BRANCH)?;
    }
    a_branch_to_what_the_last_block_left: Leak, |b| {
        b.a.mov(ebp, EXITS.start)?;
        b.a.jmp(BRANCH)?;
    }
    a_branch_with_a_host_address_in_a_guest_register: Leak, |b| {
        checked(b)?;
        b.a.mov(rdx, rbx)?;
        b.a.mov(rbx, rcx)?;
        b.a.mov(ebp, EXITS.start)?;
        b.a.jmp(BRANCH)?;
    }
    the_exit_of_a_branch_with_a_host_address: Leak, |b| {
        checked(b)?;
        b.a.mov(ebp, BRANCH_EXIT)?;
        b.a.jmp(LEAVE)?;
    }
    the_exit_of_a_miss_with_a_host_address: Leak, |b| {
        let mut label = b.a.create_label();
        b.a.set_label(&mut label)?;
        b.retry = Some((EXITS.start + 1, label));
        checked(b)?;
    }
    the_block_is_left_conditionally_without_a_number: WrongExit, |b| { b.a.jne(LEAVE)?; }
}
