//! The check of a guest's address, not quite right.

use crate::common::*;
use crate::store;
use iced_x86::code_asm::*;

refused! {
    no_check_at_all: Unchecked, |b| { b.a.mov(rbx, rcx)?; store(b)?; }
    a_guest_register_is_the_address: Unchecked, |b| { b.a.mov(ptr(rcx), rdx)?; }
    the_rotation_is_missing: Index, |b| {
        b.a.mov(rbp, rcx)?;
        checked_with(b, |c| c.without = Some(Step::Rotate))?;
        b.a.mov(ptr(rcx), rdx)?;
    }
    the_rotation_is_short_by_one: Index, |b| {
        checked_with(b, |c| c.rotate = 10)?;
        store(b)?;
    }
    the_rotation_is_long_by_one: Index, |b| {
        checked_with(b, |c| c.rotate = 12)?;
        store(b)?;
    }
    the_mask_is_missing: Index, |b| {
        checked_with(b, |c| c.without = Some(Step::Mask))?;
        store(b)?;
    }
    the_mask_is_too_wide: Index, |b| {
        checked_with(b, |c| c.mask = 2 * TLB_MASK + 2)?;
        store(b)?;
    }
    the_mask_is_too_wide_by_a_high_bit: Index, |b| {
        checked_with(b, |c| c.mask = (1 << 30) | TLB_MASK)?;
        store(b)?;
    }
    the_mask_is_negative: Index, |b| {
        checked_with(b, |c| c.mask = -1)?;
        store(b)?;
    }
    the_mask_is_too_narrow: Index, |b| {
        checked_with(b, |c| c.mask = TLB_MASK / 2 - 1)?;
        store(b)?;
    }
    the_mask_has_a_hole: Index, |b| {
        checked_with(b, |c| c.mask = TLB_MASK - 4)?;
        store(b)?;
    }
    the_mask_of_64_bits_keeps_the_upper_half: Index, |b| {
        checked_with(b, |c| {
            c.without = Some(Step::Mask);
            c.then = Some((Step::Rotate, |a| a.and(rbp, -2048)));
        })?;
        store(b)?;
    }
    // Half of one entry would be taken with half of the next.
    the_mask_lets_the_index_be_odd: Index, |b| {
        checked_with(b, |c| c.mask = TLB_MASK + 1)?;
        store(b)?;
    }
    the_mask_is_the_number_of_entries: Index, |b| {
        checked_with(b, |c| c.mask = TLB_ENTRIES as i32 - 1)?;
        store(b)?;
    }
    the_index_becomes_odd: Index, |b| {
        checked_with(b, |c| c.then = Some((Step::Mask, |a| a.or(ebp, 1))))?;
        store(b)?;
    }
    the_index_becomes_that_of_the_next_entry: Index, |b| {
        checked_with(b, |c| c.then = Some((Step::Branch, |a| a.lea(rbp, ptr(rbp + 2)))))?;
        store(b)?;
    }
    the_index_is_doubled: Index, |b| {
        checked_with(b, |c| c.then = Some((Step::Mask, |a| a.add(ebp, ebp))))?;
        store(b)?;
    }
    the_index_is_of_the_jump_cache: Index, |b| {
        b.a.mov(rbx, rcx)?;
        jump_index(b)?;
        b.a.add(rbx, table(rbp, T.write))?;
    }
    the_tag_is_missing: Unchecked, |b| {
        checked_with(b, |c| c.without = Some(Step::Tag))?;
        store(b)?;
    }
    the_comparison_is_missing: Unchecked, |b| {
        checked_with(b, |c| c.without = Some(Step::Compare))?;
        store(b)?;
    }
    the_branch_is_missing: Unchecked, |b| {
        checked_with(b, |c| c.without = Some(Step::Branch))?;
        store(b)?;
    }
    the_host_address_is_missing: Unchecked, |b| {
        checked_with(b, |c| c.without = Some(Step::Host))?;
        store(b)?;
    }
    the_host_address_comes_before_the_branch: Unchecked, |b| {
        checked_with(b, |c| {
            c.without = Some(Step::Host);
            c.then = Some((Step::Compare, |a| a.add(rbx, table(rbp, T.write + HOST))));
        })?;
        store(b)?;
    }
    the_host_address_is_added_twice: Unchecked, |b| {
        checked_with(b, |c| c.then = Some((Step::Host, |a| a.add(rbx, table(rbp, T.write + HOST)))))?;
        store(b)?;
    }
    the_condition_is_signed: Unchecked, |b| { checked_with(b, |c| c.over = Over::G)?; store(b)?; }
    the_condition_is_reversed: Unchecked, |b| { checked_with(b, |c| c.over = Over::Be)?; store(b)?; }
    the_condition_is_below: Unchecked, |b| { checked_with(b, |c| c.over = Over::B)?; store(b)?; }
    the_condition_is_equal: Unchecked, |b| { checked_with(b, |c| c.over = Over::E)?; store(b)?; }
    the_condition_is_not_equal: Unchecked, |b| { checked_with(b, |c| c.over = Over::Ne)?; store(b)?; }
    the_condition_is_the_sign: Unchecked, |b| { checked_with(b, |c| c.over = Over::S)?; store(b)?; }
    the_limit_is_too_high_by_one: BeyondCheck, |b| {
        checked_with(b, |c| c.limit = 4096 - 7)?;
        store(b)?;
    }
    the_limit_is_a_page: Unchecked, |b| { checked_with(b, |c| c.limit = 4096)?; store(b)?; }
    the_limit_is_negative: Unchecked, |b| { checked_with(b, |c| c.limit = -1)?; store(b)?; }
    the_limit_is_huge: Unchecked, |b| { checked_with(b, |c| c.limit = i32::MAX)?; store(b)?; }
    the_comparison_is_of_32_bits: Unchecked, |b| {
        checked_with(b, |c| {
            c.without = Some(Step::Compare);
            c.then = Some((Step::Tag, |a| a.cmp(ebx, 4088)));
        })?;
        store(b)?;
    }
    the_comparison_is_of_16_bits: Unchecked, |b| {
        checked_with(b, |c| {
            c.without = Some(Step::Compare);
            c.then = Some((Step::Tag, |a| a.cmp(bx, 4088)));
        })?;
        store(b)?;
    }
    the_comparison_is_of_another_register: Unchecked, |b| {
        checked_with(b, |c| {
            c.without = Some(Step::Compare);
            c.then = Some((Step::Tag, |a| a.cmp(rcx, 4088)));
        })?;
        store(b)?;
    }
    the_comparison_is_a_test: Unchecked, |b| {
        checked_with(b, |c| {
            c.without = Some(Step::Compare);
            c.then = Some((Step::Tag, |a| a.test(rbx, 4088)));
        })?;
        store(b)?;
    }
    the_comparison_is_with_a_register: Unchecked, |b| {
        checked_with(b, |c| {
            c.without = Some(Step::Compare);
            c.then = Some((Step::Tag, |a| a.cmp(rbx, rdx)));
        })?;
        store(b)?;
    }
    flags_change_before_the_branch: Unchecked, |b| {
        checked_with(b, |c| c.then = Some((Step::Compare, |a| a.add(rcx, 1))))?;
        store(b)?;
    }
    flags_are_loaded_before_the_branch: Unchecked, |b| {
        checked_with(b, |c| c.then = Some((Step::Compare, |a| a.sahf())))?;
        store(b)?;
    }
    the_carry_changes_before_the_branch: Unchecked, |b| {
        checked_with(b, |c| c.then = Some((Step::Compare, |a| a.clc())))?;
        store(b)?;
    }
    the_tag_is_of_another_view: Context, |b| {
        checked_with(b, |c| c.tag = tables(0).write)?;
        store(b)?;
    }
    the_tag_is_of_a_view_with_more_rights: Context, |b| {
        checked_with(b, |c| c.tag = tables(2).write)?;
        store(b)?;
    }
    the_page_is_of_another_view: Context, |b| {
        checked_with(b, |c| c.host = tables(2).write + HOST)?;
        store(b)?;
    }
    the_tag_is_for_loads: ReadOnly, |b| { checked_with(b, |c| c.loads())?; store(b)?; }
    the_tag_is_the_page: Leak, |b| { checked_with(b, |c| c.tag = T.write + HOST)?; store(b)?; }
    the_page_is_the_tag: Unchecked, |b| { checked_with(b, |c| c.host = T.write)?; store(b)?; }
    the_tag_is_of_the_next_entry: Context, |b| {
        checked_with(b, |c| c.tag = T.write + 16)?;
        store(b)?;
    }
    the_page_is_the_tag_of_the_next_entry: Context, |b| {
        checked_with(b, |c| c.host = T.write + 16)?;
        store(b)?;
    }
    the_tag_is_the_page_of_the_entry_before: Context, |b| {
        checked_with(b, |c| c.tag = T.write - 8)?;
        store(b)?;
    }
    the_tag_is_of_the_jump_cache: Index, |b| {
        checked_with(b, |c| c.tag = T.jump)?;
        store(b)?;
    }
    the_page_is_of_the_jump_cache: Index, |b| {
        checked_with(b, |c| c.host = T.jump + HOST)?;
        store(b)?;
    }
    the_page_is_for_loads: Unchecked, |b| {
        checked_with(b, |c| c.host = T.read + HOST)?;
        store(b)?;
    }
    the_tag_is_misaligned: Context, |b| { checked_with(b, |c| c.tag = T.write + 1)?; store(b)?; }
    the_page_is_of_the_next_entry: Context, |b| {
        checked_with(b, |c| c.host = T.write + 16 + HOST)?;
        store(b)?;
    }
    the_index_is_of_another_register: Unchecked, |b| {
        checked_with(b, |c| {
            c.without = Some(Step::Rotate);
            c.then = Some((Step::Rotate, |a| a.rorx(rbp, rcx, 11)));
        })?;
        store(b)?;
    }
    the_index_is_of_an_older_address: Unchecked, |b| {
        checked_with(b, |c| c.then = Some((Step::Mask, |a| a.lea(rbx, ptr(rbx + 8)))))?;
        store(b)?;
    }
    the_index_changes_before_the_tag: Index, |b| {
        checked_with(b, |c| c.then = Some((Step::Mask, |a| a.inc(ebp))))?;
        store(b)?;
    }
    the_index_changes_before_the_page: Index, |b| {
        checked_with(b, |c| c.then = Some((Step::Branch, |a| a.mov(rbp, rcx))))?;
        store(b)?;
    }
    the_index_is_masked_again_before_the_page: Index, |b| {
        checked_with(b, |c| c.then = Some((Step::Branch, |a| a.and(ebp, 1))))?;
        store(b)?;
    }
    the_index_is_sign_extended_garbage: Index, |b| {
        checked_with(b, |c| c.then = Some((Step::Mask, |a| a.movsxd(rbp, ecx))))?;
        store(b)?;
    }
    the_index_is_scaled_wrongly: Context, |b| {
        b.a.lea(rbx, ptr(rcx))?;
        tlb_index(b)?;
        b.a.add(rbx, ptr(rsp + rbp * 4 + T.write as i32))?;
    }
    the_index_is_a_base_without_scale: Context, |b| {
        b.a.lea(rbx, ptr(rcx))?;
        tlb_index(b)?;
        b.a.add(rbx, ptr(rsp + rbp + T.write as i32))?;
    }
    the_table_has_another_base: Unchecked, |b| {
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.add(rbx, ptr(rcx + rbp * 8 + T.write as i32))?;
    }
    the_table_has_no_base: Unchecked, |b| {
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.add(rbx, ptr(rbp * 8 + T.write as i32))?;
    }
    the_table_is_behind_gs: Unchecked, |b| {
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.add(rbx, table(rbp, T.write).gs())?;
    }
    the_index_is_of_32_bit_addressing: StackPointer, |b| {
        b.a.mov(rbx, rcx)?;
        tlb_index(b)?;
        b.a.add(rbx, ptr(esp + ebp * 8 + T.write as i32))?;
    }
    the_address_changes_before_the_tag: Unchecked, |b| {
        checked_with(b, |c| c.then = Some((Step::Rotate, |a| a.inc(rbx))))?;
        store(b)?;
    }
    the_address_changes_before_the_comparison: Unchecked, |b| {
        checked_with(b, |c| c.then = Some((Step::Tag, |a| a.add(rbx, 8))))?;
        store(b)?;
    }
    the_address_changes_before_the_branch: Unchecked, |b| {
        checked_with(b, |c| c.then = Some((Step::Compare, |a| a.lea(rbx, ptr(rbx + 8)))))?;
        store(b)?;
    }
    the_address_changes_before_the_page: Unchecked, |b| {
        checked_with(b, |c| c.then = Some((Step::Branch, |a| a.lea(rbx, ptr(rbx + 8)))))?;
        store(b)?;
    }
    the_tag_is_subtracted: Unchecked, |b| {
        checked_with(b, |c| {
            c.without = Some(Step::Tag);
            c.then = Some((Step::Mask, |a| a.sub(rbx, table(rbp, T.write))));
        })?;
        store(b)?;
    }
    the_tag_is_added_in_32_bits: Context, |b| {
        checked_with(b, |c| {
            c.without = Some(Step::Tag);
            c.then = Some((Step::Mask, |a| a.add(ebx, table(rbp, T.write))));
        })?;
        store(b)?;
    }
    only_a_part_of_the_page_number_is_known: Unchecked, |b| {
        b.a.mov(rbx, rcx)?;
        b.a.movzx(ebp, bx)?;
        b.a.shr(ebp, 11)?;
        b.a.and(ebp, TLB_MASK)?;
        b.a.add(rbx, table(rbp, T.write))?;
        b.a.cmp(rbx, 4088)?;
        b.a.ja(b.miss)?;
        b.a.add(rbx, table(rbp, T.write + HOST))?;
        store(b)?;
    }
}
