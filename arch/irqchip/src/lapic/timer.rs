//! The local APIC's timer (SDM Vol. 3, 11.5.4).

use super::{TimerState, regs};

/// The timer's input clock before division, in Hz: one tick is one nanosecond. A CPUID leaf 15H
/// that is offered to the guest must name this as the core crystal clock.
pub const TIMER_HZ: u64 = 1_000_000_000;

/// Expiries of a periodic timer that follow one another faster than this are merged, in ns: the
/// counter keeps its rate, but a guest cannot make its host do nothing but wake up.
const MIN_INTERVAL: u64 = 50_000;

/// The present, in both clocks that the timer can run by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Guest time in nanoseconds; the clock of one-shot and periodic mode.
    pub ns: u64,
    /// The guest's time-stamp counter; the clock of TSC-deadline mode.
    pub tsc: u64,
}

/// When [`timer_expired`](super::Lapic::timer_expired) wants to be called, and by which clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// Guest time in nanoseconds.
    Ns(u64),
    /// A value of the guest's time-stamp counter. If the guest writes its counter, ask again.
    Tsc(u64),
}

/// The timer's mode, from its LVT entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
    /// The encoding 11b: the timer stands still.
    Reserved,
}

impl Mode {
    pub(super) fn of(lvt: u32) -> Self {
        match (lvt & regs::LVT_TIMER_MODE) >> 17 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

impl TimerState {
    /// Nanoseconds per count (figure 11-10).
    fn divisor(&self) -> u64 {
        let code = (self.divide & 3) | ((self.divide >> 1) & 4);
        1 << ((code + 1) & 7)
    }

    /// The length of a period in ns; at least 1.
    fn period(&self) -> u64 {
        (u64::from(self.initial) * self.divisor()).max(1)
    }

    /// Starts, or with 0 stops, a countdown. Ignored in TSC-deadline mode (11.5.4.1).
    pub(super) fn set_initial(&mut self, mode: Mode, count: u32, now: u64) {
        if !mode.counts() {
            return;
        }
        self.initial = count;
        self.due = (count != 0).then(|| now.saturating_add(self.period()));
    }

    /// Changes the divisor; the count goes on from where it is.
    pub(super) fn set_divide(&mut self, mode: Mode, value: u32, now: u64) {
        let count = u64::from(self.count(mode, now));
        self.divide = value & 0b1011;
        if count != 0 {
            self.due = Some(now.saturating_add(count * self.divisor()));
        }
    }

    /// The current count register.
    pub(super) fn count(&self, mode: Mode, now: u64) -> u32 {
        let Some(due) = self.due else { return 0 };
        let divisor = self.divisor();
        let initial = u64::from(self.initial.max(1));
        let count = match mode {
            Mode::OneShot => due.saturating_sub(now).div_ceil(divisor).min(initial),
            // A merged expiry lies several periods ahead, an unserved one in the past.
            Mode::Periodic if now < due => ((due - now).div_ceil(divisor) - 1) % initial + 1,
            Mode::Periodic => initial - (now - due) / divisor % initial,
            Mode::TscDeadline | Mode::Reserved => 0,
        };
        count as u32
    }

    /// Follows a change of mode. Between one-shot and periodic the count goes on; into and out
    /// of TSC-deadline mode the timer is disarmed (11.5.4.1).
    pub(super) fn change_mode(&mut self, old: Mode, new: Mode) {
        if old != new && !(old.counts() && new.counts()) {
            self.initial = 0;
            self.due = None;
            self.tsc_deadline = 0;
        }
    }

    pub(super) fn deadline(&self, mode: Mode) -> Option<Deadline> {
        match mode {
            Mode::OneShot | Mode::Periodic => self.due.map(Deadline::Ns),
            Mode::TscDeadline if self.tsc_deadline != 0 => Some(Deadline::Tsc(self.tsc_deadline)),
            Mode::TscDeadline | Mode::Reserved => None,
        }
    }

    /// Says whether the timer has expired since it was last asked, and starts the next period.
    pub(super) fn expire(&mut self, mode: Mode, now: Now) -> bool {
        match mode {
            Mode::OneShot | Mode::Periodic => {
                let Some(due) = self.due.filter(|&due| due <= now.ns) else { return false };
                self.due = (mode == Mode::Periodic && self.initial != 0).then(|| {
                    let period = self.period();
                    let behind = (now.ns - due).max(MIN_INTERVAL - 1);
                    due.saturating_add((behind / period + 1).saturating_mul(period))
                });
                true
            }
            Mode::TscDeadline => {
                let expired = self.tsc_deadline != 0 && self.tsc_deadline <= now.tsc;
                if expired {
                    self.tsc_deadline = 0;
                }
                expired
            }
            Mode::Reserved => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ns: u64) -> Now {
        Now { ns, tsc: 0 }
    }

    #[test]
    fn divide_configuration() {
        let divisors = [
            (0b0000, 2),
            (0b0001, 4),
            (0b0010, 8),
            (0b0011, 16),
            (0b1000, 32),
            (0b1001, 64),
            (0b1010, 128),
            (0b1011, 1),
        ];
        for (divide, divisor) in divisors {
            assert_eq!(TimerState { divide, ..TimerState::default() }.divisor(), divisor);
        }
    }

    #[test]
    fn one_shot_counts_to_zero_once() {
        let mut timer = TimerState { divide: 0b0011, ..TimerState::default() };
        timer.set_initial(Mode::OneShot, 1000, 5);
        assert_eq!(timer.count(Mode::OneShot, 5), 1000);
        assert_eq!(timer.count(Mode::OneShot, 5 + 16), 999);
        assert_eq!(timer.deadline(Mode::OneShot), Some(Deadline::Ns(16_005)));
        assert!(!timer.expire(Mode::OneShot, at(16_004)));
        assert!(timer.expire(Mode::OneShot, at(16_005)));
        assert!(!timer.expire(Mode::OneShot, at(99_999)));
        assert_eq!(timer.count(Mode::OneShot, 99_999), 0);
    }

    #[test]
    fn periodic_keeps_its_phase_when_served_late() {
        let mut timer = TimerState { divide: 0b1011, ..TimerState::default() };
        timer.set_initial(Mode::Periodic, 1_000_000, 0);
        assert!(timer.expire(Mode::Periodic, at(1_000_700)));
        assert_eq!(timer.deadline(Mode::Periodic), Some(Deadline::Ns(2_000_000)));
        assert!(timer.expire(Mode::Periodic, at(5_400_000)));
        assert_eq!(timer.deadline(Mode::Periodic), Some(Deadline::Ns(6_000_000)));
        assert_eq!(timer.count(Mode::Periodic, 5_400_000), 600_000);
    }

    #[test]
    fn a_tiny_period_does_not_flood_the_host() {
        let mut timer = TimerState { divide: 0b1011, ..TimerState::default() };
        timer.set_initial(Mode::Periodic, 1, 0);
        assert!(timer.expire(Mode::Periodic, at(1)));
        assert_eq!(timer.deadline(Mode::Periodic), Some(Deadline::Ns(1 + MIN_INTERVAL)));
    }

    #[test]
    fn a_new_divisor_takes_over_the_count() {
        let mut timer = TimerState { divide: 0b1011, ..TimerState::default() };
        timer.set_initial(Mode::OneShot, 1000, 0);
        timer.set_divide(Mode::OneShot, 0b0000, 400);
        assert_eq!(timer.count(Mode::OneShot, 400), 600);
        assert_eq!(timer.deadline(Mode::OneShot), Some(Deadline::Ns(400 + 1200)));
    }

    proptest! {
        #[test]
        fn the_periodic_count_is_that_of_a_naive_counter(
            initial in 1u32..500, divide in 0u32..16, polls in prop::collection::vec(0u64..5000, 1..40),
        ) {
            let mut timer = TimerState { divide: divide & 0b1011, ..TimerState::default() };
            let divisor = timer.divisor();
            timer.set_initial(Mode::Periodic, initial, 7);
            let mut now = 7;
            for step in polls {
                now += step;
                timer.expire(Mode::Periodic, at(now));
                let ticks = (now - 7) / divisor;
                let naive = u64::from(initial) - ticks % u64::from(initial);
                prop_assert_eq!(u64::from(timer.count(Mode::Periodic, now)), naive);
            }
        }

        #[test]
        fn nothing_overflows(initial: u32, divide: u32, start: u64, now: u64) {
            let mut timer = TimerState::default();
            for mode in [Mode::OneShot, Mode::Periodic] {
                timer.set_initial(mode, initial, start);
                timer.set_divide(mode, divide, now);
                timer.count(mode, now);
                timer.expire(mode, at(now));
                timer.count(mode, start);
                prop_assert!(timer.count(mode, now) <= initial);
            }
        }
    }
}
