//! A small machine for tests: 64 KiB, one processor in 64-bit mode, all port writes noted.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use accel::{
    Accelerator, CpuBus, CpuState, CpuidTable, Exit, Kicker, Sections, Vcpu, Vm, VmResources,
};
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use mem::vm_memory::Bytes;
use mem::{GuestAddress, GuestMemory, RamRange};
use runtime::{Clock, Timers};
use x86::cpuid::{CpuidResult, Model, build};
use x86::state::{Activity, Cr0, Cr4, Efer, SegReg, Segment, SegmentAttributes, gpr};

pub const TABLES: u64 = 0x1000;
pub const CODE: u64 = 0x4000;
pub const STACK: u64 = 0x8000;
pub const RAM: u64 = 0x1_0000;
/// A write here is noted.
pub const OUT: u16 = 0x80;
/// A write here is noted and kicks the processor.
pub const END: u16 = 0x84;

/// Whether there is a KVM to test; says so if not.
pub fn has_kvm() -> bool {
    let has = Path::new("/dev/kvm").exists();
    if !has {
        eprintln!("SKIPPED: there is no /dev/kvm here");
    }
    has
}

/// What CPUID tells: what every host has.
pub fn model() -> CpuidTable {
    let host = |leaf, subleaf| {
        let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
        CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
    };
    build(Model::V2, host, runtime::tsc::frequency_hz()).unwrap()
}

/// Memory with page tables for its first 2 MiB, and what `code` assembles.
pub fn memory(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> GuestMemory {
    let memory = mem::allocate(&[RamRange { start: 0, len: RAM }]).unwrap();
    let mut a = CodeAssembler::new(64).unwrap();
    code(&mut a).unwrap();
    let write = |at, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(at)).unwrap();
    write(TABLES, &((TABLES + 0x1000) | 3).to_le_bytes());
    write(TABLES + 0x1000, &((TABLES + 0x2000) | 3).to_le_bytes());
    write(TABLES + 0x1000 + 3 * 8, &((TABLES + 0x2000) | 3).to_le_bytes());
    write(TABLES + 0x2000, &0x83u64.to_le_bytes());
    // 0xd000_0000, which is no RAM, and the local APIC.
    write(TABLES + 0x2000 + 0x80 * 8, &0xd000_0083u64.to_le_bytes());
    write(TABLES + 0x2000 + 0x1f7 * 8, &0xfee0_0083u64.to_le_bytes());
    write(CODE, &a.assemble(CODE).unwrap());
    memory
}

/// 64-bit mode at the beginning of the code.
pub fn enter(state: &mut CpuState) {
    let flat = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
    state.seg = [flat(0x10, SegmentAttributes::DATA32); 6];
    state.seg[SegReg::Cs as usize] = flat(0x8, SegmentAttributes::CODE64);
    state.cr0 = Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::PG;
    state.cr3 = TABLES;
    state.cr4 = Cr4::PAE | Cr4::OSFXSR;
    state.efer = Efer::LME | Efer::LMA;
    state.rip = CODE;
    state.activity = Activity::Active;
    state.gpr[gpr::RSP] = STACK;
    state.vector.x87.fcw = 0x37f;
    state.vector.x87.ftw = 0;
}

/// A machine with one processor.
pub fn machine(
    accelerator: &dyn Accelerator,
    cpuid: &CpuidTable,
    memory: &GuestMemory,
) -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let vm = accelerator.create_vm(resources(cpuid, memory, 1)).unwrap();
    let vcpu = vm.take_vcpu(0).unwrap();
    (vm, vcpu)
}

/// What a machine of `cpus` processors is made of.
pub fn resources(cpuid: &CpuidTable, memory: &GuestMemory, cpus: u32) -> VmResources {
    let clock = Arc::new(Clock::new());
    let timers = Arc::new(Timers::new(clock.clone()).unwrap());
    VmResources { memory: memory.clone(), clock, timers, cpus, cpuid: cpuid.clone(), hyperv: false }
}

/// What happens at a write to [`OUT`].
pub type OnOut = Box<dyn FnMut(u32) + Send>;

/// The machine's bus.
#[derive(Default)]
pub struct Board {
    pub outs: Mutex<Vec<u32>>,
    pub stores: Mutex<Vec<u64>>,
    kicker: Mutex<Option<Kicker>>,
    /// Called for each write to [`OUT`], before it is noted.
    pub on_out: Mutex<Option<OnOut>>,
}

impl Board {
    pub fn kick(&self) {
        if let Some(kicker) = &*self.kicker.lock().unwrap() {
            kicker.kick();
        }
    }

    /// Runs until the processor stops. One that hangs is kicked after two minutes.
    pub fn run(&self, vcpu: &mut dyn Vcpu) -> Exit {
        let kicker = vcpu.kicker();
        *self.kicker.lock().unwrap() = Some(kicker.clone());
        let over = Arc::new(AtomicBool::new(false));
        let watch = thread::spawn({
            let over = over.clone();
            move || {
                for _ in 0..1200 {
                    if over.load(Ordering::SeqCst) {
                        return;
                    }
                    thread::sleep(Duration::from_millis(100));
                }
                kicker.kick();
            }
        });
        let exit = vcpu.run(self);
        over.store(true, Ordering::SeqCst);
        watch.join().unwrap();
        exit.unwrap()
    }
}

impl CpuBus for Board {
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&self, address: u64, _: &[u8]) {
        self.stores.lock().unwrap().push(address);
    }

    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        let mut value = [0; 4];
        value[..data.len()].copy_from_slice(data);
        let value = u32::from_le_bytes(value);
        if port == OUT
            && let Some(call) = &mut *self.on_out.lock().unwrap()
        {
            call(value);
        }
        if port == OUT || port == END {
            self.outs.lock().unwrap().push(value);
        }
        if port == END {
            self.kick();
        }
    }
}

/// Loads a new processor with [`enter`].
pub fn start(vcpu: &mut dyn Vcpu) {
    enter(vcpu.load(Sections::all()).unwrap());
    vcpu.store(Sections::all()).unwrap();
}
