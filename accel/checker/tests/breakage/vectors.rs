//! Vector registers that may hold what is the host's.

use crate::common::*;
use crate::make_live;
use iced_x86::code_asm::*;

refused! {
    vectors_are_not_loaded: VectorsNotLive, |b| { b.a.paddb(xmm0, xmm1)?; }
    masks_are_not_loaded: VectorsNotLive, |b| { b.a.kmovw(ecx, k1)?; }
    upper_halves_are_cleared_without_loading: VectorsNotLive, |b| { b.a.vzeroupper()?; }
    vectors_are_loaded_on_one_way_only: VectorsNotLive, |b| {
        let mut join = b.a.create_label();
        b.a.test(rdx, rdx)?;
        b.a.je(join)?;
        b.a.call(LOAD_VECTORS)?;
        b.a.set_label(&mut join)?;
        b.a.paddb(xmm0, xmm1)?;
    }
    vectors_are_looked_at_the_wrong_way: VectorsNotLive, |b| {
        let mut live = b.a.create_label();
        b.a.cmp(dword_ptr(context(VECTORS_LIVE)), 0)?;
        b.a.je(live)?;
        b.a.call(LOAD_VECTORS)?;
        b.a.set_label(&mut live)?;
        b.a.paddb(xmm0, xmm1)?;
    }
    vectors_are_compared_with_something_else: VectorsNotLive, |b| {
        let mut live = b.a.create_label();
        b.a.cmp(dword_ptr(context(VECTORS_LIVE)), 2)?;
        b.a.jne(live)?;
        b.a.call(LOAD_VECTORS)?;
        b.a.set_label(&mut live)?;
        b.a.paddb(xmm0, xmm1)?;
    }
    another_field_says_that_vectors_are_live: VectorsNotLive, |b| {
        let mut live = b.a.create_label();
        b.a.cmp(dword_ptr(context(GPR)), 0)?;
        b.a.jne(live)?;
        b.a.call(LOAD_VECTORS)?;
        b.a.set_label(&mut live)?;
        b.a.paddb(xmm0, xmm1)?;
    }
    vectors_behind_a_place_to_resume_at: VectorsNotLive, |b| {
        make_live(b)?;
        let mut label = b.a.create_label();
        b.a.set_label(&mut label)?;
        b.resume = Some(label);
        b.a.paddb(xmm0, xmm1)?;
    }
    vectors_behind_a_retry_of_an_exit_without: VectorsNotLive, |b| {
        let mut over = b.a.create_label();
        b.a.mov(rbx, rcx)?;
        b.a.test(rcx, rcx)?;
        b.a.je(over)?;
        b.a.mov(ebp, EXITS.start + 2)?;
        b.a.jmp(LEAVE)?;
        b.a.set_label(&mut over)?;
        make_live(b)?;
        let mut label = b.a.create_label();
        b.a.set_label(&mut label)?;
        b.retry = Some((EXITS.start + 2, label));
        b.a.paddb(xmm0, xmm1)?;
    }
}
