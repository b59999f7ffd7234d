//! A TSC whose rate is another than the host's.

use std::thread;
use std::time::Duration;

use accel::{Accelerator, CpuidTable, Exit};
use iced_x86::code_asm::*;

use super::bench::{Bench, Checked, equal};
use super::pause::turns;
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

pub fn cases() -> Vec<Case> {
    vec![check_where(lacks, "tsc: it runs at the rate that CPUID tells", |accelerator, cpuid| {
        let mut bench = bench(accelerator, cpuid)?;
        let begun = runtime::tsc::read();
        equal("the exit", Exit::Kicked, bench.run()?)?;
        let paused = runtime::tsc::read();
        thread::sleep(Duration::from_millis(200));
        let least = runtime::tsc::read() - paused;
        equal("the exit", Exit::Kicked, bench.run()?)?;
        let most = runtime::tsc::read() - begun;
        let ticks = bench.guest.read(DATA, 8).wrapping_sub(bench.guest.read(DATA + 8, 8));
        let expected = |host: u64| {
            let ticks = u128::from(host) * u128::from(WANTED_KHZ) * 1000;
            ticks / u128::from(runtime::tsc::frequency_hz().max(1))
        };
        // A hundredth for the rate of the host's, which was measured.
        let range = expected(least) * 99 / 100..=expected(most) * 101 / 100;
        match range.contains(&u128::from(ticks)) {
            true => Ok(()),
            false => Err(format!("it went on by {ticks} ticks, not {range:?}")),
        }
    })]
}
