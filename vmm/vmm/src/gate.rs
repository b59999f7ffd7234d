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
    /// Threads that wait at the gate.
    waiting: usize,
    /// How many errands there were.
    errands: u64,
    /// How many threads have not done the last one yet.
    undone: usize,
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

    /// Has each of the threads that wait do its errand, and waits until all have. The gate is closed.
    pub fn send_on_errand(&self) {
        let mut state = self.state();
        state.errands += 1;
        state.undone = state.waiting;
        self.changed.notify_all();
        let done = self.changed.wait_while(state, |state| state.undone > 0);
        drop(done.unwrap_or_else(PoisonError::into_inner));
    }

    /// Lets all threads pass.
    pub fn open(&self) {
        self.state().closed = false;
        self.changed.notify_all();
    }
}

impl Runner<'_> {
    /// Waits while the gate is closed; `before` and `after` are called if so, and in between `errand`
    /// each time that the thread is [sent](Gate::send_on_errand), all of them with `owner`.
    pub fn pass<T: ?Sized>(
        &self,
        owner: &mut T,
        before: impl FnOnce(&mut T),
        mut errand: impl FnMut(&mut T),
        after: impl FnOnce(&mut T),
    ) {
        let Gate { changed, .. } = self.0;
        let mut state = self.0.state();
        if !state.closed {
            return;
        }
        before(owner);
        state.running -= 1;
        state.waiting += 1;
        changed.notify_all();
        let mut seen = state.errands;
        loop {
            state = changed
                .wait_while(state, |state| state.closed && state.errands == seen)
                .unwrap_or_else(PoisonError::into_inner);
            if state.errands == seen {
                break;
            }
            seen = state.errands;
            drop(state);
            // A panic is no reason for others to wait.
            let done = Done(self.0);
            errand(owner);
            drop(done);
            state = self.0.state();
        }
        state.waiting -= 1;
        state.running += 1;
        drop(state);
        after(owner);
    }
}

/// An errand is over, in whatever way.
struct Done<'a>(&'a Gate);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.state().undone -= 1;
        self.0.changed.notify_all();
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
        let errands = AtomicU64::new(0);
        let rounds = [const { AtomicU64::new(0) }; 3];
        thread::scope(|scope| {
            for round in &rounds {
                gate.expect();
                scope.spawn(|| {
                    let runner = gate.runner();
                    while !stop.load(Ordering::SeqCst) {
                        let errand = |errands: &mut &AtomicU64| {
                            errands.fetch_add(1, Ordering::SeqCst);
                        };
                        runner.pass(&mut &errands, |_| {}, errand, |_| {});
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
                errands.store(0, Ordering::SeqCst);
                gate.send_on_errand();
                gate.send_on_errand();
                assert_eq!(errands.load(Ordering::SeqCst), 2 * rounds.len() as u64);
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
        runner.pass(&mut (), |_| panic!("it is open again"), |_| {}, |_| {});
    }
}
