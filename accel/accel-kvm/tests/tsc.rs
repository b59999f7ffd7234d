//! The rate of a guest's TSC is the one that CPUID tells it: scaled where KVM can, else the host's.

mod common;

use std::thread;
use std::time::Duration;

use accel::Exit;
use accel_kvm::KvmAccelerator;
use common::{Board, END, OUT, has_kvm, machine, memory, model, start};
use iced_x86::code_asm::*;
use kvm_bindings::KVM_CAP_TSC_CONTROL;
use mem::GuestAddress;
use mem::vm_memory::Bytes;

/// KVM's timing leaf, whose EAX is the rate of the TSC in kHz.
const TIMING: u32 = 0x4000_0010;
/// What the guest's processor model asks for: no host's rate.
const WANTED_KHZ: u32 = 1_234_567;

/// Told and actual rate in kHz on this KVM, the latter as its least and greatest possible value.
fn rates(kvm: &KvmAccelerator) -> (u32, f64, f64) {
    let memory = memory(|a| {
        a.mov(eax, TIMING)?;
        a.xor(ecx, ecx)?;
        a.cpuid()?;
        a.mov(dword_ptr(0x7000), eax)?;
        for place in [0x7008, 0x7010] {
            a.rdtsc()?;
            a.mov(dword_ptr(place), eax)?;
            a.mov(dword_ptr(place + 4), edx)?;
            a.out(u32::from(OUT), eax)?;
        }
        a.out(u32::from(END), eax)
    });
    let mut cpuid = model();
    let mut timing = cpuid.get(TIMING, 0).unwrap();
    timing.eax = WANTED_KHZ;
    cpuid.set(TIMING, None, timing);
    let (_vm, mut vcpu) = machine(kvm, &cpuid, &memory);
    start(vcpu.as_mut());
    let board = Board::default();
    let (sender, pauses) = std::sync::mpsc::channel();
    *board.on_out.lock().unwrap() = Some(Box::new(move |_| {
        let begun = runtime::tsc::read();
        thread::sleep(Duration::from_millis(200));
        sender.send(runtime::tsc::read() - begun).unwrap();
    }));
    let begun = runtime::tsc::read();
    assert_eq!(board.run(vcpu.as_mut()), Exit::Kicked);
    let most = runtime::tsc::read() - begun;
    let least = pauses.recv().unwrap();
    let told = memory.read_obj(GuestAddress(0x7000)).unwrap();
    let at = |place| memory.read_obj::<u64>(GuestAddress(place)).unwrap();
    let ticks = (at(0x7010) - at(0x7008)) as f64;
    let host_khz = runtime::tsc::frequency_hz() as f64 / 1000.0;
    (told, ticks / most as f64 * host_khz, ticks / least as f64 * host_khz)
}

#[test]
fn the_rate_is_what_cpuid_tells() {
    if !has_kvm() {
        return;
    }
    let (told, least, most) = rates(&KvmAccelerator::open().unwrap());
    println!("told {told} kHz, between {least:.0} and {most:.0}");
    // A hundredth for what was measured.
    let told = f64::from(told);
    assert!(told * 1.01 >= least && told * 0.99 <= most, "{told}: {least} {most}");
}

#[test]
fn without_scaling_it_is_the_hosts() {
    if !has_kvm() {
        return;
    }
    let kvm = KvmAccelerator::open().unwrap().without(KVM_CAP_TSC_CONTROL);
    let (told, ..) = rates(&kvm);
    let host = runtime::tsc::frequency_hz() / 1000;
    assert!(u64::from(told).abs_diff(host) < host / 1000, "{told} {host}");
}
