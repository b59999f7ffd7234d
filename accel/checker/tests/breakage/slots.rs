//! Checks with entries of the soft TLB that belong to no address, not quite right.

use iced_x86::code_asm::*;

use crate::common::*;
use crate::store;

/// An address in RBX with the tag of slot 3 for stores added.
fn tagged(b: &mut Builder) -> Built {
    b.a.lea(rbx, ptr(rcx + 8))?;
    b.a.add(rbx, context(T.write + slot(3)))
}

/// The same with room for 8 bytes.
fn compared(b: &mut Builder) -> Built {
    tagged(b)?;
    b.a.cmp(rbx, 4088)?;
    b.a.ja(b.miss)
}

#[test]
fn without_breakage_it_is_accepted() {
    let code = build(|b| {
        let (mut start, mut missed, mut end) =
            (b.a.create_label(), b.a.create_label(), b.a.create_label());
        b.a.set_label(&mut start)?;
        b.retry = Some((EXITS.start + 2, start));
        tagged(b)?;
        b.a.cmp(rbx, 4088)?;
        b.a.ja(missed)?;
        b.a.add(rbx, context(T.write + slot(3) + HOST))?;
        store(b)?;
        b.a.jmp(end)?;
        b.a.set_label(&mut missed)?;
        b.a.mov(ebp, slot_index(3))?;
        b.a.push(EXITS.start as i32 + 2)?;
        b.a.call(MISSES[1])?;
        b.a.jmp(start)?;
        b.a.set_label(&mut end)?;
        b.a.nop()
    });
    code.check().unwrap();
    let code = build(|b| {
        b.a.mov(rbx, rcx)?;
        b.a.add(rbx, context(T.read + slot(TLB_SLOTS - 1)))?;
        b.a.cmp(rbx, 4095)?;
        b.a.ja(b.miss)?;
        b.a.add(rbx, context(T.read + slot(TLB_SLOTS - 1) + HOST))?;
        b.a.mov(cl, ptr(rbx))
    });
    code.check().unwrap();
}

refused! {
    the_page_is_of_another_slot: Unchecked, |b| {
        compared(b)?;
        b.a.add(rbx, context(T.write + slot(4) + HOST))?;
        store(b)?;
    }
    the_page_is_for_loads: Unchecked, |b| {
        compared(b)?;
        b.a.add(rbx, context(T.read + slot(3) + HOST))?;
        store(b)?;
    }
    the_slot_is_for_loads: ReadOnly, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.add(rbx, context(T.read + slot(3)))?;
        b.a.cmp(rbx, 4088)?;
        b.a.ja(b.miss)?;
        b.a.add(rbx, context(T.read + slot(3) + HOST))?;
        store(b)?;
    }
    the_page_is_of_an_entry_by_index: Unchecked, |b| {
        compared(b)?;
        b.a.mov(rdx, rbx)?;
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.add(rdx, table(rbp, T.write + HOST))?;
        b.a.mov(ptr(rdx), rcx)?;
    }
    the_tag_is_of_an_entry_by_index: Unchecked, |b| {
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.add(rbx, table(rbp, T.write))?;
        b.a.cmp(rbx, 4088)?;
        b.a.ja(b.miss)?;
        b.a.add(rbx, context(T.write + slot(3) + HOST))?;
        store(b)?;
    }
    a_slot_by_index: Context, |b| {
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.add(rbx, table(rbp, T.write + slot(3)))?;
    }
    a_slot_of_another_view: Context, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.add(rbx, context(tables(0).write + slot(3)))?;
    }
    a_slot_behind_the_last: Context, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.add(rbx, context(T.write + slot(TLB_SLOTS)))?;
    }
    a_slot_behind_the_last_for_loads: Context, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.add(rbx, context(T.read + slot(TLB_SLOTS)))?;
    }
    the_entry_before_the_first_slot: Context, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.add(rbx, context(T.write + slot(0) - 16))?;
    }
    a_slot_is_misaligned: Context, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.add(rbx, context(T.write + slot(3) + 4))?;
    }
    a_tag_is_written: Context, |b| { b.a.mov(context(T.write + slot(3)), rcx)?; }
    a_page_is_written: Context, |b| { b.a.mov(context(T.write + slot(3) + HOST), rcx)?; }
    a_tag_is_exchanged: Context, |b| { b.a.xchg(context(T.write + slot(3)), rcx)?; }
    half_a_page_is_read: Context, |b| { b.a.mov(ecx, context(T.write + slot(3) + HOST))?; }
    a_page_is_read: Leak, |b| { b.a.mov(rcx, context(T.write + slot(3) + HOST))?; }
    a_page_is_computed_with: Leak, |b| { b.a.xor(rcx, context(T.write + slot(3) + HOST))?; }
    a_page_is_compared: Leak, |b| { b.a.cmp(rcx, context(T.write + slot(3) + HOST))?; }
    the_comparison_is_missing: Unchecked, |b| {
        tagged(b)?;
        b.a.add(rbx, context(T.write + slot(3) + HOST))?;
        store(b)?;
    }
    the_tag_is_missing: Unchecked, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.cmp(rbx, 4088)?;
        b.a.ja(b.miss)?;
        b.a.add(rbx, context(T.write + slot(3) + HOST))?;
        store(b)?;
    }
    the_tag_is_added_twice: Unchecked, |b| {
        tagged(b)?;
        b.a.add(rbx, context(T.write + slot(3)))?;
        b.a.lea(rbx, ptr(rbx))?;
        b.a.add(rbx, context(T.write + slot(3) + HOST))?;
        store(b)?;
    }
    the_address_changes_before_the_page: Unchecked, |b| {
        compared(b)?;
        b.a.lea(rbx, ptr(rbx + 8))?;
        b.a.add(rbx, context(T.write + slot(3) + HOST))?;
        store(b)?;
    }
    more_than_was_checked: BeyondCheck, |b| {
        compared(b)?;
        b.a.add(rbx, context(T.write + slot(3) + HOST))?;
        b.a.mov(ptr(rbx + 1), rcx)?;
    }
    // The guest knows the tag, and would know the address.
    the_tag_is_added_to_a_host_address: Leak, |b| {
        checked(b)?;
        b.a.add(rbx, context(T.write + slot(3)))?;
        b.a.mov(rcx, rbx)?;
    }
    a_host_address_is_added_to_the_tag: Leak, |b| {
        checked(b)?;
        b.a.mov(rdx, context(T.write + slot(3)))?;
        b.a.add(rdx, rbx)?;
        b.a.mov(rcx, rdx)?;
    }
    a_host_address_and_the_tag_by_lea: Leak, |b| {
        checked(b)?;
        b.a.mov(rdx, context(T.write + slot(3)))?;
        b.a.lea(rcx, ptr(rdx + rbx))?;
    }
    what_the_host_left_in_rbp_with_the_tag: Leak, |b| {
        b.a.add(rbp, context(T.write + slot(3)))?;
        b.a.mov(rcx, rbp)?;
    }
    the_slot_changed_since: Unchecked, |b| {
        tagged(b)?;
        b.a.cmp(rbx, 4088)?;
        b.a.mov(rdx, rbx)?;
        b.a.mov(ebp, slot_index(3))?;
        b.a.push(EXITS.start as i32)?;
        b.a.call(MISSES[1])?;
        b.a.add(rdx, context(T.write + slot(3) + HOST))?;
        b.a.mov(ptr(rdx), rcx)?;
    }
    the_miss_is_of_another_slot: Index, |b| {
        tagged(b)?;
        b.a.mov(ebp, slot_index(4))?;
        b.a.push(EXITS.start as i32)?;
        b.a.call(MISSES[1])?;
    }
    the_miss_is_of_an_entry_that_is_no_slot: Index, |b| {
        tagged(b)?;
        b.a.mov(ebp, 6)?;
        b.a.push(EXITS.start as i32)?;
        b.a.call(MISSES[1])?;
    }
    the_miss_is_of_half_a_slot: Index, |b| {
        tagged(b)?;
        b.a.mov(ebp, slot_index(3) + 1)?;
        b.a.push(EXITS.start as i32)?;
        b.a.call(MISSES[1])?;
    }
    the_miss_is_for_loads: Index, |b| {
        tagged(b)?;
        b.a.mov(ebp, slot_index(3))?;
        b.a.push(EXITS.start as i32)?;
        b.a.call(MISSES[0])?;
    }
    the_miss_is_by_index: Index, |b| {
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        tagged(b)?;
        b.a.push(EXITS.start as i32)?;
        b.a.call(MISSES[1])?;
    }
    the_slot_of_the_miss_is_missing: Index, |b| {
        tagged(b)?;
        b.a.push(EXITS.start as i32)?;
        b.a.call(MISSES[1])?;
    }
}
