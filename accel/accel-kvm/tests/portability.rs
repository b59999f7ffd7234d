//! A guest's processor goes from one accelerator to the other and back, in the middle of its work.

mod common;

use accel::{Accelerator, CpuState, Exit, Sections};
use accel_kvm::KvmAccelerator;
use accel_soft::SoftAccelerator;
use common::{Board, END, OUT, enter, has_kvm, machine, memory, model};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Rounds of the guest, each of which tells its number.
const ROUNDS: u32 = 60;

/// A guest that keeps a sum in each kind of state that can get lost on the way: general-purpose,
/// x87 and SSE registers, memory, the stack, an MSR, a segment base, a debug register and flags.
fn guest(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.xor(ebx, ebx)?; // the round
    a.xor(esi, esi)?; // sums
    a.pxor(xmm7, xmm7)?;
    a.fldz()?;
    a.mov(dword_ptr(0x7000), 0)?;
    a.mov(ecx, 0xc000_0102u32)?; // KERNEL_GS_BASE
    a.xor(eax, eax)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    a.set_label(&mut again)?;
    a.inc(ebx)?;
    a.add(esi, ebx)?;
    a.movd(xmm6, ebx)?;
    a.paddd(xmm7, xmm6)?;
    a.mov(dword_ptr(0x7010), ebx)?;
    a.fiadd(dword_ptr(0x7010))?;
    a.add(dword_ptr(0x7000), ebx)?;
    a.mov(ecx, 0xc000_0102u32)?;
    a.rdmsr()?;
    a.add(eax, ebx)?;
    a.wrmsr()?;
    a.mov(rax, dr1)?;
    a.add(rax, rbx)?;
    a.mov(dr1, rax)?;
    a.push(rbx)?;
    a.mov(eax, ebx)?;
    a.stc()?;
    a.out(u32::from(OUT), eax)?;
    // CF has survived, and what was pushed.
    let mut lost = a.create_label();
    a.jnc(lost)?;
    a.pop(rax)?;
    a.cmp(eax, ebx)?;
    a.jne(lost)?;
    a.cmp(ebx, ROUNDS)?;
    a.jne(again)?;
    // All sums must agree: 0 if they do.
    a.movd(eax, xmm7)?;
    a.xor(eax, esi)?;
    a.mov(edi, eax)?;
    a.fistp(dword_ptr(0x7020))?;
    a.mov(eax, dword_ptr(0x7020))?;
    a.xor(eax, esi)?;
    a.or(edi, eax)?;
    a.mov(eax, dword_ptr(0x7000))?;
    a.xor(eax, esi)?;
    a.or(edi, eax)?;
    a.mov(ecx, 0xc000_0102u32)?;
    a.rdmsr()?;
    a.xor(eax, esi)?;
    a.or(edi, eax)?;
    a.mov(rax, dr1)?;
    a.xor(eax, esi)?;
    a.or(edi, eax)?;
    a.mov(eax, edi)?;
    a.out(u32::from(END), eax)?;
    a.hlt()?;
    a.set_label(&mut lost)?;
    a.mov(eax, 0xbadu32)?;
    a.out(u32::from(END), eax)?;
    a.hlt()
}

/// The state of a guest that enters, with something in MSRs that it does not use itself.
fn first(state: &mut CpuState) {
    enter(state);
    state.msrs.star = 0x23_0010_0000_0000;
    state.msrs.lstar = 0xffff_8000_1234_5678;
    state.msrs.sfmask = 0x4_7700;
    state.msrs.sysenter_esp = 0xffff_8000_0000_7000;
}

#[test]
fn a_guest_changes_accelerators_in_the_middle() {
    if !has_kvm() {
        return;
    }
    let kvm = KvmAccelerator::open().unwrap();
    let soft = SoftAccelerator::default();
    // What both offer.
    let cpuid = kvm.offered(&model()).unwrap();
    let memory = memory(guest);
    let board = Board::default();
    let mut saved: Option<CpuState> = None;
    // Twenty legs, by turns; the last one goes to the end.
    for leg in 0..20u32 {
        let accelerator: &dyn Accelerator = if leg % 2 == 0 { &soft } else { &kvm };
        let (_vm, mut vcpu) = machine(accelerator, &cpuid, &memory);
        let state = vcpu.load(Sections::all()).unwrap();
        match &saved {
            None => first(state),
            Some(saved) => *state = saved.clone(),
        }
        vcpu.store(Sections::all()).unwrap();
        if let Some(saved) = &saved {
            // What was stored is what is there, whoever has it.
            let (mut got, saved) = (vcpu.load(Sections::all()).unwrap().clone(), saved.clone());
            // Of MSRs that a host does not have, or keeps as they are, nothing can be said.
            let here = std::mem::replace(&mut got.msrs, saved.msrs.clone());
            got.msrs.star = here.star;
            got.msrs.lstar = here.lstar;
            got.msrs.sfmask = here.sfmask;
            got.msrs.kernel_gs_base = here.kernel_gs_base;
            got.msrs.sysenter_esp = here.sysenter_esp;
            got.msrs.pat = here.pat;
            assert_eq!(got, saved, "{} at leg {leg}", accelerator.name());
        }
        let stop_at = if leg == 19 { u32::MAX } else { (leg + 1) * 3 };
        let kicker = vcpu.kicker();
        *board.on_out.lock().unwrap() = Some(Box::new(move |round| {
            if round == stop_at {
                kicker.kick();
            }
        }));
        let exit = board.run(vcpu.as_mut());
        assert_eq!(exit, Exit::Kicked, "{} at leg {leg}", accelerator.name());
        saved = Some(vcpu.load(Sections::all()).unwrap().clone());
    }
    let mut expected: Vec<u32> = (1..=ROUNDS).collect();
    expected.push(0);
    assert_eq!(*board.outs.lock().unwrap(), expected);
}
