//! The traits as the VMM uses them: taking processors, kicks, and the processor's state coming
//! and going.

use std::thread;
use std::time::Duration;

use accel::{Exit, Kicker, Sections};
use iced_x86::code_asm::*;
use x86::state::{Activity, Cr0, Efer, SegReg, gpr};

use super::bench::{Bench, equal, spin, wait};
use crate::case::{Case, check};
use crate::layout::{CODE, DATA};
use crate::runner;
use crate::start::Start::{self, Long};

pub fn cases() -> Vec<Case> {
    let mut cases = processors();
    cases.extend(kicks());
    cases.extend(states());
    cases
}

fn processors() -> Vec<Case> {
    vec![
        check("a processor can be taken once", |accelerator, cpuid| {
            let bench = Bench::new(accelerator, cpuid, Long, spin)?;
            if bench.vm.take_vcpu(0).is_ok() {
                return Err("processor 0 was there twice".to_owned());
            }
            if bench.vm.take_vcpu(1).is_ok() || bench.vm.take_vcpu(u32::MAX).is_ok() {
                return Err("there is a processor too many".to_owned());
            }
            Ok(())
        }),
        check("a machine without processors is refused", |accelerator, cpuid| {
            let memory = Bench::new(accelerator, cpuid, Long, spin)?.guest.memory.clone();
            match runner::create(accelerator, cpuid, memory, 0) {
                Ok(_) => Err("it was made".to_owned()),
                Err(_) => Ok(()),
            }
        }),
        check("processors begin in the state of RESET", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Start::Reset, spin)?;
            let vm = runner::create(accelerator, cpuid, bench.guest.memory.clone(), 2)?;
            for (index, activity) in [(0, Activity::Active), (1, Activity::WaitForSipi)] {
                let mut vcpu = vm.take_vcpu(index).map_err(|e| e.to_string())?;
                let state = vcpu.load(Sections::all()).map_err(|e| e.to_string())?;
                equal("RIP", 0xfff0, state.rip)?;
                equal("CS.base", 0xffff_0000, state.segment(SegReg::Cs).base)?;
                equal("RFLAGS", 2, state.rflags)?;
                equal("CR0", Cr0::ET | Cr0::CD | Cr0::NW, state.cr0)?;
                equal("activity", activity, state.activity)?;
            }
            equal("RIP of the other machine", 0xfff0, bench.state()?.rip)
        }),
    ]
}

fn kicks() -> Vec<Case> {
    vec![
        check("a kick before run is not lost", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, spin)?;
            bench.vcpu.kicker().kick();
            equal("the exit", Exit::Kicked, bench.run()?)?;
            equal("RIP", CODE, bench.state()?.rip)
        }),
        check("a kick ends a loop", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, spin)?;
            equal("the exit", Exit::Kicked, bench.run_for(Duration::from_millis(20))?)?;
            equal("RIP", CODE, bench.state()?.rip)
        }),
        check("a kick ends a loop that may be interrupted", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, |g| {
                g.a.sti()?;
                g.mark("loop")?;
                spin(g)
            })?;
            equal("the exit", Exit::Kicked, bench.run_for(Duration::from_millis(20))?)?;
            let rip = bench.guest.marked("loop");
            equal("RIP", rip, Some(bench.state()?.rip))
        }),
        check("a kick ends HLT, and the processor sleeps on", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, |g| {
                g.out(1)?;
                g.a.hlt()?;
                g.out(2)?;
                spin(g)
            })?;
            bench.run_to_halt()?;
            for _ in 0..3 {
                equal("the exit", Exit::Kicked, bench.run_for(Duration::from_millis(20))?)?;
            }
            equal("the outputs", vec![1], bench.outs())?;
            equal("activity", Activity::Halted, bench.state()?.activity)
        }),
        check("kicks from the bus end the run", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, |g| g.exit())?;
            equal("the exit", Exit::Kicked, bench.run()?)
        }),
        check("kicks from many threads", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, wait)?;
            let kickers: Vec<Kicker> = (0..4).map(|_| bench.vcpu.kicker()).collect();
            let threads: Vec<_> = kickers
                .into_iter()
                .map(|kicker| thread::spawn(move || (0..200).for_each(|_| kicker.kick())))
                .collect();
            for _ in 0..20 {
                bench.vcpu.kicker().kick();
                equal("the exit", Exit::Kicked, bench.run()?)?;
            }
            for thread in threads {
                thread.join().map_err(|_| "a kick panicked".to_owned())?;
            }
            Ok(())
        }),
    ]
}

fn states() -> Vec<Case> {
    vec![
        check("state: load shows what the guest did", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, |g| {
                g.wrmsr(0xc000_0082, 0xffff_8000_0000_1234)?;
                g.a.mov(rax, DATA)?;
                g.a.mov(dr1, rax)?;
                g.a.mov(rax, 0x1122_3344_5566_7788u64)?;
                g.a.mov(r9, rax)?;
                g.change_cr4(1 << 9, 0)?;
                g.a.movq(xmm3, r9)?;
                g.a.stc()?;
                g.out(1)?;
                g.exit()
            })?;
            equal("the exit", Exit::Kicked, bench.run()?)?;
            let root = bench.guest.root;
            let state = bench.state()?;
            equal("R9", 0x1122_3344_5566_7788, state.gpr[gpr::R9])?;
            equal("LSTAR", 0xffff_8000_0000_1234, state.msrs.lstar)?;
            equal("DR1", DATA, state.dr[1])?;
            equal("XMM3", 0x1122_3344_5566_7788, state.vector.zmm[3][0])?;
            equal("CF", 1, state.rflags & 1)?;
            equal("CR3", root, state.cr3)?;
            equal("EFER", Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE, state.efer)
        }),
        check("state: what is stored takes effect", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, |g| {
                wait(g)?;
                g.section(64, DATA, DATA)?;
                // Registers, a segment base, an MSR and a vector register.
                g.a.mov(eax, ebx)?;
                g.out_eax()?;
                g.a.mov(eax, dword_ptr(4).fs())?;
                g.out_eax()?;
                g.rdmsr(0xc000_0102)?;
                g.out_eax()?;
                g.a.movd(eax, xmm5)?;
                g.out_eax()?;
                g.a.mov(rax, cr2)?;
                g.out_eax()?;
                g.exit()
            })?;
            bench.guest.write32(DATA + 0x804, 22);
            equal("the exit", Exit::Kicked, bench.run_for(Duration::from_millis(5))?)?;
            let state = bench.state()?;
            state.rip = DATA;
            state.gpr[gpr::RBX] = 11;
            state.seg[SegReg::Fs as usize].base = DATA + 0x800;
            state.msrs.kernel_gs_base = 33;
            state.vector.zmm[5][0] = 44;
            state.cr2 = 55;
            state.cr4 |= x86::state::Cr4::OSFXSR;
            bench.store(Sections::all())?;
            equal("the exit", Exit::Kicked, bench.run()?)?;
            equal("the outputs", vec![11, 22, 33, 44, 55], bench.outs())
        }),
        check("state: a processor that halted can be set going", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, |g| {
                g.a.hlt()?;
                g.out(1)?;
                g.exit()
            })?;
            bench.run_to_halt()?;
            let state = bench.state()?;
            state.activity = Activity::Active;
            bench.store(Sections::EVENTS)?;
            equal("the exit", Exit::Kicked, bench.run()?)?;
            equal("the outputs", vec![1], bench.outs())
        }),
        check("state: page tables that the VMM changes", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, |g| {
                let window = crate::layout::WINDOW;
                g.map(window, crate::layout::FRAMES, 3);
                g.write32(crate::layout::FRAMES, 1);
                g.write32(crate::layout::FRAMES + 0x1000, 2);
                let again = g.addr("again");
                g.mark("again")?;
                g.a.mov(ebx, window as u32)?;
                g.a.mov(eax, dword_ptr(rbx))?;
                g.out_eax()?;
                g.a.out(u32::from(crate::layout::port::EXIT), al)?;
                g.a.jmp(again)
            })?;
            equal("the exit", Exit::Kicked, bench.run()?)?;
            let place = bench.guest.entry(crate::layout::WINDOW, 1);
            bench.guest.write64(place, (crate::layout::FRAMES + 0x1000) | 3);
            // Storing control registers drops translations, as loading CR3 does.
            bench.state()?;
            bench.store(Sections::SYSTEM)?;
            equal("the exit", Exit::Kicked, bench.run()?)?;
            equal("the outputs", vec![1, 2], bench.outs())
        }),
    ]
}
