//! Operands in the context that are not to be touched, or not so.

use crate::common::*;
use iced_x86::code_asm::*;

refused! {
    attention_is_written: Context, |b| { b.a.mov(dword_ptr(context(ATTENTION)), 0)?; }
    what_is_live_is_written: Context, |b| { b.a.mov(dword_ptr(context(VECTORS_LIVE)), 1)?; }
    a_segment_base_is_written: Context, |b| { b.a.mov(context(FS_BASE), rcx)?; }
    a_selector_is_written: Context, |b| { b.a.mov(context(SELECTORS), ecx)?; }
    a_field_of_the_stubs_is_read: Context, |b| { b.a.mov(rcx, context(HOST_SP))?; }
    a_field_of_the_stubs_is_written: Context, |b| { b.a.mov(context(HOST_SP), rcx)?; }
    the_pointer_to_vectors_is_read: Context, |b| { b.a.mov(rcx, context(VECTORS))?; }
    the_number_of_the_exit_is_written: Context, |b| { b.a.mov(context(EXIT), ecx)?; }
    a_register_beyond_the_last: Context, |b| { b.a.mov(rcx, context(GPR + 16 * 8))?; }
    between_two_registers: Context, |b| { b.a.mov(context(GPR + 4), rcx)?; }
    misaligned_by_one: Context, |b| { b.a.mov(context(GPR + 1), rcx)?; }
    over_the_end_of_a_field: Context, |b| { b.a.mov(context(CODE_BASE + 4), rcx)?; }
    before_the_context: Context, |b| { b.a.mov(ptr(rsp - 8), rcx)?; }
    before_the_context_is_read: Context, |b| { b.a.mov(rcx, ptr(rsp - 8))?; }
    far_before_the_context: Context, |b| { b.a.mov(ptr(rsp - 0x7fff_fff8), rcx)?; }
    a_byte_before_the_context: Context, |b| { b.a.mov(byte_ptr(rsp - 1), cl)?; }
    behind_the_context: Context, |b| { b.a.mov(context(0x10_0000), rcx)?; }
    a_vector_over_several_fields: Context, |b| {
        b.a.call(LOAD_VECTORS)?;
        b.a.movups(context(GPR), xmm0)?;
    }
    the_base_is_missing: Unchecked, |b| { b.a.mov(ptr(GPR), rcx)?; }
    the_segment_is_fs: Unchecked, |b| { b.a.mov(context(GPR).fs(), rcx)?; }
    the_segment_is_gs: Unchecked, |b| { b.a.mov(context(GPR).gs(), rcx)?; }
    the_segment_is_ds: Unchecked, |b| { b.a.db(&[0x3e, 0x48, 0x89, 0x4c, 0x24, GPR as u8])?; }
    the_segment_is_es: Unchecked, |b| { b.a.db(&[0x26, 0x48, 0x89, 0x4c, 0x24, GPR as u8])?; }
    gs_without_a_base: Unchecked, |b| { b.a.mov(ptr(GPR).gs(), rcx)?; }
    the_base_is_of_32_bits: StackPointer, |b| { b.a.mov(ptr(esp + GPR as i32), rcx)?; }
    an_index_into_the_registers: Context, |b| {
        b.a.and(ecx, 14)?;
        b.a.mov(rdx, table(rcx, GPR))?;
    }
    an_index_of_the_tlb_into_the_registers: Context, |b| {
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.mov(rdx, table(rbp, GPR))?;
    }
    an_index_without_a_scale: Context, |b| { b.a.mov(rdx, ptr(rsp + rcx + GPR as i32))?; }
    an_index_that_is_zero: Context, |b| {
        b.a.mov(ebp, 0)?;
        b.a.mov(rdx, ptr(rsp + rbp * 1 + GPR as i32))?;
    }
    another_base_register: Unchecked, |b| { b.a.mov(rdx, ptr(rcx + GPR as i32))?; }
    a_tag_is_written: Context, |b| {
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.mov(table(rbp, T.write), rdx)?;
    }
    a_tag_is_added_to: Context, |b| {
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.add(table(rbp, T.write), rdx)?;
    }
    a_page_is_written: Context, |b| {
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.mov(table(rbp, T.write + HOST), rdx)?;
    }
    an_address_in_the_jump_cache_is_written: Context, |b| {
        b.a.mov(rbx, rcx)?;
        jump_index(b)?;
        b.a.mov(table(rbp, T.jump), rdx)?;
    }
    an_entry_of_the_jump_cache_is_written: Context, |b| {
        b.a.mov(rbx, rcx)?;
        jump_index(b)?;
        b.a.mov(table(rbp, T.jump + HOST), rdx)?;
    }
    half_a_tag_is_read: Context, |b| {
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.mov(ecx, table(rbp, T.write))?;
    }
    a_byte_of_a_page_is_read: Context, |b| {
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.mov(cl, table(rbp, T.write + HOST))?;
    }
    both_halves_of_an_entry_are_read: Context, |b| {
        b.a.call(LOAD_VECTORS)?;
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.movups(xmm0, table(rbp, T.write))?;
    }
    indices_of_a_vector: Context, |b| {
        b.a.call(LOAD_VECTORS)?;
        b.a.vpgatherqq(xmm0.k1(), ptr(rsp + xmm1 * 8 + T.write as i32))?;
    }
    a_tag_without_an_index_is_read: Context, |b| { b.a.mov(rcx, context(T.read))?; }
    an_index_beyond_the_jump_cache: Index, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.mov(ebp, ebx)?;
        b.a.shr(ebp, 12)?;
        b.a.xor(ebp, ebx)?;
        b.a.and(ebp, 2 * JUMP_MASK + 2)?;
        b.a.mov(rcx, table(rbp, T.jump))?;
    }
    an_index_of_the_jump_cache_into_the_tlb: Index, |b| {
        b.a.mov(rbx, rcx)?;
        jump_index(b)?;
        b.a.mov(rcx, table(rbp, T.read))?;
    }
    a_small_number_into_the_tlb: Index, |b| {
        b.a.and(ecx, 2)?;
        b.a.mov(rcx, table(rcx, T.read))?;
    }
    a_constant_into_the_tlb: Index, |b| {
        b.a.mov(ebp, 2)?;
        b.a.mov(rcx, table(rbp, T.read))?;
    }
    a_small_number_into_the_jump_cache: Index, |b| {
        b.a.and(ecx, 2)?;
        b.a.mov(rcx, table(rcx, T.jump))?;
    }
    flags_are_stored: Context, |b| { b.a.mov(context(RFLAGS), rcx)?; }
    a_flag_is_set_that_must_not_be: Context, |b| { b.a.or(dword_ptr(context(RFLAGS)), 0x200)?; }
    a_flag_is_cleared_that_must_not_be: Context, |b| { b.a.and(dword_ptr(context(RFLAGS)), !0x600)?; }
    flags_are_cleared_in_their_upper_half: Context, |b| { b.a.and(dword_ptr(context(RFLAGS + 4)), -2)?; }
    flags_are_inverted: Context, |b| { b.a.xor(dword_ptr(context(RFLAGS)), 0x400)?; }
    flags_are_changed_by_a_register: Context, |b| { b.a.or(context(RFLAGS), rcx)?; }
    a_byte_of_flags_is_changed: Context, |b| { b.a.or(byte_ptr(context(RFLAGS + 1)), 4)?; }
    bits_of_flags_are_set_by_number: Context, |b| { b.a.bts(dword_ptr(context(RFLAGS)), 10)?; }
    a_bit_of_the_context_by_register: BitOffset, |b| { b.a.bt(context(GPR), rcx)?; }
    relative_to_the_instruction: Unchecked, |b| {
        let label = b.near;
        b.a.mov(rcx, ptr(label))?;
    }
    relative_to_the_instruction_with_gs: Unchecked, |b| {
        b.a.db(&[0x65, 0x48, 0x8b, 0x0d, 0, 0, 0, 0])?;
    }
    relative_to_the_instructions_lower_half: Unchecked, |b| {
        b.a.db(&[0x67, 0x48, 0x8b, 0x0d, 0, 0, 0, 0])?;
    }
}
