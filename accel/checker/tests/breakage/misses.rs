//! Calls of the stubs for misses that lack something.

use iced_x86::code_asm::*;

use crate::common::*;

/// An address in RBX with the tag for stores added, and the index in RBP.
fn tagged(b: &mut Builder) -> Built {
    b.a.mov(rbx, rcx)?;
    tlb_index(b)?;
    b.a.add(rbx, table(rbp, T.write))
}

#[test]
fn without_breakage_it_is_accepted() {
    let code = build(|b| {
        let mut label = b.a.create_label();
        b.a.set_label(&mut label)?;
        b.retry = Some((EXITS.start + 2, label));
        tagged(b)?;
        b.a.push(EXITS.start as i32 + 2)?;
        b.a.call(MISSES[1])?;
        b.has_end = false;
        b.a.jmp(label)
    });
    code.check().unwrap();
}

/// The call for several accesses, which may return behind the next instruction.
fn merged(b: &mut Builder) -> Built {
    tagged(b)?;
    b.a.push(MERGED | EXITS.start as i32)?;
    b.a.call(MISSES[1])
}

/// A jump of 5 bytes.
fn jump_away(b: &mut Builder) -> Built {
    b.a.jmp(OTHER)
}

#[test]
fn what_follows_a_call_for_several_accesses_is_accepted() {
    let code = build(|b| {
        b.has_end = false;
        merged(b)?;
        jump_away(b)?;
        b.a.jmp(CROSSING)
    });
    code.check().unwrap();
    let code = build(|b| {
        b.has_end = false;
        merged(b)?;
        jump_away(b)?;
        b.a.inc(rcx)?;
        b.a.mov(rdx, rbx)?;
        b.a.jmp(CROSSING)
    });
    code.check().unwrap();
}

refused! {
    no_exit_is_pushed: NotAllowed, |b| { tagged(b)?; b.a.call(MISSES[1])?; }
    something_else_is_pushed: NotAllowed, |b| { tagged(b)?; b.a.push(rcx)?; b.a.call(MISSES[1])?; }
    nothing_is_called: NotAllowed, |b| { tagged(b)?; b.a.push(EXITS.start as i32)?; }
    another_stub_is_called: NotAllowed, |b| {
        tagged(b)?;
        b.a.push(EXITS.start as i32)?;
        b.a.call(LOAD_VECTORS)?;
    }
    something_comes_in_between: NotAllowed, |b| {
        tagged(b)?;
        b.a.push(EXITS.start as i32)?;
        b.a.nop()?;
        b.a.call(MISSES[1])?;
    }
    two_exits_are_pushed: NotAllowed, |b| {
        tagged(b)?;
        b.a.push(EXITS.start as i32)?;
        b.a.push(EXITS.start as i32)?;
        b.a.call(MISSES[1])?;
    }
    the_push_is_of_16_bits: NotAllowed, |b| {
        tagged(b)?;
        b.a.db(&[0x66, 0x68, 7, 0])?;
        b.a.call(MISSES[1])?;
    }
    the_call_is_a_jump: NotAllowed, |b| {
        tagged(b)?;
        b.a.push(EXITS.start as i32)?;
        b.a.jmp(MISSES[1])?;
    }
    the_jump_is_without_a_push: Outside, |b| { tagged(b)?; b.a.jmp(MISSES[1])?; }
    the_exit_is_of_another_block: WrongExit, |b| {
        tagged(b)?;
        b.a.push(EXITS.end as i32)?;
        b.a.call(MISSES[1])?;
    }
    the_stub_is_for_loads: Index, |b| {
        tagged(b)?;
        b.a.push(EXITS.start as i32)?;
        b.a.call(MISSES[0])?;
    }
    the_index_changed: Index, |b| {
        tagged(b)?;
        b.a.mov(ebp, ecx)?;
        b.a.push(EXITS.start as i32)?;
        b.a.call(MISSES[1])?;
    }
    the_address_changed: Index, |b| {
        tagged(b)?;
        b.a.mov(rbx, rcx)?;
        b.a.push(EXITS.start as i32)?;
        b.a.call(MISSES[1])?;
    }
    the_call_is_entered_from_above: NotAllowed, |b| {
        let mut call = b.a.create_label();
        tagged(b)?;
        b.a.jne(call)?;
        b.a.push(EXITS.start as i32)?;
        b.a.set_label(&mut call)?;
        b.a.call(MISSES[1])?;
    }
    the_call_is_entered_from_below: NotAllowed, |b| {
        let mut call = b.a.create_label();
        tagged(b)?;
        b.a.push(EXITS.start as i32)?;
        b.a.set_label(&mut call)?;
        b.a.call(MISSES[1])?;
        tagged(b)?;
        b.a.jmp(call)?;
    }
    the_call_is_where_it_is_resumed: NotAllowed, |b| {
        let mut call = b.a.create_label();
        tagged(b)?;
        b.a.push(EXITS.start as i32)?;
        b.a.set_label(&mut call)?;
        b.resume = Some(call);
        b.a.call(MISSES[1])?;
    }
    a_crossing_without_a_miss: WrongExit, |b| { b.a.jmp(CROSSING)?; }
    a_crossing_behind_a_miss_of_one_access: WrongExit, |b| {
        b.has_end = false;
        tagged(b)?;
        b.a.push(EXITS.start as i32)?;
        b.a.call(MISSES[1])?;
        b.a.jmp(CROSSING)?;
    }
    a_crossing_where_the_stub_returns_as_ever: WrongExit, |b| {
        b.has_end = false;
        merged(b)?;
        b.a.mov(ecx, 5)?;
        b.a.jmp(CROSSING)?;
    }
    a_crossing_behind_another_miss: WrongExit, |b| {
        b.has_end = false;
        merged(b)?;
        jump_away(b)?;
        tagged(b)?;
        b.a.push(EXITS.start as i32)?;
        b.a.call(MISSES[1])?;
        b.a.jmp(CROSSING)?;
    }
    a_crossing_that_is_resumed_at: WrongExit, |b| {
        b.has_end = false;
        merged(b)?;
        jump_away(b)?;
        let mut label = b.a.create_label();
        b.a.set_label(&mut label)?;
        b.resume = Some(label);
        b.a.jmp(CROSSING)?;
    }
    a_crossing_that_others_come_to: WrongExit, |b| {
        let mut label = b.a.create_label();
        b.has_end = false;
        b.a.test(rcx, rcx)?;
        b.a.je(label)?;
        merged(b)?;
        jump_away(b)?;
        b.a.set_label(&mut label)?;
        b.a.jmp(CROSSING)?;
    }
    a_crossing_with_a_host_address: Leak, |b| {
        b.has_end = false;
        merged(b)?;
        jump_away(b)?;
        checked(b)?;
        b.a.jmp(CROSSING)?;
    }
    a_crossing_with_what_the_stub_left_in_rbp: Leak, |b| {
        b.has_end = false;
        merged(b)?;
        jump_away(b)?;
        b.a.mov(rbx, rbp)?;
        b.a.jmp(CROSSING)?;
    }
    a_crossing_with_a_host_address_in_a_guest_register: Leak, |b| {
        b.has_end = false;
        merged(b)?;
        jump_away(b)?;
        b.a.mov(rdx, rbp)?;
        b.a.jmp(CROSSING)?;
    }
    a_crossing_by_a_call: NotAllowed, |b| {
        b.has_end = false;
        merged(b)?;
        jump_away(b)?;
        b.a.call(CROSSING)?;
    }
    the_stub_returns_into_an_instruction: NotAllowed, |b| {
        b.has_end = false;
        merged(b)?;
        b.a.jmp(b.near)?;
        b.a.mov(ecx, 5)?;
        b.a.jmp(CROSSING)?;
    }
    the_stub_returns_behind_two_instructions: NotAllowed, |b| {
        merged(b)?;
        b.a.inc(rcx)?;
        b.a.inc(ecx)?;
        b.a.mov(rcx, rdx)?;
    }
    the_address_of_a_check_behind_the_crossing: Unchecked, |b| {
        b.has_end = false;
        merged(b)?;
        jump_away(b)?;
        b.a.mov(ptr(rbx), rcx)?;
        b.a.jmp(CROSSING)?;
    }
    the_exit_of_several_accesses_is_of_another_block: WrongExit, |b| {
        tagged(b)?;
        b.a.push(MERGED | EXITS.end as i32)?;
        b.a.call(MISSES[1])?;
        jump_away(b)?;
    }
    the_push_has_a_prefix: NotAllowed, |b| {
        tagged(b)?;
        b.a.db(&[0x66, 0x48, 0x68, 7, 0, 0, 0])?;
        b.a.call(MISSES[1])?;
    }
    // The stub would take the number off the stack all the same.
    the_push_is_jumped_over: NotAllowed, |b| {
        let mut call = b.a.create_label();
        tagged(b)?;
        b.a.jmp(call)?;
        b.a.push(EXITS.start as i32)?;
        b.a.set_label(&mut call)?;
        b.a.call(MISSES[1])?;
    }
    the_call_is_resumed_behind_a_push_that_nothing_leads_to: NotAllowed, |b| {
        let mut call = b.a.create_label();
        tagged(b)?;
        b.a.jmp(b.miss)?;
        b.a.push(EXITS.start as i32)?;
        b.a.set_label(&mut call)?;
        b.resume = Some(call);
        b.a.call(MISSES[1])?;
    }
    the_index_is_odd: Index, |b| {
        tagged(b)?;
        b.a.or(ebp, 1)?;
        b.a.push(EXITS.start as i32)?;
        b.a.call(MISSES[1])?;
    }
    the_address_is_a_host_address: Index, |b| {
        checked(b)?;
        b.a.push(EXITS.start as i32)?;
        b.a.call(MISSES[1])?;
    }
    a_host_address_in_a_guest_register: Leak, |b| {
        checked(b)?;
        b.a.mov(rdx, rbx)?;
        tagged(b)?;
        b.a.push(EXITS.start as i32)?;
        b.a.call(MISSES[1])?;
    }
    the_retry_has_vectors_that_the_exit_lacks: VectorsNotLive, |b| {
        let mut over = b.a.create_label();
        b.a.test(rcx, rcx)?;
        b.a.je(over)?;
        b.a.call(LOAD_VECTORS)?;
        let mut label = b.a.create_label();
        b.a.set_label(&mut label)?;
        b.retry = Some((EXITS.start + 2, label));
        b.a.paddb(xmm0, xmm1)?;
        b.a.set_label(&mut over)?;
        tagged(b)?;
        b.a.push(EXITS.start as i32 + 2)?;
        b.a.call(MISSES[1])?;
    }
}
