//! A guest's processor goes from one accelerator to the other and back, in the middle of its work.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use accel::{
    Accelerator, CpuBus, CpuState, CpuidTable, Exit, Kicker, Sections, Vcpu, Vm, VmResources,
};
use accel_kvm::KvmAccelerator;
use accel_soft::SoftAccelerator;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use mem::vm_memory::Bytes;
use mem::{GuestAddress, GuestMemory, RamRange};
use runtime::{Clock, Timers};
use x86::cpuid::{CpuidResult, Model, build};
use x86::state::{Cr0, Cr4, Efer, SegReg, Segment, SegmentAttributes, gpr};

const TABLES: u64 = 0x1000;
const CODE: u64 = 0x4000;
const STACK: u64 = 0x8000;
const RAM: u64 = 0x1_0000;
const ROUND: u16 = 0x80;
const END: u16 = 0x84;
/// Rounds of the guest, each of which tells its number.
const ROUNDS: u32 = 60;

/// The machine: what each round told, and how to stop a processor.
#[derive(Default)]
struct Board {
    rounds: Mutex<Vec<u32>>,
    ended: AtomicBool,
    kicker: Mutex<Option<Kicker>>,
    /// The processor is kicked at this round.
    stop_at: AtomicU64,
}

impl Board {
    fn kick(&self) {
        if let Some(kicker) = &*self.kicker.lock().unwrap() {
            kicker.kick();
        }
    }
}

impl CpuBus for Board {
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&self, _: u64, _: &[u8]) {}

    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        let value = u32::from_le_bytes(data.try_into().unwrap());
        match port {
            ROUND => {
                self.rounds.lock().unwrap().push(value);
                if u64::from(value) == self.stop_at.load(Ordering::SeqCst) {
                    self.kick();
                }
            }
            END => {
                self.rounds.lock().unwrap().push(value);
                self.ended.store(true, Ordering::SeqCst);
                self.kick();
            }
            _ => {}
        }
    }
}

/// A guest that keeps a sum in each kind of state that can get lost on the way: general-purpose,
/// x87 and SSE registers, memory, the stack, an MSR, a segment base, a debug register and flags.
fn guest() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
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
    a.out(ROUND as u32, eax)?;
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
    a.out(END as u32, eax)?;
    a.hlt()?;
    a.set_label(&mut lost)?;
    a.mov(eax, 0xbadu32)?;
    a.out(END as u32, eax)?;
    a.hlt()?;
    a.assemble(CODE)
}

fn memory() -> GuestMemory {
    let memory = mem::allocate(&[RamRange { start: 0, len: RAM }]).unwrap();
    let write = |at, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(at)).unwrap();
    write(TABLES, &((TABLES + 0x1000) | 3).to_le_bytes());
    write(TABLES + 0x1000, &((TABLES + 0x2000) | 3).to_le_bytes());
    write(TABLES + 0x2000, &0x83u64.to_le_bytes());
    write(CODE, &guest().unwrap());
    memory
}

fn enter(state: &mut CpuState) {
    let flat = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
    state.seg = [flat(0x10, SegmentAttributes::DATA32); 6];
    state.seg[SegReg::Cs as usize] = flat(0x8, SegmentAttributes::CODE64);
    state.cr0 = Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::PG;
    state.cr3 = TABLES;
    state.cr4 = Cr4::PAE | Cr4::OSFXSR;
    state.efer = Efer::LME | Efer::LMA;
    state.rip = CODE;
    state.gpr[gpr::RSP] = STACK;
    state.vector.x87.fcw = 0x37f;
    state.vector.x87.ftw = 0;
    state.msrs.star = 0x23_0010_0000_0000;
    state.msrs.lstar = 0xffff_8000_1234_5678;
    state.msrs.sfmask = 0x4_7700;
    state.msrs.sysenter_esp = 0xffff_8000_0000_7000;
}

/// What both offer: the poorest model, less what KVM refuses.
fn cpuid(kvm: &KvmAccelerator) -> CpuidTable {
    let host = |leaf, subleaf| {
        let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
        CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
    };
    let model = build(Model::V2, host, runtime::tsc::frequency_hz()).unwrap();
    kvm.offered(&model).unwrap()
}

/// A processor of a new machine with the guest's memory.
fn processor(
    accelerator: &dyn Accelerator,
    cpuid: &CpuidTable,
    memory: &GuestMemory,
) -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let clock = Arc::new(Clock::new());
    let timers = Arc::new(Timers::new(clock.clone()).unwrap());
    let resources =
        VmResources { memory: memory.clone(), clock, timers, cpus: 1, cpuid: cpuid.clone() };
    let vm = accelerator.create_vm(resources).unwrap();
    let vcpu = vm.take_vcpu(0).unwrap();
    (vm, vcpu)
}

/// What a guest can tell of its state, TSC apart.
fn comparable(state: &CpuState) -> CpuState {
    let mut state = state.clone();
    state.msrs.tsc_offset = 0;
    state.msrs.tsc_adjust = 0;
    state
}

#[test]
fn a_guest_changes_accelerators_in_the_middle() {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("SKIPPED: there is no /dev/kvm here");
        return;
    }
    let kvm = KvmAccelerator::open().unwrap();
    let soft = SoftAccelerator::default();
    let cpuid = cpuid(&kvm);
    let memory = memory();
    let board = Arc::new(Board::default());
    let mut saved: Option<CpuState> = None;
    // Twenty legs, by turns; the last one goes to the end.
    for leg in 0..20u64 {
        let accelerator: &dyn Accelerator = if leg % 2 == 0 { &soft } else { &kvm };
        let (_vm, mut vcpu) = processor(accelerator, &cpuid, &memory);
        let state = vcpu.load(Sections::all()).unwrap();
        match &saved {
            None => enter(state),
            Some(saved) => *state = saved.clone(),
        }
        vcpu.store(Sections::all()).unwrap();
        if let Some(saved) = &saved {
            // What was stored is what is there, whoever has it.
            let got = vcpu.load(Sections::all()).unwrap();
            let (mut got, mut saved) = (comparable(got), comparable(saved));
            saved.rflags |= 2;
            // Of MSRs that a host does not have, or keeps as they are, nothing can be said.
            let here = got.msrs.clone();
            got.msrs = saved.msrs.clone();
            got.msrs.star = here.star;
            got.msrs.lstar = here.lstar;
            got.msrs.sfmask = here.sfmask;
            got.msrs.kernel_gs_base = here.kernel_gs_base;
            got.msrs.sysenter_esp = here.sysenter_esp;
            got.msrs.pat = here.pat;
            assert_eq!(got, saved, "{} at leg {leg}", accelerator.name());
        }
        let stop_at = if leg == 19 { u64::MAX } else { (leg + 1) * 3 };
        board.stop_at.store(stop_at, Ordering::SeqCst);
        *board.kicker.lock().unwrap() = Some(vcpu.kicker());
        // A guest that hangs fails the test and not its runner.
        let watch = {
            let (kicker, board) = (vcpu.kicker(), board.clone());
            let over = Arc::new(AtomicBool::new(false));
            let flag = over.clone();
            let thread = thread::spawn(move || {
                for _ in 0..1200 {
                    if flag.load(Ordering::SeqCst) || board.ended.load(Ordering::SeqCst) {
                        return;
                    }
                    thread::sleep(Duration::from_millis(100));
                }
                kicker.kick();
            });
            (over, thread)
        };
        let exit = vcpu.run(&*board).unwrap();
        watch.0.store(true, Ordering::SeqCst);
        watch.1.join().unwrap();
        assert_eq!(exit, Exit::Kicked, "{} at leg {leg}", accelerator.name());
        saved = Some(vcpu.load(Sections::all()).unwrap().clone());
    }
    let mut expected: Vec<u32> = (1..=ROUNDS).collect();
    expected.push(0);
    assert_eq!(*board.rounds.lock().unwrap(), expected);
}
