//! What processors count, brought from their threads to whoever asks.
//!
//! A processor's thread alone can look at its counters, and not while the guest runs. So who asks
//! kicks it, as to stop it, and waits; the thread leaves its numbers here and goes on. That a guest
//! could be asked costs it nothing until it is.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use accel::{Kicker, Statistics};
use rustix::time::{ClockId, clock_gettime};
use vmm_api::{PROCESSOR_TIME_NS, ProcessorStatistics};

/// How long all processors together may take to answer. One that waits for a device, or that the
/// host has no time for, does so later, and what it said last must do.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where one processor's thread leaves its numbers.
pub struct Meter {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// `None` once the thread has ended.
    kicker: Option<Kicker>,
    /// How often the processor was asked, and which of these it answered last.
    asked: u64,
    answered: u64,
    /// The processor stands still, and its numbers with it.
    rests: bool,
    statistics: Statistics,
    time_ns: u64,
}

impl Meter {
    /// For the processor that this kicks.
    pub fn new(kicker: Kicker) -> Self {
        let state = State {
            kicker: Some(kicker),
            asked: 0,
            answered: 0,
            rests: false,
            statistics: Statistics::default(),
            time_ns: 0,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the numbers here, if they were asked for. To be called by the processor's thread
    /// each time it was kicked.
    pub fn answer(&self, statistics: impl FnOnce() -> Statistics) {
        let mut state = self.state();
        if state.answered != state.asked {
            state.statistics = statistics();
            state.time_ns = thread_time_ns();
            state.answered = state.asked;
            self.changed.notify_all();
        }
    }

    /// Leaves the numbers here for as long as the processor stands still. To be called by the
    /// processor's thread, which need not look here until [`Meter::go_on`].
    pub fn rest(&self, statistics: Statistics) {
        let mut state = self.state();
        state.statistics = statistics;
        state.time_ns = thread_time_ns();
        state.answered = state.asked;
        state.rests = true;
        self.changed.notify_all();
    }

    /// The processor runs again.
    pub fn go_on(&self) {
        self.state().rests = false;
    }

    /// Leaves the last numbers here. To be called by the processor's thread when it ends.
    pub fn end(&self, statistics: Option<Statistics>) {
        let mut state = self.state();
        if let Some(statistics) = statistics {
            state.statistics = statistics;
            state.time_ns = thread_time_ns();
        }
        state.kicker = None;
        self.changed.notify_all();
    }

    /// Asks the processor. Returns which answer to wait for.
    fn ask(&self) -> u64 {
        let mut state = self.state();
        if let Some(kicker) = state.kicker.as_ref().filter(|_| !state.rests) {
            // The thread looks here after the kick.
            let kicker = kicker.clone();
            state.asked += 1;
            let wanted = state.asked;
            drop(state);
            kicker.kick();
            return wanted;
        }
        state.answered
    }

    /// Waits for that answer, or for want of it takes the last.
    fn wait(&self, wanted: u64, deadline: Instant) -> ProcessorStatistics {
        let patience = deadline.saturating_duration_since(Instant::now());
        let is_awaited = |state: &mut State| state.answered < wanted && state.kicker.is_some();
        let (state, _) = self
            .changed
            .wait_timeout_while(self.state(), patience, is_awaited)
            .unwrap_or_else(PoisonError::into_inner);
        let named = |numbers: &[(&str, u64)]| {
            numbers.iter().map(|&(name, number)| (name.to_owned(), number)).collect()
        };
        let mut processor = ProcessorStatistics {
            current: state.answered >= wanted || state.kicker.is_none(),
            counts: named(&state.statistics.counts),
            levels: named(&state.statistics.levels),
        };
        processor.counts.insert(PROCESSOR_TIME_NS.to_owned(), state.time_ns);
        processor
    }
}

/// Asks all processors at once and waits for their answers.
pub fn ask_all(meters: &[Arc<Meter>]) -> Vec<ProcessorStatistics> {
    let deadline = Instant::now() + PATIENCE;
    let wanted: Vec<u64> = meters.iter().map(|meter| meter.ask()).collect();
    meters.iter().zip(wanted).map(|(meter, wanted)| meter.wait(wanted, deadline)).collect()
}

/// For how long the calling thread has had a processor.
fn thread_time_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    fn counted(number: u64) -> Statistics {
        Statistics { counts: vec![("entries", number)], levels: vec![("code_bytes", 7)] }
    }

    #[test]
    fn a_processor_that_is_kicked_answers() {
        let (kick, kicked) = mpsc::channel();
        let (done, is_done) = mpsc::channel();
        let meter = Arc::new(Meter::new(Kicker::new(move || kick.send(()).unwrap())));
        let processor = thread::spawn({
            let meter = meter.clone();
            move || {
                let mut number = 0;
                while kicked.recv().is_ok() {
                    number += 1;
                    meter.answer(|| counted(number));
                    meter.answer(|| panic!("nobody asked again"));
                    done.send(()).unwrap();
                }
                meter.end(Some(counted(100)));
            }
        });
        for number in 1..4 {
            let [answer] = &ask_all(std::slice::from_ref(&meter))[..] else { panic!("one") };
            is_done.recv().unwrap();
            assert!(answer.current);
            assert_eq!(answer.counts["entries"], number);
            assert_eq!(answer.levels["code_bytes"], 7);
            assert!(answer.counts[PROCESSOR_TIME_NS] > 0);
        }
        meter.state().kicker = None;
        processor.join().unwrap();
        let [last] = &ask_all(&[meter])[..] else { panic!("one") };
        assert!(last.current && last.counts["entries"] == 100, "{last:?}");
    }

    #[test]
    fn a_processor_that_does_not_come_is_not_waited_for_for_ever() {
        let meter = Arc::new(Meter::new(Kicker::new(|| {})));
        let wanted = meter.ask();
        let answer = meter.wait(wanted, Instant::now() + Duration::from_millis(5));
        assert!(!answer.current);
        meter.answer(|| counted(1));
        assert!(meter.wait(wanted, Instant::now()).current);
        // One that stands still is not asked.
        meter.rest(counted(2));
        let wanted = meter.ask();
        let answer = meter.wait(wanted, Instant::now());
        assert!(answer.current && answer.counts["entries"] == 2);
        meter.go_on();
        let wanted = meter.ask();
        assert!(!meter.wait(wanted, Instant::now()).current);
        // A thread that panics leaves what it said last.
        meter.end(None);
        assert_eq!(ask_all(&[meter])[0].counts["entries"], 2);
    }
}
