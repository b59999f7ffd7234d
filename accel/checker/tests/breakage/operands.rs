//! Operands behind a check that do not go with it.

use crate::common::*;
use crate::store;
use iced_x86::code_asm::*;

refused! {
    more_bytes_than_checked: BeyondCheck, |b| { checked(b)?; b.a.cmpxchg16b(ptr(rbx))?; }
    one_byte_beyond: BeyondCheck, |b| { checked(b)?; b.a.mov(byte_ptr(rbx + 8), cl)?; }
    one_byte_before: BeyondCheck, |b| { checked(b)?; b.a.mov(byte_ptr(rbx - 1), cl)?; }
    a_displacement_with_too_little_room: BeyondCheck, |b| {
        checked(b)?;
        b.a.mov(ptr(rbx + 1), rcx)?;
    }
    a_displacement_far_away: BeyondCheck, |b| { checked(b)?; b.a.mov(ptr(rbx + 0x1000), rcx)?; }
    a_displacement_far_below: BeyondCheck, |b| {
        checked(b)?;
        b.a.mov(ptr(rbx - 0x7fff_fff0), rcx)?;
    }
    the_address_is_moved_out_by_lea: BeyondCheck, |b| {
        checked(b)?;
        b.a.lea(rbx, ptr(rbx + 8))?;
        store(b)?;
    }
    the_address_is_moved_out_by_add: BeyondCheck, |b| {
        checked(b)?;
        b.a.add(rbx, 16)?;
        store(b)?;
    }
    the_address_is_moved_out_by_sub: BeyondCheck, |b| { checked(b)?; b.a.sub(rbx, 8)?; store(b)?; }
    the_address_is_moved_out_in_steps: Unchecked, |b| {
        checked(b)?;
        b.a.add(rbx, i32::MAX)?;
        b.a.add(rbx, i32::MAX)?;
        b.a.mov(al, ptr(rbx + 2))?;
    }
    a_register_is_added_to_the_address: Unchecked, |b| { checked(b)?; b.a.add(rbx, rcx)?; store(b)?; }
    an_index_besides_the_address: Unchecked, |b| { checked(b)?; b.a.mov(ptr(rbx + rcx), rdx)?; }
    the_address_is_a_scaled_index: Unchecked, |b| { checked(b)?; b.a.mov(ptr(rbx * 2), rdx)?; }
    the_address_in_32_bits: Unchecked, |b| { checked(b)?; b.a.mov(ptr(ebx), rdx)?; }
    the_fs_segment: Unchecked, |b| { checked(b)?; b.a.mov(ptr(rbx).fs(), rdx)?; }
    the_gs_segment: Unchecked, |b| { checked(b)?; b.a.mov(ptr(rbx).gs(), rdx)?; }
    a_store_after_a_check_for_loads: ReadOnly, |b| {
        checked_with(b, |c| c.loads())?;
        b.a.add(ptr(rbx), rcx)?;
    }
    an_exchange_after_a_check_for_loads: ReadOnly, |b| {
        checked_with(b, |c| c.loads())?;
        b.a.xchg(ptr(rbx), rcx)?;
    }
    a_comparing_exchange_after_a_check_for_loads: ReadOnly, |b| {
        checked_with(b, |c| c.loads())?;
        b.a.lock().cmpxchg(ptr(rbx), rcx)?;
    }
    a_bit_is_set_after_a_check_for_loads: ReadOnly, |b| {
        checked_with(b, |c| c.loads())?;
        b.a.bts(qword_ptr(rbx), 3)?;
    }
    a_vector_store_after_a_check_for_loads: ReadOnly, |b| {
        b.a.call(LOAD_VECTORS)?;
        checked_with(b, |c| { c.loads(); c.limit = 4080; })?;
        b.a.movups(ptr(rbx), xmm0)?;
    }
    a_masked_store_of_more_than_checked: BeyondCheck, |b| {
        b.a.call(LOAD_VECTORS)?;
        checked(b)?;
        b.a.vmovdqu8(ptr(rbx).k1(), zmm0)?;
    }
    a_vector_load_of_more_than_checked: BeyondCheck, |b| {
        b.a.call(LOAD_VECTORS)?;
        checked(b)?;
        b.a.vaddps(ymm0, ymm0, ptr(rbx))?;
    }
    a_gather: Unchecked, |b| {
        b.a.call(LOAD_VECTORS)?;
        checked(b)?;
        b.a.db(&[0xc4, 0xe2, 0x61, 0x90, 0x0c, 0x13])?;
    }
    a_scatter: Unchecked, |b| {
        b.a.call(LOAD_VECTORS)?;
        checked(b)?;
        b.a.vpscatterdd(ptr(rbx + xmm2 * 1).k1(), xmm3)?;
    }
    the_address_is_written_in_part_by_a_byte: Leak, |b| {
        checked(b)?;
        b.a.mov(bl, cl)?;
        b.a.mov(rcx, rbx)?;
    }
    the_address_is_loaded_in_part: Unchecked, |b| { checked(b)?; b.a.mov(bx, cx)?; store(b)?; }
    the_address_has_its_high_byte_changed: Unchecked, |b| { checked(b)?; b.a.mov(bh, 1)?; store(b)?; }
    the_address_is_written_in_its_lower_half: Unchecked, |b| { checked(b)?; b.a.mov(ebx, ecx)?; store(b)?; }
    the_address_is_exchanged: Leak, |b| { checked(b)?; b.a.xchg(rbx, rcx)?; store(b)?; }
    the_address_is_moved_conditionally: Leak, |b| { checked(b)?; b.a.cmove(rbx, rcx)?; store(b)?; }
    the_address_is_loaded_from_memory: Unchecked, |b| {
        checked(b)?;
        b.a.mov(rbx, ptr(rbx))?;
        store(b)?;
    }
    the_address_is_the_count_of_something: Unchecked, |b| { checked(b)?; b.a.popcnt(rbx, rcx)?; store(b)?; }
    the_address_is_a_product: Unchecked, |b| {
        checked(b)?;
        b.a.mulx(rbx, rax, rcx)?;
        store(b)?;
    }
    the_address_is_set_by_a_flag: Unchecked, |b| { checked(b)?; b.a.setne(bl)?; store(b)?; }
    the_address_comes_from_a_vector: Unchecked, |b| {
        b.a.call(LOAD_VECTORS)?;
        checked(b)?;
        b.a.movq(rbx, xmm0)?;
        store(b)?;
    }
    the_copy_is_overwritten_by_a_product: Unchecked, |b| {
        checked(b)?;
        b.a.mov(rax, rbx)?;
        b.a.imul_3(rax, rcx, 3)?;
        b.a.mov(ptr(rax), rcx)?;
    }
    the_copy_is_overwritten_by_division: Unchecked, |b| {
        checked(b)?;
        b.a.lea(rdx, ptr(rbx))?;
        b.a.xor(eax, eax)?;
        b.a.cdq()?;
        b.a.mov(ptr(rdx), rcx)?;
    }
    the_copy_is_overwritten_by_an_exchange_of_16_bytes: Unchecked, |b| {
        checked_with(b, |c| c.limit = 4080)?;
        b.a.mov(rbp, rbx)?;
        b.a.mov(rbx, rcx)?;
        b.a.mov(rdx, rbp)?;
        b.a.xor(edx, edx)?;
        b.a.cmpxchg16b(ptr(rbp))?;
        b.a.mov(ptr(rdx), rcx)?;
    }
    the_call_for_vectors_takes_the_address: Unchecked, |b| {
        checked(b)?;
        b.a.call(LOAD_VECTORS)?;
        store(b)?;
    }
    a_bit_offset_that_is_not_masked: BitOffset, |b| { checked(b)?; b.a.bts(ptr(rbx), rcx)?; }
    a_bit_offset_that_is_masked_too_wide: BitOffset, |b| {
        checked(b)?;
        b.a.mov(rbp, rcx)?;
        b.a.and(ebp, 127)?;
        b.a.bts(ptr(rbx), rbp)?;
    }
    a_bit_offset_for_a_wider_operand: BitOffset, |b| {
        checked(b)?;
        b.a.mov(rbp, rcx)?;
        b.a.and(ebp, 63)?;
        b.a.bt(ptr(rbx), ebp)?;
    }
    a_bit_offset_that_changed: BitOffset, |b| {
        checked(b)?;
        b.a.mov(rbp, rcx)?;
        b.a.and(ebp, 63)?;
        b.a.neg(rbp)?;
        b.a.btc(ptr(rbx), rbp)?;
    }
}
