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
    the_status_field_is_written: Context, |b| { b.a.mov(context(STATUS), rcx)?; }
    a_register_beyond_the_last: Context, |b| { b.a.mov(rcx, context(GPR - 8))?; }
    between_two_registers: Context, |b| { b.a.mov(context(GPR + 4), rcx)?; }
    misaligned_by_one: Context, |b| { b.a.mov(context(GPR + 1), rcx)?; }
    over_the_end_of_a_field: Context, |b| { b.a.mov(context(CODE_BASE + 4), rcx)?; }
    before_the_context: Context, |b| { b.a.db(&[0x65, 0x48, 0x89, 0x0c, 0x25, 0xf8, 0xff, 0xff, 0xff])?; }
    behind_the_context: Context, |b| { b.a.mov(context(0x10_0000), rcx)?; }
    a_vector_over_several_fields: Context, |b| {
        b.a.call(LOAD_VECTORS)?;
        b.a.movups(context(GPR), xmm0)?;
    }
    the_segment_prefix_is_missing: Unchecked, |b| { b.a.mov(ptr(GPR), rcx)?; }
    the_segment_is_fs: Unchecked, |b| { b.a.mov(ptr(GPR).fs(), rcx)?; }
    an_index_into_the_registers: Context, |b| {
        b.a.and(ecx, 15)?;
        b.a.mov(rdx, table(rcx, GPR))?;
    }
    a_base_register: Context, |b| { b.a.mov(rdx, ptr(rcx + GPR as i32).gs())?; }
    a_tag_is_written: Context, |b| {
        b.a.and(ecx, 1023)?;
        b.a.mov(table(rcx, T.write), rdx)?;
    }
    a_page_is_written: Context, |b| {
        b.a.and(ecx, 1023)?;
        b.a.mov(table(rcx, T.write_host), rdx)?;
    }
    an_entry_of_the_jump_cache_is_written: Context, |b| {
        b.a.and(ecx, 1023)?;
        b.a.mov(table(rcx, T.jump_host), rdx)?;
    }
    a_tag_without_an_index_is_read: Context, |b| { b.a.mov(rcx, context(T.read))?; }
    an_index_beyond_the_jump_cache: Index, |b| {
        b.a.and(ecx, 8191)?;
        b.a.mov(rcx, table(rcx, T.jump_guest))?;
    }
    an_index_of_the_jump_cache_into_the_tlb: Index, |b| {
        b.a.and(ecx, 4095)?;
        b.a.mov(rcx, table(rcx, T.read))?;
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
}
