//! Instructions that KVM gives up on are completed.

mod common;

use accel::{Exit, Fault};
use accel_kvm::KvmAccelerator;
use common::{Board, END, OUT, has_kvm, machine, memory, model, start};
use iced_x86::code_asm::*;

/// How often a processor's counter of this name counted.
fn count(vcpu: &dyn accel::Vcpu, name: &str) -> u64 {
    let statistics = vcpu.statistics();
    statistics.counts.iter().find(|(n, _)| *n == name).map(|&(_, count)| count).unwrap()
}

/// INT3 in ring 0 with a handler that returns, for which KVM's emulator has no code: where ring 0 is
/// emulated, somebody else has to do it. With hardware, the processor does, and nobody is asked.
#[test]
fn the_guest_goes_on_after_what_kvm_cannot_do() {
    if !has_kvm() {
        return;
    }
    const IDT: u64 = 0xa000;
    let kvm = KvmAccelerator::open().unwrap();
    let memory = memory(|a| {
        let mut handler = a.create_label();
        a.mov(word_ptr(0x7000), 0xfff)?;
        a.mov(qword_ptr(0x7002), IDT as i32)?;
        a.lidt(ptr(0x7000))?;
        a.mov(word_ptr(0x7010), 0x17)?;
        a.mov(qword_ptr(0x7012), 0x7020)?;
        a.mov(rax, 0u64)?;
        a.mov(qword_ptr(0x7020), rax)?;
        a.mov(rax, 0x00af_9b00_0000_ffffu64)?;
        a.mov(qword_ptr(0x7028), rax)?;
        a.mov(rax, 0x00cf_9300_0000_ffffu64)?;
        a.mov(qword_ptr(0x7030), rax)?;
        a.lgdt(ptr(0x7010))?;
        a.lea(rax, qword_ptr(handler))?;
        a.and(eax, 0xffff)?;
        a.or(eax, 0x8_0000)?;
        a.mov(dword_ptr(IDT + 3 * 16), eax)?;
        a.mov(dword_ptr(IDT + 3 * 16 + 4), 0x8e00)?;
        a.mov(ebx, 7)?;
        for _ in 0..5 {
            a.int3()?;
        }
        a.mov(eax, ebx)?;
        a.out(u32::from(END), eax)?;
        a.hlt()?;
        a.set_label(&mut handler)?;
        a.inc(ebx)?;
        a.mov(eax, ebx)?;
        a.out(u32::from(OUT), eax)?;
        a.iretq()
    });
    let (vm, mut vcpu) = machine(&kvm, &model(), &memory);
    start(vcpu.as_mut());
    vm.log_stores(true).unwrap();
    let board = Board::default();
    assert_eq!(board.run(vcpu.as_mut()), Exit::Kicked);
    assert_eq!(*board.outs.lock().unwrap(), [8, 9, 10, 11, 12, 12]);
    // Whoever stored the handlers' frames.
    let stored = vm.take_stores().unwrap();
    assert!(stored[0].contains(common::STACK - 8), "{stored:x?}");
    assert!(!stored[0].contains(common::STACK + 8), "{stored:x?}");
    let assisted = count(vcpu.as_ref(), "exits_assisted");
    println!("{assisted} of 5 instructions were completed");
    if kvm.measure().unwrap().is_hardware() {
        assert_eq!(assisted, 0);
    } else {
        assert!(assisted <= 5 && count(vcpu.as_ref(), "exits_port_write") == 6);
    }
}

/// A triple fault ends the processor, and it stays so until its state is stored.
#[test]
fn a_triple_fault_is_told_each_time() {
    if !has_kvm() {
        return;
    }
    let kvm = KvmAccelerator::open().unwrap();
    let memory = memory(|a| {
        a.mov(word_ptr(0x7000), 0)?;
        a.lidt(ptr(0x7000))?;
        a.ud2()
    });
    let (_vm, mut vcpu) = machine(&kvm, &model(), &memory);
    start(vcpu.as_mut());
    let board = Board::default();
    assert_eq!(board.run(vcpu.as_mut()), Exit::TripleFault);
    assert_eq!(board.run(vcpu.as_mut()), Exit::TripleFault);
    start(vcpu.as_mut());
    assert_eq!(board.run(vcpu.as_mut()), Exit::TripleFault);
    assert_eq!(count(vcpu.as_ref(), "exits_shutdown"), 2);
}

#[test]
fn what_is_no_kvm_is_no_accelerator() {
    for path in ["/nonexistent/kvm", "/dev/null", "/etc/passwd"] {
        let Err(obstacle) = KvmAccelerator::open_at(std::path::Path::new(path)) else {
            panic!("{path} was taken for KVM")
        };
        let fault = Fault::from(obstacle);
        assert!(
            matches!(fault, Fault::Host { .. }) && fault.to_string().contains("soft"),
            "{fault}"
        );
    }
}
