//! The timers of one VM: one ordered set of deadlines, one thread.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use crate::Clock;
use crate::thread::Role;

/// What a timer calls when it expires.
pub trait TimerTarget: Send + Sync {
    /// The timer that was armed for `deadline` (guest time in ns) has expired and is disarmed.
    ///
    /// Called on the timer thread at or after `deadline`; no lock of this crate is held, so the
    /// target may arm, disarm and drop timers. It must be quick: other timers wait.
    ///
    /// A target that rearms or disarms its timer on another thread may at that moment be called
    /// for the earlier deadline: it decides by its own state whether the call still counts.
    fn expired(&self, deadline: u64);
}

/// A device with a timer that stands behind a lock of its own, as devices on a bus do.
pub trait Expire: Send {
    /// As [`TimerTarget::expired`], with the device's lock held.
    fn expired(&mut self, deadline: u64);
}

impl<T: Expire + ?Sized> TimerTarget for Mutex<T> {
    fn expired(&self, deadline: u64) {
        self.lock().unwrap_or_else(PoisonError::into_inner).expired(deadline);
    }
}

/// The timers of one VM. Its thread ends when this is dropped; timers that are left over are
/// never called again.
#[derive(Debug)]
pub struct Timers {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
    thread: Thread,
}

/// A one-shot timer. Dropping it disarms it.
#[derive(Debug)]
pub struct Timer {
    id: u64,
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Debug)]
struct Shared {
    clock: Arc<Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Deadline and id of each armed timer, soonest first.
    armed: BTreeSet<(u64, u64)>,
    slots: HashMap<u64, Slot>,
    next_id: u64,
    /// The deadline the thread sleeps for. `None`: it is awake, or the clock is stopped, and it
    /// will look at `armed` before it sleeps for a deadline.
    sleeps_until: Option<u64>,
    stop: bool,
}

struct Slot {
    target: Weak<dyn TimerTarget>,
    deadline: Option<u64>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("armed", &self.armed).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Timers {
    /// Starts the timer thread over `clock`. Fails when the host has no thread to give.
    pub fn new(clock: Arc<Clock>) -> io::Result<Self> {
        let shared = Arc::new(Shared { clock, state: Mutex::default() });
        let worker = crate::thread::spawn(Role::Timers, "timers", {
            let shared = shared.clone();
            move || run(&shared)
        })?;
        let thread = worker.thread().clone();
        shared.clock.unpark_on_resume(thread.clone());
        // The clock may have been resumed before the thread was known to it.
        thread.unpark();
        Ok(Self { shared, worker: Some(worker), thread })
    }

    /// The clock that deadlines refer to.
    pub fn clock(&self) -> &Arc<Clock> {
        &self.shared.clock
    }

    /// A new timer that calls `target`, disarmed. A target that is gone is not called.
    pub fn timer(&self, target: Weak<dyn TimerTarget>) -> Timer {
        let mut state = self.shared.lock();
        let id = state.next_id;
        state.next_id += 1;
        state.slots.insert(id, Slot { target, deadline: None });
        Timer { id, shared: self.shared.clone(), thread: self.thread.clone() }
    }
}

impl Drop for Timers {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.clock.forget(self.thread.id());
        self.thread.unpark();
        if let Some(worker) = self.worker.take()
            // A target that owned the last handle drops it on the timer thread itself.
            && worker.thread().id() != thread::current().id()
        {
            let _ = worker.join();
        }
    }
}

impl Timer {
    /// Calls the target once at `deadline` (guest time in ns), instead of at an earlier set
    /// deadline. One that has passed is called at once, but never from within `arm`.
    pub fn arm(&self, deadline: u64) {
        let mut state = self.shared.lock();
        let State { armed, slots, sleeps_until, .. } = &mut *state;
        let Some(slot) = slots.get_mut(&self.id) else { return };
        if let Some(old) = slot.deadline.replace(deadline) {
            armed.remove(&(old, self.id));
        }
        armed.insert((deadline, self.id));
        if sleeps_until.is_some_and(|until| deadline < until) {
            *sleeps_until = None;
            drop(state);
            self.thread.unpark();
        }
    }

    /// Forgets the deadline, if one is set.
    pub fn disarm(&self) {
        let mut state = self.shared.lock();
        if let Some(old) = state.slots.get_mut(&self.id).and_then(|s| s.deadline.take()) {
            state.armed.remove(&(old, self.id));
        }
    }

    /// The deadline that is set.
    pub fn deadline(&self) -> Option<u64> {
        self.shared.lock().slots.get(&self.id).and_then(|s| s.deadline)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.disarm();
        let slot = self.shared.lock().slots.remove(&self.id);
        // Outside the lock, for the drop of a target's last weak reference may run foreign code.
        drop(slot);
    }
}

/// The timer thread.
fn run(shared: &Shared) {
    // By default Linux lets a sleep end 50 us late to save power (prctl(2), PR_SET_TIMERSLACK).
    if let Err(e) = rustix::thread::set_current_timer_slack(1.try_into().ok()) {
        tracing::debug!("timers will be up to 50 us late: {e}");
    }
    loop {
        let mut state = shared.lock();
        if state.stop {
            return;
        }
        let first = state.armed.first().copied();
        let Some(now) = shared.clock.running_now() else {
            state.sleeps_until = None;
            drop(state);
            thread::park(); // until the clock resumes
            continue;
        };
        match first {
            Some((deadline, id)) if deadline <= now => {
                state.sleeps_until = None;
                state.armed.pop_first();
                let target = state.slots.get_mut(&id).and_then(|slot| {
                    slot.deadline = None;
                    slot.target.upgrade()
                });
                drop(state);
                if let Some(target) = target {
                    expire(&*target, deadline);
                }
            }
            Some((deadline, _)) => {
                state.sleeps_until = Some(deadline);
                drop(state);
                thread::park_timeout(sleep_for(deadline - now));
            }
            None => {
                state.sleeps_until = Some(u64::MAX);
                drop(state);
                thread::park();
            }
        }
    }
}

/// Calls a target. One that panics is out of order, but must not stop all other clocks.
fn expire(target: &dyn TimerTarget, deadline: u64) {
    if catch_unwind(AssertUnwindSafe(|| target.expired(deadline))).is_err() {
        tracing::error!(
            "a device panicked when its timer expired, which is a mistake in Lodge; please report \
             the message on standard error"
        );
    }
}

/// How long to sleep when a deadline is `left` ns away. The sleep is measured by
/// CLOCK_MONOTONIC, which NTP may slew against the guest's clock by up to 500 ppm
/// (adjtimex(2)): long sleeps end a little early and the rest is slept again.
fn sleep_for(left: u64) -> Duration {
    const EXACT: u64 = 10_000_000;
    Duration::from_nanos(if left > EXACT { left - left / 1024 } else { left })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    type Reports = mpsc::Receiver<(u64, u64)>;

    struct Report {
        clock: Arc<Clock>,
        to: Mutex<mpsc::Sender<(u64, u64)>>,
    }

    impl TimerTarget for Report {
        fn expired(&self, deadline: u64) {
            let _ = self.to.lock().unwrap().send((deadline, self.clock.now()));
        }
    }

    const MS: u64 = 1_000_000;

    fn setup() -> (Arc<Clock>, Timers, Arc<Report>, Reports) {
        let clock = Arc::new(Clock::new());
        let timers = Timers::new(clock.clone()).unwrap();
        let (to, from) = mpsc::channel();
        let report = Arc::new(Report { clock: clock.clone(), to: Mutex::new(to) });
        (clock, timers, report, from)
    }

    fn weak(report: &Arc<Report>) -> Weak<dyn TimerTarget> {
        let report: Arc<dyn TimerTarget> = report.clone();
        Arc::downgrade(&report)
    }

    /// How long anything may take on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(120);

    fn next(from: &Reports) -> Option<(u64, u64)> {
        from.recv_timeout(PATIENCE).ok()
    }

    fn nothing_for(from: &Reports, ms: u64) -> bool {
        from.recv_timeout(Duration::from_millis(ms)).is_err()
    }

    #[test]
    fn timers_expire_in_order_and_not_early() {
        let (clock, timers, report, from) = setup();
        let (a, b, c) =
            (timers.timer(weak(&report)), timers.timer(weak(&report)), timers.timer(weak(&report)));
        let start = clock.now();
        a.arm(start + 900 * MS);
        b.arm(start + 300 * MS); // sooner than what the thread sleeps for
        c.arm(start + 600 * MS);
        for want in [300, 600, 900].map(|ms| start + ms * MS) {
            let (deadline, at) = next(&from).unwrap();
            assert_eq!(deadline, want);
            assert!(at >= deadline);
        }
        assert_eq!(a.deadline(), None);
        a.arm(0); // long past
        assert_eq!(next(&from).unwrap().0, 0);
    }

    #[test]
    fn rearming_replaces_and_disarming_forgets() {
        let (clock, timers, report, from) = setup();
        let (a, b) = (timers.timer(weak(&report)), timers.timer(weak(&report)));
        // However slow this thread is, nothing expires before it is done.
        clock.pause();
        let start = clock.now();
        a.arm(start + 20 * MS);
        a.arm(start + 40 * MS);
        assert_eq!(a.deadline(), Some(start + 40 * MS));
        b.arm(start + 30 * MS);
        b.disarm();
        b.disarm();
        clock.resume();
        assert_eq!(next(&from).unwrap().0, start + 40 * MS);
        clock.pause();
        b.arm(clock.now() + 20 * MS);
        drop(b);
        clock.resume();
        assert!(nothing_for(&from, 40));
    }

    #[test]
    fn nothing_expires_while_the_clock_stands_still() {
        let (clock, timers, report, from) = setup();
        let timer = timers.timer(weak(&report));
        timer.arm(clock.now() + 500 * MS);
        clock.pause();
        assert!(nothing_for(&from, 600));
        let other = timers.timer(weak(&report));
        other.arm(clock.now() + 700 * MS);
        clock.resume();
        let (first, at) = next(&from).unwrap();
        assert!(at >= first);
        let (second, at) = next(&from).unwrap();
        assert!(first < second && at >= second);
    }

    #[test]
    fn a_dead_target_is_not_called_and_the_thread_ends() {
        let (_clock, timers, report, from) = setup();
        let timer = timers.timer(weak(&report));
        drop(report);
        timer.arm(0);
        let weak = Arc::downgrade(&timers.shared);
        drop(timers); // joins
        assert!(from.recv().is_err());
        timer.arm(0); // harmless
        drop(timer);
        assert!(weak.upgrade().is_none());
    }

    #[test]
    fn a_locked_device_may_rearm_from_its_own_expiry() {
        struct Ticker {
            timer: Timer,
            ticks: Vec<u64>,
            done: mpsc::Sender<Vec<u64>>,
        }
        impl Expire for Ticker {
            fn expired(&mut self, deadline: u64) {
                self.ticks.push(deadline);
                if self.ticks.len() == 100 {
                    let _ = self.done.send(std::mem::take(&mut self.ticks));
                } else {
                    self.timer.arm(deadline + 100_000);
                }
            }
        }
        let (clock, timers, _, _) = setup();
        let (done, from) = mpsc::channel();
        let ticker = Arc::new_cyclic(|me: &Weak<Mutex<Ticker>>| {
            Mutex::new(Ticker { timer: timers.timer(me.clone()), ticks: Vec::new(), done })
        });
        let start = clock.now();
        ticker.lock().unwrap().timer.arm(start);
        let ticks = from.recv_timeout(PATIENCE).unwrap();
        assert_eq!(ticks, (0..100).map(|n| start + n * 100_000).collect::<Vec<_>>());
        assert!(clock.now() >= start + 99 * 100_000);
    }

    #[test]
    fn a_target_that_panics_does_not_stop_the_others() {
        struct Mistake;
        impl TimerTarget for Mistake {
            fn expired(&self, _: u64) {
                panic!("a mistake, made by this test");
            }
        }
        let (_clock, timers, report, from) = setup();
        let mistake: Arc<dyn TimerTarget> = Arc::new(Mistake);
        let (a, b) = (timers.timer(Arc::downgrade(&mistake)), timers.timer(weak(&report)));
        a.arm(0);
        b.arm(1);
        assert_eq!(next(&from).unwrap().0, 1);
    }

    #[test]
    fn long_sleeps_end_before_the_deadline_and_short_ones_at_it() {
        assert_eq!(sleep_for(5 * MS), Duration::from_millis(5));
        assert!(sleep_for(1000 * MS) < Duration::from_nanos(1000 * MS - 1000 * MS / 2000));
        assert!(sleep_for(u64::MAX) > Duration::from_secs(1 << 33));
    }
}
