//! Guest time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{Thread, ThreadId};

use rustix::time::{ClockId, clock_gettime};

/// Guest time: nanoseconds since the VM first started, not counting the time it was stopped.
///
/// It runs at the rate of the host's `CLOCK_MONOTONIC_RAW`, which is the rate of the TSC:
/// the clocks that a guest reads (TSC, PM timer, APIC timer, RTC) do not drift against each
/// other when the host's NTP client slews its own. Shared by `Arc`; any thread may call.
#[derive(Debug)]
pub struct Clock {
    /// While the clock runs: host time minus guest time, modulo 2^63. While it is stopped:
    /// [`STOPPED`] and the guest time. One word, so that `now` needs no lock.
    state: AtomicU64,
    /// Threads that sleep until some guest time and must look again when the clock runs on.
    sleepers: Mutex<Vec<Thread>>,
}

const STOPPED: u64 = 1 << 63;
const TIME: u64 = STOPPED - 1;

impl Clock {
    /// A running clock that stands at zero now.
    pub fn new() -> Self {
        let clock = Self::stopped_at(0);
        clock.resume();
        clock
    }

    /// A stopped clock that shows `now`, for a VM that is built before it runs or restored from
    /// a snapshot. `now` is below 2^63 ns (292 years); higher bits are ignored.
    pub fn stopped_at(now: u64) -> Self {
        Self { state: AtomicU64::new(STOPPED | (now & TIME)), sleepers: Mutex::default() }
    }

    /// The guest time in nanoseconds. Never goes back.
    #[inline]
    pub fn now(&self) -> u64 {
        Self::at(self.state.load(Ordering::Acquire))
    }

    /// The guest time, if the clock is running.
    pub(crate) fn running_now(&self) -> Option<u64> {
        let state = self.state.load(Ordering::Acquire);
        (state & STOPPED == 0).then(|| Self::at(state))
    }

    #[inline]
    fn at(state: u64) -> u64 {
        if state & STOPPED != 0 { state & TIME } else { host_nanos().wrapping_sub(state) & TIME }
    }

    /// Stops guest time. Harmless if it is stopped already.
    pub fn pause(&self) {
        // Under the lock, so that pause and resume do not interleave.
        let _sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.state.load(Ordering::Acquire);
        if state & STOPPED == 0 {
            self.state.store(STOPPED | Self::at(state), Ordering::Release);
        }
    }

    /// Lets guest time run on from where it stopped. Harmless if it runs.
    pub fn resume(&self) {
        let sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.state.load(Ordering::Acquire);
        if state & STOPPED != 0 {
            let offset = host_nanos().wrapping_sub(state) & TIME;
            self.state.store(offset, Ordering::Release);
            sleepers.iter().for_each(Thread::unpark);
        }
    }

    /// Whether guest time stands still.
    pub fn is_paused(&self) -> bool {
        self.state.load(Ordering::Acquire) & STOPPED != 0
    }

    /// Unparks `thread` at each resume from now on.
    pub(crate) fn unpark_on_resume(&self, thread: Thread) {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    }

    /// Ends what [`Clock::unpark_on_resume`] began.
    pub(crate) fn forget(&self, thread: ThreadId) {
        let mut sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        sleepers.retain(|t| t.id() != thread);
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// `CLOCK_MONOTONIC_RAW` in nanoseconds.
#[inline]
pub(crate) fn host_nanos() -> u64 {
    let t = clock_gettime(ClockId::MonotonicRaw);
    // Neither part of a monotonic clock is ever negative.
    (t.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(t.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn time_runs_and_never_goes_back() {
        let clock = Clock::new();
        let first = clock.now();
        assert!(first < 1_000_000_000);
        let mut last = first;
        for _ in 0..10_000 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
        std::thread::sleep(Duration::from_millis(2));
        assert!(clock.now() - last >= 2_000_000 - 2_000);
    }

    #[test]
    fn time_stands_still_while_paused() {
        let clock = Clock::new();
        clock.pause();
        assert!(clock.is_paused());
        let stopped = clock.now();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(clock.now(), stopped);
        clock.pause();
        let begun = host_nanos();
        clock.resume();
        clock.resume();
        let resumed = clock.now();
        let took = host_nanos() - begun;
        assert!(!clock.is_paused());
        assert!((stopped..=stopped + took).contains(&resumed), "{} in {took}", resumed - stopped);
    }

    #[test]
    fn a_restored_clock_may_be_ahead_of_the_host() {
        let then = TIME - 1_000_000_000_000;
        let clock = Clock::stopped_at(then);
        assert_eq!(clock.now(), then);
        clock.resume();
        assert!(clock.now() >= then && clock.now() - then < 1_000_000_000);
        clock.pause();
        assert!(clock.now() >= then && clock.now() - then < 1_000_000_000);
    }
}
