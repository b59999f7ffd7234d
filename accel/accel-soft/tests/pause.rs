//! A pause takes no time that the guest can read.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use accel::{Accelerator, CpuBus, Exit, Sections, Vcpu, VmResources};
use accel_soft::SoftAccelerator;
use mem::GuestAddress;
use mem::vm_memory::Bytes;
use runtime::{Clock, Timers};
use x86::cpuid::{CpuidResult, Model, build};
use x86::state::{Activity, SegReg, gpr};

const CODE: u64 = 0x1000;
/// pvclock_vcpu_time_info.
const CLOCK_PAGE: u64 = 0x2000;
/// In real mode: mov ecx, MSR_KVM_SYSTEM_TIME_NEW; mov eax, 0x2001; xor edx, edx; wrmsr; rdtsc; hlt
const PROGRAM: &[u8] = &[
    0x66, 0xb9, 0x01, 0x4d, 0x56, 0x4b, 0x66, 0xb8, 0x01, 0x20, 0x00, 0x00, 0x66, 0x31, 0xd2, 0x0f,
    0x30, 0x0f, 0x31, 0xf4,
];
const RDTSC: u64 = CODE + 17;

/// A pause, in ticks of the TSC, that is longer than any computer has run.
const PAUSE: u64 = 1 << 61;
/// Some days of it.
const WHILE: u64 = 1 << 50;

struct NoDevices;

impl CpuBus for NoDevices {
    fn mmio_read(&self, _: u64, _: &mut [u8]) {}
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn port_read(&self, _: u16, _: &mut [u8]) {}
    fn port_write(&self, _: u16, _: &[u8]) {}
}

/// Runs from `rip` to the HLT at the end; the TSC that was read.
fn run_from(vcpu: &mut dyn Vcpu, rip: u64) -> u64 {
    let state = vcpu.load(Sections::all()).unwrap();
    state.rip = rip;
    state.activity = Activity::Active;
    vcpu.store(Sections::GENERAL | Sections::SYSTEM).unwrap();
    let kicker = vcpu.kicker();
    loop {
        let kicker = kicker.clone();
        let kick = thread::spawn(move || {
            thread::sleep(Duration::from_millis(5));
            kicker.kick();
        });
        assert_eq!(vcpu.run(&NoDevices).unwrap(), Exit::Kicked);
        kick.join().unwrap();
        let state = vcpu.load(Sections::all()).unwrap();
        if state.activity == Activity::Halted {
            let half = |register: usize| state.gpr[register] & 0xffff_ffff;
            return half(gpr::RDX) << 32 | half(gpr::RAX);
        }
    }
}

#[test]
fn the_tsc_and_the_paravirtual_clock_stand_still() {
    let memory = mem::allocate(&[mem::RamRange { start: 0, len: 0x1_0000 }]).unwrap();
    memory.write_slice(PROGRAM, GuestAddress(CODE)).unwrap();
    let clock = Arc::new(Clock::new());
    let timers = Arc::new(Timers::new(clock.clone()).unwrap());
    let host = |leaf, subleaf| {
        let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
        CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
    };
    let cpuid = build(Model::Host, host, runtime::tsc::frequency_hz()).unwrap();
    let resources = VmResources { memory: memory.clone(), clock, timers, cpus: 1, cpuid };
    let vm = SoftAccelerator::default().create_vm(resources).unwrap();
    let mut vcpu = vm.take_vcpu(0).unwrap();
    let state = vcpu.load(Sections::all()).unwrap();
    state.seg[SegReg::Cs as usize].base = 0;
    vcpu.store(Sections::SYSTEM).unwrap();

    let published = || {
        let field = |offset| memory.read_obj::<u64>(GuestAddress(CLOCK_PAGE + offset)).unwrap();
        (field(8), field(16))
    };
    let before = run_from(vcpu.as_mut(), CODE);
    let clock_before = published();
    assert!(before > 0 && clock_before.0 <= before && before - clock_before.0 < WHILE);
    for _ in 0..3 {
        vm.skip_time(PAUSE);
        let after = run_from(vcpu.as_mut(), RDTSC);
        assert!(after.wrapping_add(PAUSE).wrapping_sub(before) < WHILE, "{before} {after}");
        // So that what the guest makes of its TSC goes on, too.
        assert_eq!(published(), clock_before);
        return_to_the_present(vm.as_ref());
    }
}

/// The TSC has not really stood still, so that it is set forward again.
fn return_to_the_present(vm: &dyn accel::Vm) {
    vm.skip_time(PAUSE.wrapping_neg());
}
