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
        b.a.rorx(rbp, rbx, 12)?;
        b.a.and(ebp, 1023)?;
        b.a.add(rbx, table(rbp, T.write))?;
        b.a.cmp(rbx, 4088)?;
        b.a.ja(join)?;
        b.a.set_label(&mut join)?;
        b.a.add(rbx, table(rbp, T.write_host))?;
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
        checked_with(b, |c| {
 c.tag = T.read;
 c.host = T.read_host;
 })?;
        b.a.set_label(&mut join)?;
        store(b)?;
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
        b.a.rorx(rbp, rbx, 12)?;
        b.a.and(ebp, 1023)?;
        b.a.set_label(&mut back)?;
        b.a.add(rbx, table(rbp, T.write))?;
        b.a.cmp(rbx, 4088)?;
        b.a.ja(back)?;
        b.a.add(rbx, table(rbp, T.write_host))?;
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
        b.a.rorx(rbp, rbx, 12)?;
        b.a.and(ebp, 1023)?;
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
        b.a.rorx(rbp, rbx, 12)?;
        b.a.and(ebp, 1023)?;
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
