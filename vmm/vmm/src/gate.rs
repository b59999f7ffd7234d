//! Where processors' threads wait while the guest is paused.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A gate that all threads of a machine's processors pass between two stretches of guest code.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// Threads that neither wait at the gate nor have ended.
    running: usize,
}

/// A thread that may run guest code. Dropped, it never will again.
#[derive(Debug)]
pub struct Runner<'a>(&'a Gate);

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more thread: before it is started, so that none is overlooked.
    pub fn expect(&self) {
        self.state().running += 1;
    }

    /// The calling thread is the one that was [expected](Gate::expect).
    pub fn runner(&self) -> Runner<'_> {
        Runner(self)
    }

    /// Closes the gate, has every thread come to it by `kick`, and waits until all are there, at
    /// most for `patience`. If they are not, the gate is opened again, and the answer is false.
    pub fn close(&self, kick: impl FnOnce(), patience: Duration) -> bool {
        self.state().closed = true;
        kick();
        let (state, _) = self
            .changed
            .wait_timeout_while(self.state(), patience, |state| state.running > 0)
            .unwrap_or_else(PoisonError::into_inner);
        let all_wait = state.running == 0;
        drop(state);
        if !all_wait {
            self.open();
        }
        all_wait
    }

    /// Lets all threads pass.
    pub fn open(&self) {
        self.state().closed = false;
        self.changed.notify_all();
    }
}

impl Runner<'_> {
    /// Waits while the gate is closed; `before` and `after` are called if so.
    pub fn pass(&self, before: impl FnOnce(), after: impl FnOnce()) {
        let Gate { changed, .. } = self.0;
        let mut state = self.0.state();
        if !state.closed {
            return;
        }
        before();
        state.running -= 1;
        changed.notify_all();
        state =
            changed.wait_while(state, |state| state.closed).unwrap_or_else(PoisonError::into_inner);
        state.running += 1;
        drop(state);
        after();
    }
}

impl Drop for Runner<'_> {
    fn drop(&mut self) {
        self.0.state().running -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;

    #[test]
    fn nobody_runs_while_the_gate_is_closed() {
        const PATIENCE: Duration = Duration::from_secs(60);
        let (gate, stop) = (Gate::default(), AtomicBool::new(false));
        let rounds = [const { AtomicU64::new(0) }; 3];
        thread::scope(|scope| {
            for round in &rounds {
                gate.expect();
                scope.spawn(|| {
                    let runner = gate.runner();
                    while !stop.load(Ordering::SeqCst) {
                        runner.pass(|| {}, || {});
                        round.fetch_add(1, Ordering::SeqCst);
                        thread::yield_now();
                    }
                });
            }
            let seen = || rounds.each_ref().map(|round| round.load(Ordering::SeqCst));
            for _ in 0..20 {
                assert!(gate.close(|| {}, PATIENCE));
                let before = seen();
                thread::sleep(Duration::from_millis(2));
                assert_eq!(seen(), before);
                gate.open();
                while seen().iter().zip(before).any(|(now, before)| *now == before) {
                    thread::yield_now();
                }
            }
            stop.store(true, Ordering::SeqCst);
        });
        assert!(gate.close(|| {}, PATIENCE), "threads that have ended are not waited for");
    }

    #[test]
    fn a_thread_that_does_not_come_is_not_waited_for_for_ever() {
        let gate = Gate::default();
        gate.expect();
        let runner = gate.runner();
        assert!(!gate.close(|| {}, Duration::from_millis(5)));
        runner.pass(|| panic!("it is open again"), || {});
    }
}
