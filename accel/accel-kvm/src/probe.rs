//! Whether KVM runs a guest's kernel at speed, measured.
//!
//! That there is a /dev/kvm does not say so: some hosts serve it without hardware virtualization
//! and emulate whatever runs in ring 0. So a guest of a few instructions runs there, by its own TSC,
//! and is compared with the same instructions on this processor.

use std::arch::asm;
use std::arch::x86_64::__cpuid;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use accel::Fault;
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, cr3, eax, ecx, r8, r9, r10, rax, rdx};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use mem::vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};
use mem::{GuestAddress, GuestMemory, RamRange};
use x86::CpuState;
use x86::state::{Cr0, Cr4, Efer, SegReg, Segment, SegmentAttributes, gpr};

use crate::host::failed;
use crate::kick::Kick;
use crate::run_page::RunPage;
use crate::state::{self, Abilities, KnownMsrs};
use accel::Sections;

/// Turns of the loop of plain instructions, which has two of them.
const TURNS: u32 = 1000;
/// Turns of the loop of instructions that only a kernel may execute.
const KERNEL_TURNS: u32 = 8;
/// Such instructions in each turn.
const KERNEL_INSTRUCTIONS: u32 = 5;
/// The best of so many runs counts, since others use the processor, too.
const RUNS: usize = 3;

/// How long the guest may take before it is given up: a hundred thousand times what it needs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where things lie in the guest's memory.
const TABLES: u64 = 0x1000;
const CODE: u64 = 0x4000;
const RAM: u64 = 0x1_0000;

/// How fast a guest's kernel runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Plain instructions a second in the guest's ring 0.
    pub ring0: f64,
    /// The same instructions a second on this processor.
    pub native: f64,
    /// Nanoseconds for an instruction that only a kernel may execute, on average.
    pub kernel_ns: f64,
}

impl Speed {
    /// Whether that is the speed of hardware virtualization. Without it, ring 0 is slower by a
    /// factor of some hundred; with it, plain instructions run as they do outside, and the others
    /// without leaving the guest, or in a few microseconds where page tables are shadowed.
    pub fn is_hardware(&self) -> bool {
        self.ring0 * 4.0 >= self.native && self.kernel_ns <= 20_000.0
    }
}

/// The extension for hardware virtualization that this processor shows: `vmx` or `svm`.
pub fn hardware() -> Option<&'static str> {
    const VMX: u32 = 1 << 5;
    const SVM: u32 = 1 << 2;
    if __cpuid(1).ecx & VMX != 0 {
        Some("vmx")
    } else if __cpuid(0x8000_0000).eax > 0x8000_0000 && __cpuid(0x8000_0001).ecx & SVM != 0 {
        Some("svm")
    } else {
        None
    }
}

/// Runs the guest and measures.
pub fn measure(kvm: &Kvm) -> Result<Speed, Fault> {
    let code = assemble().map_err(|e| Fault::Wrong(format!("the guest that measures: {e}")))?;
    let (mut vcpu, machine) = machine(kvm, &code)?;

    let native = (0..RUNS).map(|_| native_ticks()).min().unwrap_or(1);
    let mut best = (u64::MAX, u64::MAX);
    for _ in 0..RUNS {
        let (plain, kernel) = run(&mut vcpu, PATIENCE)?;
        best = (best.0.min(plain), best.1.min(kernel));
        if plain > native.saturating_mul(50) {
            // Nothing that others do makes such a difference.
            break;
        }
    }
    // The kernel takes its time to take a machine away, which nobody needs to wait for. Without
    // another thread it is done here.
    let _ = thread::Builder::new().spawn(move || drop((vcpu, machine)));
    let hz = runtime::tsc::frequency_hz() as f64;
    let rate = |ticks: u64| f64::from(2 * TURNS) * hz / ticks.max(1) as f64;
    let kernel = f64::from(KERNEL_TURNS * KERNEL_INSTRUCTIONS);
    Ok(Speed {
        ring0: rate(best.0),
        native: rate(native),
        kernel_ns: best.1 as f64 * 1e9 / hz / kernel,
    })
}

/// A processor, and what it needs: to be dropped after it.
fn machine(kvm: &Kvm, code: &[u8]) -> Result<(VcpuFd, (VmFd, GuestMemory)), Fault> {
    let memory = mem::allocate(&[RamRange { start: 0, len: RAM }])
        .map_err(|e| Fault::Unsupported(e.to_string()))?;
    load(&memory, code).map_err(|e| Fault::Wrong(format!("the guest that measures: {e}")))?;
    let vm = kvm.create_vm().map_err(|e| failed("KVM makes no virtual machine", e))?;
    let region = memory.iter().next().ok_or_else(|| Fault::Wrong("no memory".to_owned()))?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY: the memory stays mapped until the machine is gone, as it was made before.
    unsafe { vm.set_user_memory_region(slot) }
        .map_err(|e| failed("KVM refuses the memory of a guest", e))?;
    let vcpu = vm.create_vcpu(0).map_err(|e| failed("KVM makes no processor", e))?;
    let cpuid = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .and_then(|cpuid| vcpu.set_cpuid2(&cpuid));
    cpuid.map_err(|e| failed("KVM refuses its own processor model", e))?;
    Ok((vcpu, (vm, memory)))
}

/// Puts code and page tables into memory.
fn load(memory: &GuestMemory, code: &[u8]) -> Result<(), String> {
    let write =
        |at, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(at)).map_err(|e| e.to_string());
    // The first 2 MiB, the same at both ends (SDM Vol. 3, 4.5.4; the flags are P, R/W, PS).
    write(TABLES, &((TABLES + 0x1000) | 3).to_le_bytes())?;
    write(TABLES + 0x1000, &((TABLES + 0x2000) | 3).to_le_bytes())?;
    write(TABLES + 0x2000, &0x83u64.to_le_bytes())?;
    write(CODE, code)
}

/// The guest: R9 becomes the ticks of the plain loop, R10 those of the other one.
fn assemble() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let start = |a: &mut CodeAssembler| {
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.mov(r8, rax)
    };
    let stop = |a: &mut CodeAssembler| {
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.sub(rax, r8)
    };
    start(&mut a)?;
    a.mov(ecx, TURNS)?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.dec(ecx)?;
    a.jne(again)?;
    stop(&mut a)?;
    a.mov(r9, rax)?;
    start(&mut a)?;
    a.mov(ecx, KERNEL_TURNS)?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.mov(rax, cr3)?;
    a.mov(cr3, rax)?;
    a.cli()?;
    a.swapgs()?;
    a.swapgs()?;
    a.dec(ecx)?;
    a.jne(again)?;
    stop(&mut a)?;
    a.mov(r10, rax)?;
    a.xor(eax, eax)?;
    a.hlt()?;
    a.assemble(CODE)
}

/// Runs the guest from its start to its HLT, or until it is given up: ticks of both loops.
fn run(vcpu: &mut VcpuFd, patience: Duration) -> Result<(u64, u64), Fault> {
    let kick = &Kick::default();
    let (done, is_done) = mpsc::channel::<()>();
    thread::scope(move |scope| {
        let watch = move || {
            if is_done.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                kick.kick();
            }
        };
        // Without another thread, nobody watches.
        let _ = thread::Builder::new().spawn_scoped(scope, watch);
        let result = run_to_hlt(vcpu, kick);
        // That ends the watch.
        drop(done);
        result
    })
}

fn run_to_hlt(vcpu: &mut VcpuFd, kick: &Kick) -> Result<(u64, u64), Fault> {
    let mut state = CpuState::reset(0);
    let flat = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
    state.seg = [flat(0x10, SegmentAttributes::DATA32); 6];
    state.seg[SegReg::Cs as usize] = flat(0x8, SegmentAttributes::CODE64);
    state.cr0 = Cr0::PE | Cr0::ET | Cr0::PG;
    state.cr3 = TABLES;
    state.cr4 = Cr4::PAE;
    state.efer = Efer::LME | Efer::LMA;
    state.rip = CODE;
    let plain = Abilities {
        sregs2: false,
        tsc_offset: false,
        scaling: None,
        blocks_interrupts: false,
        components: 3,
        xsave: false,
        msrs: KnownMsrs::default(),
        arch_capabilities: false,
        hyperv: false,
    };
    state::store(vcpu, &plain, Sections::GENERAL | Sections::SYSTEM, &state)?;
    let page = RunPage::of(vcpu);
    // SAFETY: the page stays as long as the processor, which `entered` does not outlive.
    let entered = unsafe { kick.enter(page.immediate_exit()) };
    let entered = entered.map_err(|source| Fault::Host {
        what: "cannot let a signal through".to_owned(),
        source,
        remedy: "this is a mistake in Lodge; please report it".to_owned(),
    })?;
    loop {
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => break,
            Ok(other) => {
                return Err(Fault::Unsupported(format!(
                    "KVM does not run a few instructions of ring 0: {other:?}"
                )));
            }
            Err(error) if error.errno() == libc::EINTR && entered.take() => {
                return Err(Fault::Unsupported(
                    "a guest of a few instructions did not come to its end, and was given up"
                        .to_owned(),
                ));
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => return Err(failed("KVM cannot run a processor", error)),
        }
    }
    state::load(vcpu, &plain, Sections::GENERAL, &mut state)?;
    Ok((state.gpr[gpr::R9], state.gpr[gpr::R10]))
}

/// The plain loop on this processor.
fn native_ticks() -> u64 {
    let start = runtime::tsc::read();
    // SAFETY: counts a register down, and touches nothing else.
    unsafe {
        asm!(
            "2:",
            "dec {turns:e}",
            "jnz 2b",
            turns = inout(reg) TURNS => _,
            options(nomem, nostack),
        );
    }
    runtime::tsc::read().wrapping_sub(start).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulation_is_told_from_hardware() {
        let native = 6e9;
        for (ring0, kernel_ns, hardware) in [
            (6e9, 60.0, true),
            (5.5e9, 4_000.0, true), // shadowed page tables
            (2e9, 300.0, true),     // on a busy machine
            (1.8e6, 700.0, false),  // emulated, like everything in ring 0
            (6e9, 100_000.0, false),
            (0.5e9, 100.0, false),
        ] {
            let speed = Speed { ring0, native, kernel_ns };
            assert_eq!(speed.is_hardware(), hardware, "{speed:?}");
        }
    }

    #[test]
    fn a_guest_without_end_is_given_up() {
        let Ok(kvm) = Kvm::new() else {
            eprintln!("SKIPPED: there is no /dev/kvm here");
            return;
        };
        const JUMP_TO_ITSELF: [u8; 2] = [0xeb, 0xfe];
        let (mut vcpu, _machine) = machine(&kvm, &JUMP_TO_ITSELF).unwrap();
        let fault = run(&mut vcpu, Duration::from_millis(20)).unwrap_err();
        assert!(fault.to_string().contains("given up"), "{fault}");
    }

    #[test]
    fn the_loops_are_the_same() {
        let code = assemble().unwrap();
        let has = |bytes: &[u8]| code.windows(bytes.len()).any(|w| w == bytes);
        assert!(has(&[0xff, 0xc9, 0x75, 0xfc]), "{code:02x?}");
        assert!(native_ticks() > 0);
    }
}
