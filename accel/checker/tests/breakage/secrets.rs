//! Host addresses that get to where the guest sees them.

use crate::common::*;
use iced_x86::code_asm::*;

refused! {
    a_host_address_goes_to_a_guest_register: Leak, |b| { checked(b)?; b.a.mov(rcx, rbx)?; }
    a_host_address_goes_to_guest_memory: Leak, |b| { checked(b)?; b.a.mov(ptr(rbx), rbx)?; }
    a_host_address_goes_to_the_context: Leak, |b| { checked(b)?; b.a.mov(context(GPR + 64), rbx)?; }
    a_host_address_goes_to_a_vector: Leak, |b| {
        b.a.call(LOAD_VECTORS)?;
        checked(b)?;
        b.a.movq(xmm0, rbx)?;
    }
    a_host_address_is_computed_with: Leak, |b| { checked(b)?; b.a.sub(rcx, rbx)?; }
    a_host_address_is_extended: Leak, |b| { checked(b)?; b.a.movzx(ecx, bl)?; }
    a_host_address_is_multiplied: Leak, |b| { checked(b)?; b.a.mov(rax, rbx)?; b.a.mul(rcx)?; }
    a_host_address_is_exchanged_with_memory: Leak, |b| {
        checked(b)?;
        b.a.mov(rax, rbx)?;
        b.a.cmpxchg(ptr(rbx), rcx)?;
    }
    a_host_address_moved_by_lea: Leak, |b| { checked(b)?; b.a.lea(rcx, ptr(rbx + rdx * 4))?; }
    a_host_address_is_compared: Leak, |b| { checked(b)?; b.a.cmp(rbx, rcx)?; }
    a_host_address_is_compared_with_a_number: Leak, |b| { checked(b)?; b.a.cmp(rbx, 5)?; }
    bits_of_a_host_address_are_tested: Leak, |b| { checked(b)?; b.a.test(ebx, 4096)?; }
    high_bits_of_a_host_address_are_tested: Leak, |b| { checked(b)?; b.a.test(bh, 16)?; }
    a_quarter_of_a_host_address_by_lea: Leak, |b| {
        checked(b)?;
        b.a.lea(cx, ptr(rbx))?;
    }
    half_a_host_address_by_lea: Leak, |b| { checked(b)?; b.a.lea(ecx, ptr(rbx))?; }
    a_host_address_with_the_guests_added: Leak, |b| {
        checked(b)?;
        b.a.add(rcx, rbx)?;
    }
    a_host_address_with_guest_memory_added: Leak, |b| {
        checked(b)?;
        b.a.add(rbx, ptr(rbx))?;
        b.a.mov(rcx, rbx)?;
    }
    the_table_of_pages_is_read: Leak, |b| {
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.mov(rcx, table(rbp, T.write + HOST))?;
    }
    the_table_of_pages_is_computed_with: Leak, |b| {
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.xor(rdx, table(rbp, T.write + HOST))?;
    }
    the_table_of_host_code_is_read: Leak, |b| {
        b.a.mov(rbx, rcx)?;
        jump_index(b)?;
        b.a.mov(rcx, table(rbp, T.jump + HOST))?;
    }
    the_address_of_the_code: Leak, |b| { b.a.db(&[0x48, 0x8d, 0x0d, 0, 0, 0, 0])?; }
    what_the_host_left_in_rbp: Leak, |b| { b.a.mov(rcx, rbp)?; }
    what_the_last_block_left_in_rbx: Leak, |b| { b.a.mov(context(SPILL), rbx)?; }
    what_the_call_for_vectors_left_in_rbx: Leak, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.call(LOAD_VECTORS)?;
        b.a.mov(rcx, rbx)?;
    }
    the_table_of_pages_goes_to_a_vector: Leak, |b| {
        b.a.call(LOAD_VECTORS)?;
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.movq(xmm0, table(rbp, T.write + HOST))?;
    }
    the_context_by_lea: StackPointer, |b| { b.a.lea(rcx, ptr(rsp))?; }
    the_context_by_lea_with_an_index: StackPointer, |b| { b.a.lea(rcx, ptr(rsp + rdx * 2 + 8))?; }
    half_the_context_by_lea: StackPointer, |b| { b.a.lea(ecx, ptr(rsp))?; }
    the_context_by_lea_of_32_bits: StackPointer, |b| { b.a.lea(rcx, ptr(esp))?; }
    a_host_address_in_rbx_where_it_is_resumed: Leak, |b| {
        checked(b)?;
        let mut label = b.a.create_label();
        b.a.set_label(&mut label)?;
        b.resume = Some(label);
        b.a.mov(rcx, rbx)?;
    }
    a_host_address_in_rbx_where_it_is_retried: Leak, |b| {
        checked(b)?;
        let mut label = b.a.create_label();
        b.a.set_label(&mut label)?;
        b.retry = Some((EXITS.start, label));
        b.a.mov(rcx, rbx)?;
    }
    a_host_address_behind_a_place_to_resume_at: Leak, |b| {
        checked(b)?;
        b.a.mov(rcx, rbx)?;
        let mut label = b.a.create_label();
        b.a.set_label(&mut label)?;
        b.resume = Some(label);
    }
}
