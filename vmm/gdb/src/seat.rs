//! Where one processor's thread and the debugger meet.
//!
//! State belongs to the processor's thread. So who wants it kicks the processor, the thread comes here
//! and stays as long as it is wanted, and does what it is asked for.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use accel::{DebugControl, DebugStop, Fault, Kicker, Vcpu};
use runtime::Event;

/// How often a thread that is held looks whether its owner wants something else.
const GLANCE: Duration = Duration::from_millis(20);

type Task = Box<dyn FnOnce(&mut dyn Vcpu) -> Result<(), Fault> + Send>;

/// Where one processor's thread and the debugger meet.
pub struct Seat {
    kicker: Kicker,
    /// Tells the debugger that something is new at one of the seats.
    news: Arc<Event>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The thread is to stay here.
    is_wanted: bool,
    /// It is here.
    is_here: bool,
    /// It has ended, and never comes again.
    has_ended: bool,
    tasks: VecDeque<Task>,
    stop: Option<DebugStop>,
}

impl Seat {
    /// For the processor that `kicker` kicks, which is held from its start if `is_wanted`.
    pub(crate) fn new(kicker: Kicker, news: Arc<Event>, is_wanted: bool) -> Self {
        let state = State { is_wanted, ..State::default() };
        Self { kicker, news, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- The processor's thread -------------------------------------------------------------

    /// To be called before each run of the processor: returns true once it may run. `go_on` is asked
    /// now and then while the processor is held; if it says no, this returns false.
    ///
    /// # Errors
    ///
    /// The accelerator's, when it cannot do what the debugger wants.
    pub fn pass(
        &self,
        vcpu: &mut dyn Vcpu,
        mut go_on: impl FnMut(&mut dyn Vcpu) -> bool,
    ) -> Result<bool, Fault> {
        let mut state = self.state();
        loop {
            if let Some(task) = state.tasks.pop_front() {
                drop(state);
                task(vcpu)?;
                state = self.state();
            } else if !state.is_wanted {
                state.is_here = false;
                return Ok(true);
            } else {
                if !state.is_here {
                    state.is_here = true;
                    self.changed.notify_all();
                    self.news.signal();
                }
                let waited = self.changed.wait_timeout(state, GLANCE);
                let (again, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                state = again;
                if timeout.timed_out() {
                    drop(state);
                    if !go_on(vcpu) {
                        return Ok(false);
                    }
                    state = self.state();
                }
            }
        }
    }

    /// The processor stopped for the debugger: it is held from now on.
    pub fn stopped(&self, stop: DebugStop) {
        let mut state = self.state();
        state.stop = Some(stop);
        state.is_wanted = true;
    }

    /// The processor's thread ends.
    pub fn end(&self) {
        let mut state = self.state();
        state.has_ended = true;
        // Who waits for an answer is told by the end of its channel.
        state.tasks.clear();
        drop(state);
        self.changed.notify_all();
        self.news.signal();
    }

    // --- The debugger -----------------------------------------------------------------------

    /// Has the thread come here, soon.
    pub(crate) fn call(&self) {
        self.state().is_wanted = true;
        self.kicker.kick();
    }

    /// Waits until it is here. `false` if it will never come.
    pub(crate) fn await_here(&self) -> bool {
        let is_away = |state: &mut State| !state.is_here && !state.has_ended;
        let state = self.changed.wait_while(self.state(), is_away);
        !state.unwrap_or_else(PoisonError::into_inner).has_ended
    }

    /// Has the thread do something with its processor, and waits for the outcome. It should be here; but GDB may
    /// ask while the guest runs, if Ctrl-C came just when it let it go on, and then the thread comes by.
    /// `None` if it ended, or could not.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut dyn Vcpu) -> Result<T, Fault> + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = mpsc::channel();
        let mut state = self.state();
        if state.has_ended {
            return None;
        }
        state.tasks.push_back(Box::new(move |vcpu| {
            // If nobody waits any longer, nobody wants to know.
            let _ = answer.send(question(vcpu)?);
            Ok(())
        }));
        let is_here = state.is_here;
        drop(state);
        if !is_here {
            self.kicker.kick();
        }
        self.changed.notify_all();
        answered.recv().ok()
    }

    /// Lets the thread, which is here, go; its processor stops where `control` says.
    pub(crate) fn release(&self, control: DebugControl) {
        let mut state = self.state();
        state.stop = None;
        state.is_wanted = false;
        state.tasks.push_back(Box::new(move |vcpu| vcpu.set_debug(&control)));
        drop(state);
        self.changed.notify_all();
    }

    /// Why the processor stopped, if it did, once.
    pub(crate) fn take_stop(&self) -> Option<DebugStop> {
        self.state().stop.take()
    }

    /// The thread will never come again.
    pub(crate) fn has_ended(&self) -> bool {
        self.state().has_ended
    }
}
