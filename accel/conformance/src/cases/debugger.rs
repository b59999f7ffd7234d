//! What a debugger outside of the guest is promised: single steps, points and INT3.

use accel::{DEBUG_POINTS, DebugControl, DebugPoint, DebugStop, Exit, PointKind};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86::state::gpr;
use x86::vector::DB;

use super::bench::{Bench, Checked, equal, spin};
use crate::case::{Case, check};
use crate::guest::Guest;
use crate::layout::{CODE, DATA};
use crate::start::Start::Long;

const STEP: DebugControl = DebugControl { step: true, ..NOTHING };
const NOTHING: DebugControl =
    DebugControl { step: false, int3: false, points: [None; DEBUG_POINTS] };

/// One point, the last that a processor has.
fn point(linear: u64, len: u8, kind: PointKind) -> DebugControl {
    let mut control = NOTHING;
    control.points[DEBUG_POINTS - 1] = Some(DebugPoint { linear, len, kind });
    control
}

const MET: Exit = Exit::Debug(DebugStop::Point(DEBUG_POINTS as u8 - 1));

impl Bench {
    fn debug(&mut self, control: DebugControl) -> Checked {
        self.vcpu.set_debug(&control).map_err(|e| e.to_string())
    }

    /// Runs until it stops, which must be for this.
    fn run_to(&mut self, exit: Exit) -> Checked {
        equal("the exit", exit, self.run()?)
    }
}

/// A thousand turns that each store their number to `DATA`, in code that is worth translating; then
/// the end.
fn turns(g: &mut Guest) -> Result<(), IcedError> {
    g.a.mov(ebx, DATA as u32)?;
    g.a.mov(ecx, 1000)?;
    let again = g.addr("again");
    g.mark("again")?;
    g.a.add(eax, dword_ptr(rbx + 64))?;
    g.mark("store")?;
    g.a.mov(dword_ptr(rbx), ecx)?;
    g.mark("stored")?;
    g.a.dec(ecx)?;
    g.a.jnz(again)?;
    g.out(5)?;
    g.exit()
}

pub fn cases() -> Vec<Case> {
    let mut cases = steps();
    cases.extend(points());
    cases.extend(breakpoints());
    cases
}

fn steps() -> Vec<Case> {
    vec![
        check("a step is one instruction", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, |g| {
                g.a.mov(ebx, 7)?;
                g.a.nop()?;
                g.mark("here")?;
                spin(g)
            })?;
            bench.debug(STEP)?;
            let here = bench.guest.marked("here").unwrap_or_default();
            for rip in [CODE + 5, here, here, here] {
                bench.run_to(Exit::Debug(DebugStop::Step))?;
                equal("RIP", rip, bench.state()?.rip)?;
            }
            equal("TF", 0, bench.state()?.rflags >> 8 & 1)?;
            equal("RBX", 7, bench.state()?.gpr[gpr::RBX])?;
            bench.debug(NOTHING)?;
            bench.vcpu.kicker().kick();
            bench.run_to(Exit::Kicked)
        }),
        check("a step over what faults ends in the handler", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, |g| {
                g.expect_fault("fault", "after", |a| a.ud2())?;
                g.out(1)?;
                g.exit()
            })?;
            let fault = bench.guest.marked("fault").unwrap_or_default();
            bench.debug(point(fault, 1, PointKind::Execute))?;
            bench.run_to(MET)?;
            equal("RIP", fault, bench.state()?.rip)?;
            bench.debug(STEP)?;
            bench.run_to(Exit::Debug(DebugStop::Step))?;
            let handler = bench.guest.handlers[6];
            equal("RIP", handler, bench.state()?.rip)?;
            bench.debug(NOTHING)?;
            bench.run_to(Exit::Kicked)?;
            equal("the outputs", vec![1], bench.outs())
        }),
        check("a step over INT1 ends in the guest's handler", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, int1)?;
            let int1 = bench.guest.marked("int1").unwrap_or_default();
            bench.debug(point(int1, 1, PointKind::Execute))?;
            bench.run_to(MET)?;
            bench.debug(STEP)?;
            bench.run_to(Exit::Debug(DebugStop::Step))?;
            equal("RIP", bench.guest.handlers[usize::from(DB)], bench.state()?.rip)?;
            bench.debug(NOTHING)?;
            bench.run_to(Exit::Kicked)?;
            equal("the vectors", vec![u64::from(DB)], bench.vectors())?;
            equal("the outputs", vec![1], bench.outs())
        }),
        check("INT1 is the guest's while a point is armed", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, int1)?;
            bench.debug(point(DATA, 8, PointKind::Write))?;
            bench.run_to(Exit::Kicked)?;
            equal("the vectors", vec![u64::from(DB)], bench.vectors())?;
            equal("the outputs", vec![1], bench.outs())?;
            equal("DR6", 0, bench.state()?.dr6 & 0xe00f)
        }),
    ]
}

/// INT1, then an output.
fn int1(g: &mut Guest) -> Result<(), IcedError> {
    g.resume(DB);
    g.mark("int1")?;
    g.a.int1()?;
    g.out(1)?;
    g.exit()
}

fn points() -> Vec<Case> {
    vec![
        check("a point stops before its instruction", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, turns)?;
            let store = bench.guest.marked("store").unwrap_or_default();
            for left in [1000, 999, 998] {
                bench.debug(point(store, 1, PointKind::Execute))?;
                bench.run_to(MET)?;
                equal("RIP", store, bench.state()?.rip)?;
                equal("RCX", left, bench.state()?.gpr[gpr::RCX])?;
                // As debuggers do it: over the point without it.
                bench.debug(STEP)?;
                bench.run_to(Exit::Debug(DebugStop::Step))?;
                equal("what was stored", left, bench.guest.read(DATA, 4))?;
            }
            bench.debug(NOTHING)?;
            bench.run_to(Exit::Kicked)?;
            equal("the outputs", vec![5], bench.outs())?;
            equal("what was stored last", 1, bench.guest.read(DATA, 4))
        }),
        check("a point elsewhere stops nothing", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, turns)?;
            bench.debug(point(DATA, 1, PointKind::Execute))?;
            bench.run_to(Exit::Kicked)?;
            equal("the outputs", vec![5], bench.outs())
        }),
        check("a watched store stops after it was done", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, turns)?;
            bench.debug(point(DATA, 4, PointKind::Write))?;
            let stored = bench.guest.marked("stored").unwrap_or_default();
            for left in [1000, 999, 998] {
                bench.run_to(MET)?;
                equal("RIP", stored, bench.state()?.rip)?;
                equal("what was stored", left, bench.guest.read(DATA, 4))?;
            }
            bench.debug(NOTHING)?;
            bench.run_to(Exit::Kicked)?;
            equal("the outputs", vec![5], bench.outs())
        }),
        check("loads are watched on demand", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, turns)?;
            let store = bench.guest.marked("store").unwrap_or_default();
            bench.debug(point(DATA + 64, 4, PointKind::Access))?;
            bench.run_to(MET)?;
            equal("RIP", store, bench.state()?.rip)?;
            bench.debug(point(DATA + 64, 4, PointKind::Write))?;
            bench.run_to(Exit::Kicked)?;
            equal("the outputs", vec![5], bench.outs())
        }),
        check("the guest's steps are its own", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, |g| {
                g.resume(DB);
                g.a.push(0x102)?;
                g.a.popfq()?;
                g.a.nop()?;
                g.a.push(2)?;
                g.a.popfq()?;
                g.out(5)?;
                g.exit()
            })?;
            bench.debug(point(DATA, 8, PointKind::Access))?;
            bench.run_to(Exit::Kicked)?;
            equal("the exceptions", vec![u64::from(DB); 3], bench.vectors())?;
            equal("the outputs", vec![5], bench.outs())
        }),
        check("debug registers stay the guest's", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, |g| {
                g.a.mov(eax, 0x1234)?;
                g.a.mov(dr3, rax)?;
                g.mark("here")?;
                g.a.mov(rax, dr3)?;
                g.out_eax()?;
                g.a.mov(rax, dr7)?;
                g.out_eax()?;
                g.exit()
            })?;
            let here = bench.guest.marked("here").unwrap_or_default();
            bench.debug(point(here, 1, PointKind::Execute))?;
            bench.run_to(MET)?;
            // It stays armed where nothing comes by again.
            bench.debug(point(DATA, 8, PointKind::Access))?;
            bench.run_to(Exit::Kicked)?;
            equal("the outputs", vec![0x1234, 0x400], bench.outs())
        }),
    ]
}

fn breakpoints() -> Vec<Case> {
    let int3 = DebugControl { int3: true, ..NOTHING };
    vec![
        check("INT3 stops before it", move |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, turns)?;
            let store = bench.guest.marked("store").unwrap_or_default();
            let original = bench.guest.read(store, 1) as u8;
            bench.debug(int3)?;
            for left in [1000, 999] {
                bench.guest.write(store, &[0xcc]);
                bench.run_to(Exit::Debug(DebugStop::Int3))?;
                equal("RIP", store, bench.state()?.rip)?;
                equal("RCX", left, bench.state()?.gpr[gpr::RCX])?;
                bench.guest.write(store, &[original]);
                bench.debug(DebugControl { step: true, ..int3 })?;
                bench.run_to(Exit::Debug(DebugStop::Step))?;
                bench.debug(int3)?;
            }
            bench.run_to(Exit::Kicked)?;
            equal("the outputs", vec![5], bench.outs())
        }),
        check("INT3 is the guest's if the debugger says so", move |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, |g| {
                g.recover("after")?;
                g.mark("int3")?;
                g.a.int3()?;
                g.out(1)?;
                g.mark("after")?;
                g.out(2)?;
                g.exit()
            })?;
            bench.debug(int3)?;
            bench.run_to(Exit::Debug(DebugStop::Int3))?;
            let here = bench.guest.marked("int3");
            equal("RIP", here, Some(bench.state()?.rip))?;
            bench.vcpu.pass_int3().map_err(|e| e.to_string())?;
            bench.run_to(Exit::Kicked)?;
            equal("the outputs", vec![2], bench.outs())
        }),
        check("nobody's INT3 is the guest's", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, |g| {
                g.recover("after")?;
                g.a.int3()?;
                g.mark("after")?;
                g.out(2)?;
                g.exit()
            })?;
            bench.debug(point(DATA, 1, PointKind::Write))?;
            bench.run_to(Exit::Kicked)?;
            equal("the outputs", vec![2], bench.outs())
        }),
    ]
}
