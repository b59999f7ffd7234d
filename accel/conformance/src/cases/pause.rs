//! Time that stands still for the processors while the machine is paused.
//!
//! How long anything takes is up to the host. So a pause is compared with what has passed in all: a
//! guest can't have seen more than that less the pause.

use std::thread;
use std::time::Duration;

use accel::Exit;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::bench::{Bench, Checked, equal};
use super::board::init_pic;
use crate::apic::{Apic, reg};
use crate::case::{Case, check};
use crate::guest::Guest;
use crate::layout::{DATA, port};
use crate::start::Start::Long;

/// Long, next to what a guest of some instructions takes.
const PAUSE: Duration = Duration::from_millis(400);
/// `pvclock_vcpu_time_info` (Linux, Documentation/virt/kvm/x86/msr.rst).
const CLOCK: u64 = DATA + 0x800;
const SYSTEM_TIME: u32 = 0x4b56_4d01;
const VECTOR: u32 = 0x41;

impl Bench {
    /// Runs, pauses, and runs again, each time until the guest ends a turn. How many ticks of the
    /// host's TSC passed besides the pause, at most.
    fn turn_pause_turn(&mut self) -> Checked<u64> {
        let begun = runtime::tsc::read();
        equal("the exit", Exit::Kicked, self.run()?)?;
        let paused = self.pause();
        equal("the exit", Exit::Kicked, self.run()?)?;
        let all = runtime::tsc::read().wrapping_sub(begun);
        Ok(all.saturating_sub(paused))
    }

    /// A pause; how many ticks of the host's TSC time stood still for at least.
    fn pause(&self) -> u64 {
        self.clock.pause();
        self.vm.stop_time();
        let begun = runtime::tsc::read();
        thread::sleep(PAUSE);
        let ticks = runtime::tsc::read().wrapping_sub(begun);
        self.vm.resume_time();
        self.clock.resume();
        ticks
    }

    fn read64(&self, at: u64) -> u64 {
        self.guest.read(at, 8)
    }
}

/// Stores the TSC at `DATA` and what was there 8 bytes above, and ends the turn.
fn note_tsc(g: &mut Guest) -> Result<(), IcedError> {
    g.a.mov(ebx, DATA as u32)?;
    g.a.mov(rcx, qword_ptr(rbx))?;
    g.a.mov(qword_ptr(rbx + 8), rcx)?;
    g.a.rdtsc()?;
    g.a.mov(dword_ptr(rbx), eax)?;
    g.a.mov(dword_ptr(rbx + 4), edx)?;
    g.a.out(u32::from(port::EXIT), al)
}

/// Turns without end.
pub fn turns(g: &mut Guest) -> Result<(), IcedError> {
    let again = g.addr("again");
    g.mark("again")?;
    note_tsc(g)?;
    g.a.jmp(again)
}

/// Notes the TSC once the timer's interrupt waits in the local APIC. It is never taken.
fn wait_for_timer(g: &mut Guest) -> Result<(), IcedError> {
    g.mark("wait")?;
    Apic::X2.read(g, reg::IRR + (VECTOR / 32) * 0x10)?;
    let wait = g.addr("wait");
    g.a.test(eax, 1 << (VECTOR % 32))?;
    g.a.jz(wait)?;
    note_tsc(g)
}

/// Has the PIT's channel 0 count down once, for as long as it can, to an interrupt that waits in the
/// 8259 and is never taken.
pub fn start_pit(g: &mut Guest) -> Result<(), IcedError> {
    init_pic(g, 0)?;
    // Mode 0, both bytes.
    for (to, value) in [(0x43u32, 0x30u32), (0x40, PIT_COUNT & 0xff), (0x40, PIT_COUNT >> 8)] {
        g.a.mov(eax, value)?;
        g.a.out(to, al)?;
    }
    Ok(())
}

/// Waits until that interrupt is there.
pub fn wait_for_pit(g: &mut Guest) -> Result<(), IcedError> {
    g.mark("wait")?;
    let wait = g.addr("wait");
    // The interrupt request register.
    g.a.in_(al, 0x20)?;
    g.a.test(al, 1)?;
    g.a.jz(wait)
}

/// Nanoseconds by the guest's clock at this value of its TSC.
fn clock_at(bench: &Bench, tsc: u64) -> u64 {
    let ticks = tsc.wrapping_sub(bench.read64(CLOCK + 8));
    let mul = bench.guest.read(CLOCK + 24, 4);
    let shift = bench.guest.read(CLOCK + 28, 1) as u8 as i8;
    let by = u32::from(shift.unsigned_abs());
    let ticks = if shift < 0 { ticks.checked_shr(by) } else { ticks.checked_shl(by) };
    let ns = (u128::from(ticks.unwrap_or(0)) * u128::from(mul)) >> 32;
    bench.read64(CLOCK + 16).wrapping_add(ns as u64)
}

/// An error unless `later` came after `earlier`, by no more than `most`.
fn between(what: &str, earlier: u64, later: u64, most: u64) -> Checked {
    match later.checked_sub(earlier) {
        Some(passed) if passed <= most => Ok(()),
        Some(passed) => Err(format!("{what} went on by {passed} while no more than {most} passed")),
        None => Err(format!("{what} went back from {earlier} to {later}")),
    }
}

pub fn cases() -> Vec<Case> {
    vec![
        check("pause: the TSC stands still", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, turns)?;
            for _ in 0..2 {
                let awake = bench.turn_pause_turn()?;
                between("the TSC", bench.read64(DATA + 8), bench.read64(DATA), awake)?;
            }
            Ok(())
        }),
        check("pause: the paravirtual clock stands still", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, |g| {
                g.wrmsr(SYSTEM_TIME, CLOCK | 1)?;
                turns(g)
            })?;
            let begun = runtime::tsc::read();
            equal("the exit", Exit::Kicked, bench.run()?)?;
            let earlier = clock_at(&bench, bench.read64(DATA));
            let paused = bench.pause();
            equal("the exit", Exit::Kicked, bench.run()?)?;
            let later = clock_at(&bench, bench.read64(DATA));
            let awake = runtime::tsc::read().wrapping_sub(begun).saturating_sub(paused);
            let ns = u128::from(awake) * 1_000_000_000 / u128::from(runtime::tsc::frequency_hz());
            // The rate of the TSC is measured, here and by the host's kernel.
            between("the clock", earlier, later, ns as u64 + 1_000_000)
        }),
        check("pause: a TSC deadline is not met during it", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, |g| {
                Apic::X2.enable(g)?;
                Apic::X2.write(g, reg::LVT_TIMER, VECTOR | 2 << 17)?;
                g.a.mfence()?;
                let ticks = deadline_ticks();
                g.a.rdtsc()?;
                g.a.add(eax, ticks as i32)?;
                g.a.adc(edx, 0)?;
                g.a.mov(ecx, 0x6e0)?;
                g.a.wrmsr()?;
                g.a.mov(ebx, DATA as u32)?;
                g.a.mov(dword_ptr(rbx + 16), eax)?;
                g.a.mov(dword_ptr(rbx + 20), edx)?;
                g.a.out(u32::from(port::EXIT), al)?;
                wait_for_timer(g)
            })?;
            bench.turn_pause_turn()?;
            let (deadline, met) = (bench.read64(DATA + 16), bench.read64(DATA));
            if met < deadline {
                return Err(format!("the deadline {deadline} was met at {met}"));
            }
            Ok(())
        }),
        check("pause: a timer that counts down does not count on", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, |g| {
                Apic::X2.enable(g)?;
                Apic::X2.write(g, reg::LVT_TIMER, VECTOR)?;
                // Divided by one; the timer counts nanoseconds.
                Apic::X2.write(g, reg::DIVIDE, 0xb)?;
                g.a.mfence()?;
                g.a.rdtsc()?;
                g.a.mov(ebx, DATA as u32)?;
                g.a.mov(dword_ptr(rbx + 16), eax)?;
                g.a.mov(dword_ptr(rbx + 20), edx)?;
                Apic::X2.write(g, reg::INITIAL, COUNT)?;
                g.a.out(u32::from(port::EXIT), al)?;
                wait_for_timer(g)
            })?;
            bench.turn_pause_turn()?;
            let passed = bench.read64(DATA).wrapping_sub(bench.read64(DATA + 16));
            // A hundredth for the measured rate.
            if passed < deadline_ticks() - deadline_ticks() / 100 {
                return Err(format!("the timer was there after {passed} ticks"));
            }
            Ok(())
        }),
        check("pause: the PIT does not count on", |accelerator, cpuid| {
            let mut bench = Bench::new(accelerator, cpuid, Long, |g| {
                start_pit(g)?;
                g.a.out(u32::from(port::EXIT), al)?;
                wait_for_pit(g)?;
                g.exit()
            })?;
            let awake = bench.turn_pause_turn()?;
            let least = runtime::tsc::frequency_hz() / PIT_HZ * u64::from(PIT_COUNT);
            // A hundredth for the measured rate.
            if awake < least - least / 100 {
                return Err(format!("it was there after {awake} of {least} ticks of the TSC"));
            }
            Ok(())
        }),
    ]
}

/// The PIT's rate, and a count of 55 ms, which is less than the pause.
const PIT_HZ: u64 = 1_193_182;
const PIT_COUNT: u32 = 0xffff;

/// Nanoseconds until the timer's interrupt: less than the pause, more than nothing.
const COUNT: u32 = 200_000_000;

/// The same in ticks of the TSC; below 2^31 up to 10 GHz.
fn deadline_ticks() -> u64 {
    runtime::tsc::frequency_hz() / 1000 * u64::from(COUNT) / 1_000_000
}
