//! A TSC whose rate is another than the host's.

use std::ops::RangeInclusive;
use std::thread;
use std::time::Duration;

use accel::{Accelerator, CpuidTable, Exit};
use iced_x86::code_asm::*;

use super::bench::{Bench, Checked, equal};
use super::pause::turns;
use super::saved::moved;
use crate::case::{Case, check_where};
use crate::layout::DATA;
use crate::start::Start::Long;

/// KVM's timing leaf, whose EAX is the rate of the TSC in kHz.
const TIMING: u32 = 0x4000_0010;
/// What the processor model asks for: no host's rate.
const WANTED_KHZ: u32 = 1_234_567;

/// A guest that tells the rate that CPUID tells it, and then the TSC in turns.
fn bench(accelerator: &dyn Accelerator, cpuid: &CpuidTable) -> Checked<Bench> {
    let mut cpuid = cpuid.clone();
    let mut timing = cpuid.get(TIMING, 0).unwrap_or_default();
    timing.eax = WANTED_KHZ;
    cpuid.set(TIMING, None, timing);
    Bench::new(accelerator, &cpuid, Long, |g| {
        g.a.mov(eax, TIMING)?;
        g.a.xor(ecx, ecx)?;
        g.a.cpuid()?;
        g.out_eax()?;
        turns(g)
    })
}

/// Who does not scale the TSC tells the guest the host's rate.
fn lacks(accelerator: &dyn Accelerator, cpuid: &CpuidTable) -> Checked<Option<&'static str>> {
    let mut bench = bench(accelerator, cpuid)?;
    equal("the exit", Exit::Kicked, bench.run()?)?;
    Ok((bench.outs() != [WANTED_KHZ]).then_some("TSC scaling"))
}

/// Ticks of the guest's TSC in so many of the host's.
fn expected(host: u64) -> u64 {
    let ticks = u128::from(host) * u128::from(WANTED_KHZ) * 1000;
    (ticks / u128::from(runtime::tsc::frequency_hz().max(1))) as u64
}

/// Whether the TSC went on between a guest's last two turns as it was to.
fn went_on(bench: &Bench, range: RangeInclusive<u64>) -> Checked<()> {
    let ticks = bench.guest.read(DATA, 8).wrapping_sub(bench.guest.read(DATA + 8, 8));
    match range.contains(&ticks) {
        true => Ok(()),
        false => Err(format!("it went on by {ticks} ticks, not {range:?}")),
    }
}

pub fn cases() -> Vec<Case> {
    vec![
        check_where(lacks, "tsc: it runs at the rate that CPUID tells", |accelerator, cpuid| {
            let mut bench = bench(accelerator, cpuid)?;
            let begun = runtime::tsc::read();
            equal("the exit", Exit::Kicked, bench.run()?)?;
            let paused = runtime::tsc::read();
            thread::sleep(Duration::from_millis(200));
            let least = runtime::tsc::read() - paused;
            equal("the exit", Exit::Kicked, bench.run()?)?;
            let most = runtime::tsc::read() - begun;
            // A hundredth for the rate of the host's, which was measured.
            went_on(&bench, expected(least) / 100 * 99..=expected(most) / 100 * 101)
        }),
        check_where(
            lacks,
            "tsc: of another rate, it goes on after a move",
            |accelerator, cpuid| {
                let mut first = bench(accelerator, cpuid)?;
                let begun = runtime::tsc::read();
                equal("the exit", Exit::Kicked, first.run()?)?;
                // The guest's memory has the TSC of then.
                let mut second = moved(&mut first, bench(accelerator, cpuid)?)?;
                equal("the exit", Exit::Kicked, second.run()?)?;
                let most = runtime::tsc::read() - begun;
                // What lies between both machines' pauses counts at the host's rate.
                went_on(&second, 1..=expected(most).max(most) / 100 * 101)
            },
        ),
    ]
}
