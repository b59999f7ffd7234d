//! Which pages of RAM the processors store to, as far as an accelerator notes it.

use std::collections::BTreeSet;

use accel::{Accelerator, CpuidTable, Exit, Fault};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::bench::{Bench, Checked, equal, spin};
use crate::case::{Case, check_where};
use crate::guest::Guest;
use crate::layout::{DATA, FRAMES, HIGH_RAM, port};
use crate::start::Start::Long;

const PAGE: u64 = 0x1000;
/// As many pages as make a log overflow that is short.
const MANY: u64 = 2048;

/// What the guest in [`strides`] is asked to do, in this order from `DATA` on.
struct Task {
    first: u64,
    /// Bytes from one store to the next.
    step: u64,
    count: u64,
}

/// Turns without end: the guest does a [`Task`], by one store after the other. It stores nowhere else.
fn strides(g: &mut Guest) -> Result<(), IcedError> {
    for page in (0..MANY * PAGE).step_by(PAGE as usize) {
        g.map(FRAMES + page, FRAMES + page, 0x63);
    }
    for page in (0..0x40_0000).step_by(PAGE as usize) {
        g.map(HIGH_RAM + page, HIGH_RAM + page, 0x63);
    }
    let (again, next, done) = (g.addr("again"), g.addr("next"), g.addr("done"));
    g.mark("again")?;
    g.a.mov(ebx, DATA as u32)?;
    g.a.mov(rdi, qword_ptr(rbx))?;
    g.a.mov(rsi, qword_ptr(rbx + 8))?;
    g.a.mov(rcx, qword_ptr(rbx + 16))?;
    g.mark("next")?;
    g.a.test(rcx, rcx)?;
    g.a.jz(done)?;
    // What is loaded only is not stored to.
    g.a.mov(rax, qword_ptr(rdi + PAGE as i32))?;
    g.a.mov(dword_ptr(rdi), ecx)?;
    g.a.add(rdi, rsi)?;
    g.a.dec(rcx)?;
    g.a.jmp(next)?;
    g.mark("done")?;
    g.a.out(u32::from(port::EXIT), al)?;
    g.a.jmp(again)
}

/// Pages that a guest has to do with.
#[derive(Default)]
struct Touched {
    stored: BTreeSet<u64>,
    loaded: BTreeSet<u64>,
}

impl Bench {
    /// Has the guest do a task; the pages that it touches.
    fn stores(&mut self, task: &Task) -> Checked<Touched> {
        for (at, value) in (DATA..).step_by(8).zip([task.first, task.step, task.count]) {
            self.guest.write64(at, value);
        }
        equal("the exit", Exit::Kicked, self.run()?)?;
        let places =
            |add| (0..task.count).map(move |n| (task.first + n * task.step + add) & !(PAGE - 1));
        Ok(Touched { stored: places(0).collect(), loaded: places(PAGE).collect() })
    }

    /// The pages that were noted.
    fn noted(&self) -> Checked<BTreeSet<u64>> {
        let regions = self.vm.take_stores().map_err(|e| e.to_string())?;
        Ok(regions.iter().flat_map(accel::StoredPages::addresses).collect())
    }

    fn log(&self, on: bool) -> Checked {
        self.vm.log_stores(on).map_err(|e| e.to_string())
    }
}

/// An error unless the pages that were stored to are noted, and none that have nothing to do with the
/// guest. What is loaded from may be noted, because KVM may map it writable at once, and so may what
/// lies below [`FRAMES`]: with nested paging, page tables are stored to whenever they are read (AMD APM
/// Vol. 2, 15.25.5).
fn just(touched: &Touched, noted: &BTreeSet<u64>) -> Checked {
    let missing: Vec<_> = touched.stored.difference(noted).take(10).collect();
    let is_added = |page: &&u64| **page >= FRAMES && !touched.loaded.contains(page);
    let added: Vec<_> = noted.difference(&touched.stored).filter(is_added).take(10).collect();
    if missing.is_empty() && added.is_empty() {
        return Ok(());
    }
    let (n, m) = (noted.len(), touched.stored.len());
    Err(format!("{n} pages were noted, not {m}: {missing:x?} are missing, {added:x?} too many"))
}

/// Why the accelerator is not asked.
fn lacks(accelerator: &dyn Accelerator, cpuid: &CpuidTable) -> Checked<Option<&'static str>> {
    match Bench::new(accelerator, cpuid, Long, spin)?.vm.log_stores(true) {
        Ok(()) => Ok(None),
        Err(Fault::Unsupported(_)) => Ok(Some("a log of stores")),
        Err(other) => Err(other.to_string()),
    }
}

pub fn cases() -> Vec<Case> {
    vec![
        check_where(lacks, "stores: just the pages that were stored to are noted", |a, cpuid| {
            let mut bench = Bench::new(a, cpuid, Long, strides)?;
            // One of three is stored to, one loaded from.
            let few = Task { first: FRAMES + 8, step: 3 * PAGE, count: 20 };
            bench.stores(&few)?;
            if bench.vm.take_stores().is_ok() {
                return Err("stores were noted without being asked".to_owned());
            }
            bench.log(true)?;
            equal("what is noted", BTreeSet::new(), bench.noted()?)?;
            let touched = bench.stores(&few)?;
            just(&touched, &bench.noted()?)?;
            equal("what is noted", BTreeSet::new(), bench.noted()?)?;
            // The same pages again, and others.
            let touched = bench.stores(&few)?;
            just(&touched, &bench.noted()?)?;
            let touched = bench.stores(&Task { first: HIGH_RAM + 0xff8, step: 0x800, count: 9 })?;
            just(&touched, &bench.noted()?)
        }),
        check_where(lacks, "stores: many pages are noted", |a, cpuid| {
            let mut bench = Bench::new(a, cpuid, Long, strides)?;
            bench.log(true)?;
            // The last page is loaded from only.
            let many = Task { first: FRAMES, step: PAGE, count: MANY - 1 };
            for _ in 0..3 {
                let mut touched = bench.stores(&many)?;
                let more = bench.stores(&Task { first: HIGH_RAM, step: PAGE, count: 1000 })?;
                touched.stored.extend(more.stored);
                touched.loaded.extend(more.loaded);
                just(&touched, &bench.noted()?)?;
            }
            equal("what is noted", BTreeSet::new(), bench.noted()?)
        }),
        check_where(lacks, "stores: noting can end and begin anew", |a, cpuid| {
            let mut bench = Bench::new(a, cpuid, Long, strides)?;
            let task = |n: u64| Task { first: FRAMES + 2 * n * PAGE, step: 6 * PAGE, count: 100 };
            for round in 0..3 {
                bench.log(true)?;
                bench.stores(&task(round))?;
                bench.log(false)?;
                if bench.vm.take_stores().is_ok() {
                    return Err("stores are noted although they shall not be".to_owned());
                }
                bench.stores(&task(round + 1))?;
                bench.log(true)?;
                let touched = bench.stores(&task(round + 2))?;
                just(&touched, &bench.noted()?)?;
            }
            Ok(())
        }),
    ]
}
