//! Addresses of 32 bits where those of 64 belong, and other confusion of widths.

use crate::common::*;
use crate::store;
use iced_x86::code_asm::*;

refused! {
    the_host_address_is_cut: Leak, |b| {
        checked(b)?;
        b.a.mov(ebx, ebx)?;
        store(b)?;
    }
    the_host_address_is_cut_by_lea: Unchecked, |b| {
        checked(b)?;
        b.a.lea(ebx, ptr(rbx))?;
        store(b)?;
    }
    half_of_the_host_address_goes_to_the_guest: Leak, |b| {
        checked(b)?;
        b.a.lea(ecx, ptr(rbx))?;
    }
    a_base_of_32_bits_reaches_below_4_gib: Unchecked, |b| {
        checked(b)?;
        b.a.mov(ptr(ebx), ecx)?;
    }
    the_offset_is_cut_before_the_comparison: Unchecked, |b| {
        checked_with(b, |c| c.then = Some((Step::Tag, |a| a.mov(ebx, ebx))))?;
        store(b)?;
    }
    the_offset_is_cut_behind_the_comparison: Unchecked, |b| {
        checked_with(b, |c| c.then = Some((Step::Compare, |a| a.mov(ebx, ebx))))?;
        store(b)?;
    }
    the_address_is_cut_behind_its_index: Unchecked, |b| {
        checked_with(b, |c| c.then = Some((Step::Mask, |a| a.mov(ebx, ebx))))?;
        store(b)?;
    }
    the_address_is_cut_while_its_index_is_made: Unchecked, |b| {
        checked_with(b, |c| c.then = Some((Step::Rotate, |a| a.lea(ebx, ptr(rbx)))))?;
        store(b)?;
    }
    half_of_the_tag_is_added: Context, |b| {
        checked_with(b, |c| {
            c.without = Some(Step::Tag);
            c.then = Some((Step::Mask, |a| a.add(ebx, table(rbp, T.write))));
        })?;
        store(b)?;
    }
    half_of_the_page_is_added: Context, |b| {
        checked_with(b, |c| {
            c.without = Some(Step::Host);
            c.then = Some((Step::Branch, |a| a.add(ebx, table(rbp, T.write + HOST))));
        })?;
        store(b)?;
    }
    the_segment_base_is_added_behind_the_index: Unchecked, |b| {
        checked_with(b, |c| c.then = Some((Step::Mask, |a| a.add(ebx, context(FS_BASE)))))?;
        store(b)?;
    }
    the_segment_base_is_added_to_the_offset: Unchecked, |b| {
        checked_with(b, |c| c.then = Some((Step::Branch, |a| a.add(ebx, context(FS_BASE)))))?;
        store(b)?;
    }
    the_segment_base_is_added_to_the_host_address: Leak, |b| {
        checked(b)?;
        b.a.add(ebx, context(FS_BASE))?;
        store(b)?;
    }
    more_is_stored_than_a_word_of_32_bits: BeyondCheck, |b| {
        checked_with(b, |c| c.limit = 4096 - 4)?;
        store(b)?;
    }
    the_next_word_is_stored_to: BeyondCheck, |b| {
        checked_with(b, |c| c.limit = 4096 - 4)?;
        b.a.mov(ptr(rbx + 4), ecx)?;
    }
    the_word_below_is_stored_to: BeyondCheck, |b| {
        checked_with(b, |c| c.limit = 4096 - 4)?;
        b.a.mov(ptr(rbx - 4), ecx)?;
    }
    a_limit_is_written: Context, |b| { b.a.mov(dword_ptr(context(LIMITED)), 0)?; }
    the_limits_are_written_with_what_is_before: Context, |b| {
        b.a.mov(context(LIMITED - 4), rcx)?;
    }
    what_is_behind_the_limits_is_read: Context, |b| {
        b.a.cmp(dword_ptr(context(LIMITED + 8)), 0)?;
    }
    the_target_is_cut_behind_its_index: UncheckedJump, |b| {
        b.a.mov(rbx, r9)?;
        jump_index(b)?;
        b.a.mov(ebx, ebx)?;
        b.a.cmp(rbx, table(rbp, T.jump))?;
        b.a.jne(b.miss)?;
        jump(b)?;
    }
    the_target_is_cut_behind_the_comparison: UncheckedJump, |b| {
        b.a.mov(rbx, r9)?;
        look_up(b)?;
        b.a.mov(ebx, ebx)?;
        jump(b)?;
    }
    half_of_the_target_is_compared: Context, |b| {
        b.a.mov(ebx, r9d)?;
        jump_index(b)?;
        b.a.cmp(ebx, table(rbp, T.jump))?;
        b.a.jne(b.miss)?;
        jump(b)?;
    }
    half_of_a_host_address_is_branched_to: UncheckedJump, |b| {
        checked(b)?;
        b.a.lea(ebx, ptr(rbx))?;
        b.a.mov(rbp, 0u64)?;
        jump(b)?;
    }
    a_call_pushes_on_the_host_stack: NotAllowed, |b| { b.a.push(rcx)?; }
}
