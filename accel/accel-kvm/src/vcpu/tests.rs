//! What KVM was about to deliver when a processor left the guest, and what becomes of it.

use std::path::Path;

use accel::VmResources;
use kvm_bindings::kvm_vcpu_events;
use mem::vm_memory::Bytes;
use mem::{GuestAddress, RamRange};
use runtime::{Clock, Timers};
use x86::cpuid::{CpuidResult, Model, build};
use x86::state::{Cr0, Cr4, DescriptorTable, Efer, Rflags, SegReg, Segment, SegmentAttributes};

use super::*;
use crate::host::{self, Host};
use crate::vm::KvmVm;

const TABLES: u64 = 0x1000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const CODE: u64 = 0x6000;
/// The handler of each vector lies this far from the one before.
const HANDLERS: u64 = 0x7000;
const APART: u64 = 0x10;
const STACK: u64 = 0xf000;

/// A processor in 64-bit mode, with handlers for all vectors; `None` where there is no KVM.
fn processor() -> Option<(KvmVm, KvmVcpu)> {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("SKIPPED: there is no /dev/kvm here");
        return None;
    }
    let memory = mem::allocate(&[RamRange { start: 0, len: 0x1_0000 }]).unwrap();
    let write = |at, value: u64| memory.write_obj(value, GuestAddress(at)).unwrap();
    write(TABLES, (TABLES + 0x1000) | 3);
    write(TABLES + 0x1000, (TABLES + 0x2000) | 3);
    write(TABLES + 0x2000, 0x83);
    write(GDT + 8, 0x00af_9b00_0000_ffff);
    write(GDT + 16, 0x00cf_9300_0000_ffff);
    for vector in 0..256 {
        // An interrupt gate to a handler in the segment 8.
        let handler = HANDLERS + vector * APART;
        write(IDT + vector * 16, handler | 8 << 16 | 0x8e00 << 32);
    }
    let clock = Arc::new(Clock::new());
    let timers = Arc::new(Timers::new(clock.clone()).unwrap());
    let host = |leaf, subleaf| {
        let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
        CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
    };
    let cpuid = build(Model::V2, host, runtime::tsc::frequency_hz()).unwrap();
    let resources = VmResources { memory, clock, timers, cpus: 1, cpuid, hyperv: false };
    let host = Host::new(host::open(Path::new("/dev/kvm")).unwrap());
    let vm = KvmVm::create(&host, &resources).unwrap();
    let mut vcpu = vm.take(0).unwrap();
    let state = vcpu.load(Sections::all()).unwrap();
    let flat = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
    state.seg = [flat(0x10, SegmentAttributes::DATA32); 6];
    state.seg[SegReg::Cs as usize] = flat(0x8, SegmentAttributes::CODE64);
    state.gdtr = DescriptorTable { base: GDT, limit: 0x17 };
    state.idtr = DescriptorTable { base: IDT, limit: 0xfff };
    state.cr0 = Cr0::PE | Cr0::ET | Cr0::PG;
    state.cr3 = TABLES;
    state.cr4 = Cr4::PAE;
    state.efer = Efer::LME | Efer::LMA;
    state.rip = CODE;
    state.rflags |= Rflags::IF.bits();
    state.gpr[gpr::RSP] = STACK;
    vcpu.store(Sections::all()).unwrap();
    Some((vm, vcpu))
}

/// Leaves the processor with `change` in its events; its state then, asked for twice.
fn after(change: impl FnOnce(&mut kvm_vcpu_events)) -> Option<CpuState> {
    after_with(0, change).map(|(_, state)| state)
}

/// The same with a CR2, and with the machine.
fn after_with(cr2: u64, change: impl FnOnce(&mut kvm_vcpu_events)) -> Option<(KvmVm, CpuState)> {
    let (vm, mut vcpu) = processor()?;
    vcpu.load(Sections::SYSTEM).unwrap().cr2 = cr2;
    vcpu.store(Sections::SYSTEM).unwrap();
    let mut events = vcpu.fd.get_vcpu_events().unwrap();
    change(&mut events);
    events.flags = 0;
    vcpu.fd.set_vcpu_events(&events).unwrap();
    let state = vcpu.load(Sections::all()).unwrap().clone();
    let again = vcpu.load(Sections::all()).unwrap().clone();
    assert_eq!((state.rip, state.gpr), (again.rip, again.gpr), "it is delivered once");
    let left = vcpu.fd.get_vcpu_events().unwrap();
    assert_eq!((left.interrupt.injected, left.nmi.injected, left.exception.injected), (0, 0, 0));
    if state.rip != CODE {
        let has_code = state.rip == HANDLERS + u64::from(vector::PF) * APART;
        let frame = state.gpr[gpr::RSP] + if has_code { 8 } else { 0 };
        let pushed: u64 = vm.memory().read_obj(GuestAddress(frame)).unwrap();
        assert_eq!(pushed, CODE, "the handler returns to where it came from");
        assert_eq!(frame, STACK - 40);
        assert_eq!(state.rflags & Rflags::IF.bits(), 0);
    }
    Some((vm, state))
}

#[test]
fn an_interrupt_is_delivered() {
    let Some(state) = after(|e| (e.interrupt.injected, e.interrupt.nr) = (1, 0x41)) else { return };
    assert_eq!(state.rip, HANDLERS + 0x41 * APART);
    assert!(!state.nmi_blocked);
}

#[test]
fn an_nmi_is_delivered() {
    let Some(state) = after(|e| e.nmi.injected = 1) else { return };
    assert_eq!(state.rip, HANDLERS + 2 * APART);
    assert!(state.nmi_blocked);
}

#[test]
fn a_debug_trap_is_delivered() {
    let Some(state) = after(|e| (e.exception.injected, e.exception.nr) = (1, 1)) else { return };
    assert_eq!(state.rip, HANDLERS + APART);
}

/// KVM's asynchronous ones come once: a guest that does not see one takes the next fault for it.
#[test]
fn a_page_fault_is_delivered() {
    let fault = |e: &mut kvm_vcpu_events| {
        (e.exception.injected, e.exception.nr) = (1, 14);
        (e.exception.has_error_code, e.exception.error_code) = (1, 6);
    };
    let Some((vm, state)) = after_with(0x1234, fault) else { return };
    assert_eq!(state.rip, HANDLERS + 14 * APART);
    assert_eq!(state.cr2, 0x1234);
    assert_eq!(vm.memory().read_obj::<u64>(GuestAddress(STACK - 48)).unwrap(), 6);
}

#[test]
fn what_comes_again_is_forgotten() {
    let soft = |e: &mut kvm_vcpu_events| {
        (e.interrupt.injected, e.interrupt.nr, e.interrupt.soft) = (1, 0x80, 1);
    };
    let Some(state) = after(soft) else { return };
    assert_eq!(state.rip, CODE);
    let fault = |e: &mut kvm_vcpu_events| {
        (e.exception.injected, e.exception.nr, e.exception.has_error_code) = (1, 13, 1);
    };
    let Some(state) = after(fault) else { return };
    assert_eq!(state.rip, CODE);
}

#[test]
fn a_state_that_cannot_be_is_the_guests_doing() {
    let Some((_vm, vcpu)) = processor() else { return };
    let handle = |reason| {
        let exit = VcpuExit::FailEntry(reason, 0);
        handle(exit, vcpu.page, &vcpu.control, &mut Counters::default(), &NoBus)
    };
    for reason in INVALID_STATE {
        assert!(matches!(handle(reason), Ok(Next::Impossible(told)) if told == reason));
    }
    // MSRs that cannot be loaded, and controls that the host's kernel has set wrongly.
    for reason in [1 << 31 | 34, 7] {
        assert!(matches!(handle(reason), Err(Fault::Host { .. })));
    }
}
