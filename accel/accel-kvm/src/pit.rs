//! KVM's 8254, between its structure and the one that is saved, and across a pause.
//!
//! KVM tells what a counter was loaded with, and of channels 1 and 2 when; how far channel 0 has
//! come it keeps for itself. What it is given, it counts from the beginning. So that is where
//! counters are after a pause, and after they were taken over.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use accel::Fault;
use irqchip::{PIT_HZ, PitAccess, PitChannelState, PitMode, PitPhase, PitState};
use kvm_bindings::{kvm_pit_channel_state, kvm_pit_state2};
use kvm_ioctls::VmFd;
use rustix::time::{ClockId, clock_gettime};

use crate::host::failed;

/// The mode of a counter that was never programmed (Linux, arch/x86/kvm/i8254.c). Channel 0 has no
/// timer then.
const NO_MODE: u8 = 0xff;

/// A machine's PIT.
pub struct Pit {
    vm: Arc<VmFd>,
    stopped: Mutex<Option<Stopped>>,
}

/// How it stood when it was stopped.
#[derive(Clone, Copy)]
struct Stopped {
    state: kvm_pit_state2,
    /// By the clock that KVM goes by.
    at: i64,
}

impl Pit {
    /// That of `vm`.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, stopped: Mutex::default() }
    }

    /// Has it stand still: it counts nothing, and raises no interrupt.
    pub fn stop(&self) -> Result<(), Fault> {
        let state = self.read()?;
        *self.stopped() = Some(Stopped { state, at: host_ns() });
        self.halt(state)
    }

    /// Has it go on.
    pub fn resume(&self) -> Result<(), Fault> {
        match self.stopped().take() {
            // What does not count is left alone.
            Some(stopped) if stopped.state.channels.iter().any(counts) => {
                self.write(&stopped.state)
            }
            _ => Ok(()),
        }
    }

    /// Its state at the guest time `now` in ns.
    pub fn save(&self, now: u64) -> Result<PitState, Fault> {
        let Stopped { state, at } = match *self.stopped() {
            Some(stopped) => stopped,
            None => Stopped { state: self.read()?, at: host_ns() },
        };
        let channel = |c: &kvm_pit_channel_state| channel_state(c, ticks(now.into()), at);
        let [a, b, c] = &state.channels;
        Ok(PitState {
            channels: [channel(a), channel(b), channel(c)],
            port61: u8::from(c.gate != 0),
            not_before: 0,
        })
    }

    /// Has it take over a state; if it stands still, it does so on.
    pub fn restore(&self, saved: &PitState) -> Result<(), Fault> {
        // Whatever is not to be is found out by the model.
        irqchip::Pit::new().restore(saved).map_err(|e| Fault::BadState(e.to_string()))?;
        let mut state = self.read()?;
        for (to, from) in state.channels.iter_mut().zip(&saved.channels) {
            *to = kvm_channel(from);
        }
        match &mut *self.stopped() {
            Some(stopped) => {
                *stopped = Stopped { state, at: host_ns() };
                self.halt(state)
            }
            None => self.write(&state),
        }
    }

    /// Takes channel 0's timer away, if it has one.
    fn halt(&self, mut state: kvm_pit_state2) -> Result<(), Fault> {
        let [timer, ..] = &mut state.channels;
        if !counts(timer) {
            return Ok(());
        }
        timer.mode = NO_MODE;
        self.write(&state)
    }

    fn read(&self) -> Result<kvm_pit_state2, Fault> {
        self.vm.get_pit2().map_err(|e| failed("cannot read KVM's timer (PIT)", e))
    }

    fn write(&self, state: &kvm_pit_state2) -> Result<(), Fault> {
        self.vm.set_pit2(state).map_err(|e| failed("cannot set KVM's timer (PIT)", e))
    }

    fn stopped(&self) -> MutexGuard<'_, Option<Stopped>> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn counts(channel: &kvm_pit_channel_state) -> bool {
    channel.mode != NO_MODE
}

/// CLOCK_MONOTONIC, by which KVM notes when a counter was loaded.
fn host_ns() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec)
}

fn ticks(ns: i128) -> i64 {
    (ns * i128::from(PIT_HZ) / 1_000_000_000) as i64
}

/// A channel at the tick `seen`, when the host's clock shows `at`.
fn channel_state(c: &kvm_pit_channel_state, seen: i64, at: i64) -> PitChannelState {
    let loaded_at = if c.count_load_time == 0 { at } else { c.count_load_time };
    let elapsed = ticks(i128::from(at) - i128::from(loaded_at)).max(0);
    let count = i64::from(c.count).clamp(1, 0x1_0000);
    PitChannelState {
        mode: match c.mode {
            0 => PitMode::TerminalCount,
            1 => PitMode::OneShot,
            2 => PitMode::RateGenerator,
            4 => PitMode::SoftwareStrobe,
            5 => PitMode::HardwareStrobe,
            _ => PitMode::SquareWave,
        },
        bcd: c.bcd != 0,
        access: match c.rw_mode {
            1 => PitAccess::Low,
            2 => PitAccess::High,
            _ => PitAccess::LowThenHigh,
        },
        gate: c.gate != 0,
        written: counts(c).then_some(count),
        loaded: count,
        phase: if counts(c) {
            PitPhase::Counting { since: seen - elapsed }
        } else {
            PitPhase::Idle
        },
        switch_at: None,
        null_count: !counts(c),
        low_byte: (c.write_state == 4).then_some(c.write_latch),
        read_high: c.read_state == 4,
        latched_count: (c.count_latched != 0).then_some(c.latched_count),
        latched_status: (c.status_latched != 0).then_some(c.status),
        seen,
        rose: false,
    }
}

fn kvm_channel(from: &PitChannelState) -> kvm_pit_channel_state {
    let next = |is_second: bool| match from.access {
        PitAccess::LowThenHigh if is_second => 4,
        access => access as u8,
    };
    kvm_pit_channel_state {
        count: from.written.map_or(0, |count| count as u32),
        latched_count: from.latched_count.unwrap_or_default(),
        count_latched: from.latched_count.map_or(0, |_| from.access as u8),
        status_latched: from.latched_status.is_some().into(),
        status: from.latched_status.unwrap_or_default(),
        read_state: next(from.read_high),
        write_state: next(from.low_byte.is_some()),
        write_latch: from.low_byte.unwrap_or_default(),
        rw_mode: from.access as u8,
        // Between its control word and its count there is a counter that KVM would have count.
        mode: if from.written.is_some() { from.mode as u8 } else { NO_MODE },
        bcd: from.bcd.into(),
        gate: from.gate.into(),
        count_load_time: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_comes_back_as_it_went() {
        let programmed = kvm_pit_channel_state {
            count: 1193,
            mode: 2,
            rw_mode: 3,
            read_state: 3,
            write_state: 3,
            gate: 1,
            ..Default::default()
        };
        let state = channel_state(&programmed, 1000, 1_000_000);
        assert_eq!(state.phase, PitPhase::Counting { since: 1000 });
        assert_eq!(kvm_channel(&state), programmed);
        // Channels 1 and 2 say when they were loaded: here a millisecond ago.
        let second = kvm_pit_channel_state { count_load_time: 500_000, ..programmed };
        let state = channel_state(&second, 5000, 1_500_000);
        assert_eq!(state.phase, PitPhase::Counting { since: 5000 - 1193 });
        let fresh = kvm_pit_channel_state { mode: NO_MODE, count: 0x1_0000, ..programmed };
        let state = channel_state(&fresh, 1000, 1_000_000);
        assert_eq!((state.written, state.phase), (None, PitPhase::Idle));
        assert_eq!(kvm_channel(&state).mode, NO_MODE);
    }
}
