//! The whole software engine: its memory, interrupt controllers and MSRs under a wild guest.
#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use accel::{Accelerator, CpuBus, Sections, VmResources};
use accel_soft::SoftAccelerator;
use libfuzzer_sys::fuzz_target;
use lodge_fuzz::guest::{self, Program, RAM_SIZE};
use mem::RamRange;
use runtime::{Clock, Timers};
use x86::cpuid::CpuidTable;

/// How long a guest runs.
const TIME: Duration = Duration::from_millis(2);

struct NoDevices;

impl CpuBus for NoDevices {
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&self, _: u16, _: &[u8]) {}
}

static CPUID: LazyLock<CpuidTable> = LazyLock::new(guest::host_cpuid);

fuzz_target!(|program: Program<'_>| {
    let (state, ram) = program.start(&CPUID);
    let memory = mem::allocate(&[RamRange { start: 0, len: RAM_SIZE as u64 }]).unwrap();
    lodge_fuzz::wiring::fill(&memory, 0, &ram);
    let clock = Arc::new(Clock::new());
    let timers = Arc::new(Timers::new(clock.clone()).unwrap());
    let cpuid = CPUID.clone();
    let vm = SoftAccelerator::default()
        .create_vm(VmResources { memory, clock, timers, cpus: 1, cpuid, hyperv: false })
        .unwrap();
    let irq = vm.irq_sink();
    let mut vcpu = vm.take_vcpu(0).unwrap();
    *vcpu.load(Sections::all()).unwrap() = state;
    vcpu.store(Sections::all()).unwrap();
    let kicker = vcpu.kicker();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (gsi, level) in &program.interrupts {
                irq.set_gsi((*gsi).into(), level & 1 != 0);
            }
            std::thread::sleep(TIME);
            kicker.kick();
        });
        vcpu.run(&NoDevices).unwrap();
    });
    guest::check(vcpu.load(Sections::all()).unwrap());
});
