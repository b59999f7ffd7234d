//! What bypasses the VMM: doorbells that KVM turns into events, and messages by irqfd.

mod common;

use accel::{Accelerator, Exit, Fault, Sections};
use accel_kvm::KvmAccelerator;
use common::{Board, END, OUT, has_kvm, machine, memory, model, resources, start};
use iced_x86::code_asm::*;
use irqchip::Msi;
use runtime::Event;

const BELL: u64 = 0xd000_0000;

#[test]
fn a_doorbell_rings_without_the_vmm() {
    if !has_kvm() {
        return;
    }
    let kvm = KvmAccelerator::open().unwrap();
    let memory = memory(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(ebx, BELL as u32)?;
        a.mov(word_ptr(rbx), 3)?;
        a.mov(dword_ptr(rbx), 4)?;
        a.mov(word_ptr(rbx + 4), 5)?;
        a.out(u32::from(END), eax)?;
        a.jmp(again)
    });
    let (vm, mut vcpu) = machine(&kvm, &model(), &memory);
    start(vcpu.as_mut());
    let Some(doorbells) = vm.doorbells() else {
        eprintln!("SKIPPED: this host's KVM has no ioeventfd");
        return;
    };
    let event = Event::new().unwrap();
    doorbells.attach(BELL, &event).unwrap();
    assert!(doorbells.attach(BELL, &event).is_err(), "the place is taken");
    let board = Board::default();
    assert_eq!(board.run(vcpu.as_mut()), Exit::Kicked);
    // Stores of each length ring; the neighbour is another register.
    assert!(event.clear());
    assert_eq!(*board.stores.lock().unwrap(), [BELL + 4]);

    doorbells.detach(BELL, &event);
    board.stores.lock().unwrap().clear();
    assert_eq!(board.run(vcpu.as_mut()), Exit::Kicked);
    assert!(!event.clear());
    assert_eq!(*board.stores.lock().unwrap(), [BELL, BELL, BELL + 4]);
}

#[test]
fn messages_arrive_by_routes() {
    if !has_kvm() {
        return;
    }
    const IDT: u64 = 0xa000;
    let kvm = KvmAccelerator::open().unwrap();
    // Sleeps until an interrupt comes, tells its vector, and sleeps again.
    let memory = memory(|a| {
        let (mut first, mut second, mut common) =
            (a.create_label(), a.create_label(), a.create_label());
        let mut sleep = a.create_label();
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
        // Gates for vectors 0x41 and 0x52.
        for (vector, handler) in [(0x41u64, first), (0x52, second)] {
            a.lea(rax, qword_ptr(handler))?;
            a.and(eax, 0xffff)?;
            a.or(eax, 0x8_0000)?;
            a.mov(dword_ptr(IDT + vector * 16), eax)?;
            a.mov(dword_ptr(IDT + vector * 16 + 4), 0x8e00)?;
        }
        a.mov(eax, 1)?;
        a.out(u32::from(OUT), eax)?;
        a.set_label(&mut sleep)?;
        a.sti()?;
        a.hlt()?;
        a.jmp(sleep)?;
        a.set_label(&mut first)?;
        a.mov(eax, 0x41)?;
        a.jmp(common)?;
        a.set_label(&mut second)?;
        a.mov(eax, 0x52)?;
        a.set_label(&mut common)?;
        a.mov(ebx, 0xfee0_0000u32)?;
        a.mov(dword_ptr(rbx + 0xb0), 0)?;
        a.out(u32::from(END), eax)?;
        a.iretq()
    });
    let (vm, mut vcpu) = machine(&kvm, &model(), &memory);
    start(vcpu.as_mut());
    let irqs = vm.irq_sink();
    let message = |vector| Msi { address: 0xfee0_0000, data: vector };
    let board = Board::default();
    let route = irqs.open_route().expect("KVM has irqfd");
    let other = irqs.open_route().expect("and more than one");
    // The first comes once the guest is ready for it.
    *board.on_out.lock().unwrap() = Some(Box::new(move |_| route.send(message(0x41))));
    assert_eq!(board.run(vcpu.as_mut()), Exit::Kicked);
    other.send(message(0x52));
    assert_eq!(board.run(vcpu.as_mut()), Exit::Kicked);
    // The same route leads elsewhere from now on.
    other.send(message(0x41));
    assert_eq!(board.run(vcpu.as_mut()), Exit::Kicked);
    drop(other);
    irqs.send_msi(message(0x52));
    assert_eq!(board.run(vcpu.as_mut()), Exit::Kicked);
    assert_eq!(*board.outs.lock().unwrap(), [1, 0x41, 0x52, 0x41, 0x52]);
    // What is no interrupt does nothing.
    let route = irqs.open_route().unwrap();
    route.send(Msi { address: 0x1_fee0_0000, data: 0x41 });
    irqs.send_msi(Msi { address: 0xfed0_0000, data: 0x41 });
    irqs.set_gsi(2, true);
    irqs.set_gsi(u32::MAX, true);
}

#[test]
fn more_processors_than_there_can_be_are_refused() {
    if !has_kvm() {
        return;
    }
    let kvm = KvmAccelerator::open().unwrap();
    let memory = memory(|a| a.hlt());
    for cpus in [0, 65, u32::MAX] {
        match kvm.create_vm(resources(&model(), &memory, cpus)).map(|_| ()) {
            Err(Fault::Unsupported(why)) => assert!(why.contains("--cpus"), "{why}"),
            other => panic!("{cpus}: {other:?}"),
        }
    }
}

#[test]
fn memory_that_kvm_refuses_is_an_error() {
    if !has_kvm() {
        return;
    }
    let kvm = KvmAccelerator::open().unwrap();
    // The last page that there is has no page behind it, which KVM insists on.
    let range = mem::RamRange { start: u64::MAX - 0xfff, len: 0x1000 };
    let memory = match mem::allocate(&[range]) {
        Ok(memory) => memory,
        Err(mem::Error::Layout(_)) => {
            mem::allocate(&[mem::RamRange { start: 1 << 63, ..range }]).unwrap()
        }
        Err(other) => panic!("{other}"),
    };
    match kvm.create_vm(resources(&model(), &memory, 1)).map(|_| ()) {
        Err(fault @ Fault::Host { .. }) => {
            assert!(fault.to_string().contains("refuses the guest's memory"), "{fault}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_routes_messages_go_one_by_one() {
    if !has_kvm() {
        return;
    }
    let kvm = KvmAccelerator::open().unwrap().without(kvm_bindings::KVM_CAP_IRQ_ROUTING);
    let (vm, _vcpu) = machine(&kvm, &model(), &memory(|a| a.hlt()));
    assert!(vm.irq_sink().open_route().is_none());
}

#[test]
fn enlightenments_are_refused_where_kvm_has_none() {
    if !has_kvm() {
        return;
    }
    let kvm = KvmAccelerator::open().unwrap().without(kvm_bindings::KVM_CAP_HYPERV_CPUID);
    let mut resources = resources(&model(), &memory(|a| a.hlt()), 1);
    resources.hyperv = true;
    match kvm.create_vm(resources).map(|_| ()) {
        Err(Fault::Unsupported(why)) => assert!(why.contains("leave out --hyperv"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn states_that_cannot_be_are_refused() {
    if !has_kvm() {
        return;
    }
    let kvm = KvmAccelerator::open().unwrap();
    let memory = memory(|a| a.hlt());
    let (_vm, mut vcpu) = machine(&kvm, &model(), &memory);
    start(vcpu.as_mut());
    // Long mode without PAE.
    let state = vcpu.load(Sections::all()).unwrap();
    state.cr4 = x86::state::Cr4::empty();
    let error = vcpu.store(Sections::SYSTEM).unwrap_err();
    assert!(matches!(error, Fault::Unsupported(_)), "{error:?}");
    // A reserved bit of MXCSR.
    start(vcpu.as_mut());
    vcpu.load(Sections::VECTOR).unwrap().vector.x87.mxcsr = 1 << 31;
    assert!(vcpu.store(Sections::VECTOR).is_err());
}
