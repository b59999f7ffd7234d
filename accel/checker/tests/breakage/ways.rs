//! Ways that meet, of which one lacks what is needed.

use crate::common::*;
use crate::{make_live, store};
use iced_x86::code_asm::*;

refused! {
    one_of_two_ways_has_no_check: Unchecked, |b| {
        let mut join = b.a.create_label();
        b.a.mov(rbx, rcx)?;
        b.a.test(rdx, rdx)?;
        b.a.je(join)?;
        checked(b)?;
        b.a.set_label(&mut join)?;
        store(b)?;
    }
    the_way_that_fails_the_check_goes_on: Unchecked, |b| {
        let mut join = b.a.create_label();
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.add(rbx, table(rbp, T.write))?;
        b.a.cmp(rbx, 4088)?;
        b.a.ja(join)?;
        b.a.set_label(&mut join)?;
        b.a.add(rbx, table(rbp, T.write + HOST))?;
        store(b)?;
    }
    two_ways_check_for_different_sizes: BeyondCheck, |b| {
        let (mut join, mut other) = (b.a.create_label(), b.a.create_label());
        b.a.test(rdx, rdx)?;
        b.a.je(other)?;
        checked(b)?;
        b.a.jmp(join)?;
        b.a.set_label(&mut other)?;
        checked_with(b, |c| c.limit = 4092)?;
        b.a.set_label(&mut join)?;
        store(b)?;
    }
    two_ways_check_for_different_accesses: ReadOnly, |b| {
        let (mut join, mut other) = (b.a.create_label(), b.a.create_label());
        b.a.test(rdx, rdx)?;
        b.a.je(other)?;
        checked(b)?;
        b.a.jmp(join)?;
        b.a.set_label(&mut other)?;
        checked_with(b, |c| c.loads())?;
        b.a.set_label(&mut join)?;
        store(b)?;
    }
    an_index_of_either_of_two_addresses: Index, |b| {
        let mut join = b.a.create_label();
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.test(rdx, rdx)?;
        b.a.je(join)?;
        b.a.mov(rbx, rdx)?;
        tlb_index(b)?;
        b.a.set_label(&mut join)?;
        b.a.add(rbx, table(rbp, T.write))?;
    }
    a_side_exit_that_comes_before_the_check: Unchecked, |b| {
        let mut aside = b.a.create_label();
        b.a.mov(rbx, rcx)?;
        b.a.test(rdx, rdx)?;
        b.a.je(aside)?;
        checked(b)?;
        b.a.js(aside)?;
        store(b)?;
        b.a.jmp(b.miss)?;
        b.a.set_label(&mut aside)?;
        store(b)?;
    }
    a_side_exit_whose_check_was_for_another_address: Unchecked, |b| {
        let mut aside = b.a.create_label();
        checked(b)?;
        b.a.test(rdx, rdx)?;
        b.a.je(aside)?;
        b.a.jmp(b.miss)?;
        b.a.set_label(&mut aside)?;
        b.a.lea(rbx, ptr(rcx + 8))?;
        store(b)?;
    }
    a_side_exit_that_keeps_a_host_address: Leak, |b| {
        let mut aside = b.a.create_label();
        checked(b)?;
        b.a.mov(rdx, rbx)?;
        b.a.test(rcx, rcx)?;
        b.a.je(aside)?;
        b.a.mov(edx, ecx)?;
        b.a.jmp(b.miss)?;
        b.a.set_label(&mut aside)?;
        b.a.jmp(OTHER)?;
        b.has_end = false;
    }
    a_side_exit_with_vectors_that_are_not_live: VectorsNotLive, |b| {
        let mut aside = b.a.create_label();
        b.a.test(rcx, rcx)?;
        b.a.je(aside)?;
        make_live(b)?;
        b.a.paddb(xmm0, xmm1)?;
        b.a.jo(aside)?;
        b.a.jmp(b.miss)?;
        b.a.set_label(&mut aside)?;
        b.a.paddb(xmm0, xmm1)?;
    }
    a_side_exit_that_jumps_where_something_else_was_found: UncheckedJump, |b| {
        let (mut aside, mut other) = (b.a.create_label(), b.a.create_label());
        b.a.mov(rbx, rcx)?;
        b.a.test(rdx, rdx)?;
        b.a.je(other)?;
        look_up(b)?;
        b.a.jmp(aside)?;
        b.a.set_label(&mut other)?;
        b.a.mov(rbx, rdx)?;
        look_up(b)?;
        b.a.set_label(&mut aside)?;
        jump(b)?;
    }
    two_ways_have_different_exits: WrongExit, |b| {
        let mut join = b.a.create_label();
        b.a.mov(ebp, EXITS.start)?;
        b.a.test(rdx, rdx)?;
        b.a.je(join)?;
        b.a.mov(ebp, EXITS.start + 1)?;
        b.a.set_label(&mut join)?;
        b.a.jmp(LEAVE)?;
    }
    a_way_from_below_has_no_check: Unchecked, |b| {
        let mut back = b.a.create_label();
        checked(b)?;
        b.a.set_label(&mut back)?;
        store(b)?;
        b.a.mov(rbx, rdx)?;
        b.a.jmp(back)?;
        b.has_end = false;
    }
    a_way_from_below_into_a_check: Index, |b| {
        let mut back = b.a.create_label();
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.set_label(&mut back)?;
        b.a.add(rbx, table(rbp, T.write))?;
        b.a.cmp(rbx, 4088)?;
        b.a.ja(back)?;
        b.a.add(rbx, table(rbp, T.write + HOST))?;
        store(b)?;
    }
    a_place_to_resume_at_behind_the_check: Unchecked, |b| {
        checked(b)?;
        let mut label = b.a.create_label();
        b.a.set_label(&mut label)?;
        b.resume = Some(label);
        store(b)?;
    }
    a_place_to_retry_at_behind_the_check: Unchecked, |b| {
        checked(b)?;
        let mut label = b.a.create_label();
        b.a.set_label(&mut label)?;
        b.retry = Some((EXITS.start, label));
        store(b)?;
    }
    a_place_to_resume_at_between_comparison_and_branch: Unchecked, |b| {
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.add(rbx, table(rbp, T.write))?;
        b.a.cmp(rbx, 4088)?;
        let mut label = b.a.create_label();
        b.a.set_label(&mut label)?;
        b.resume = Some(label);
        b.a.ja(b.miss)?;
        b.a.mov(ptr(rbx), rcx)?;
    }
    the_near_entry_is_behind_the_check: Unchecked, |b| {
        checked(b)?;
        b.near = b.a.create_label();
        b.a.set_label(&mut b.near)?;
        store(b)?;
    }
    a_table_that_changed_since: Unchecked, |b| {
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.add(rbx, table(rbp, T.write))?;
        b.a.push(EXITS.start as i32)?;
        b.a.call(MISSES[1])?;
        b.a.mov(ptr(rbx), rcx)?;
    }
    vectors_on_a_way_from_below_that_lacks_them: VectorsNotLive, |b| {
        let (mut back, mut below) = (b.a.create_label(), b.a.create_label());
        b.a.test(rcx, rcx)?;
        b.a.je(below)?;
        make_live(b)?;
        b.a.nop()?;
        b.a.set_label(&mut back)?;
        b.a.paddb(xmm0, xmm1)?;
        b.a.jmp(b.miss)?;
        b.a.set_label(&mut below)?;
        b.a.jmp(back)?;
        b.has_end = false;
    }
}
