//! What clients of the API want done, on its way to the thread that drives the machine.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use vmm_api::{DetachRequest, Device, Failure};

use crate::hotplug::Attachment;

/// Orders that wait at most; those who come then are refused.
const MAX_WAITING: usize = 64;

/// Something to be done with the machine.
#[derive(Clone, Debug)]
pub enum Command {
    /// Have processors, devices and time stand still.
    Pause,
    /// Have them go on.
    Resume,
    /// Press the power button.
    PressPowerButton,
    /// Reset the machine, as its reset button would.
    Reset,
    /// Give the guest a device.
    Attach(Arc<Attachment>),
    /// Take a device from the guest.
    Detach(DetachRequest),
    /// Keep the guest as it is now.
    Snapshot {
        /// The name that it is to have.
        name: String,
    },
    /// End the guest: by its power button, and after so long without being asked.
    Stop {
        /// How long it may take to switch itself off.
        patience: Duration,
    },
}

/// What has become of an order. A [configuration](vmm_api::FailureKind::Configuration) failure
/// says that it cannot be done now. The value is the device, where one was attached.
pub type Outcome = Result<Option<Device>, Failure>;

/// A command, and who waits for its outcome.
#[derive(Debug)]
pub struct Order {
    /// What is to be done.
    pub command: Command,
    reply: oneshot::Sender<Outcome>,
}

impl Order {
    /// Tells what has become of it.
    pub fn answer(self, outcome: Outcome) {
        // Who asked may be gone.
        let _ = self.reply.send(outcome);
    }
}

/// The orders that wait. Any thread may give one.
#[derive(Debug)]
pub struct Orders {
    waiting: Mutex<VecDeque<Order>>,
    event: runtime::Event,
}

impl Orders {
    /// No orders.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { waiting: Mutex::default(), event: runtime::Event::new()? }))
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Order>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an order. The outcome comes by what is returned; `None`: too many wait.
    pub fn give(&self, command: Command) -> Option<oneshot::Receiver<Outcome>> {
        let (reply, outcome) = oneshot::channel();
        let mut waiting = self.waiting();
        if waiting.len() >= MAX_WAITING {
            return None;
        }
        waiting.push_back(Order { command, reply });
        self.event.signal();
        Some(outcome)
    }

    /// Takes the next order.
    pub fn take(&self) -> Option<Order> {
        self.event.clear();
        let mut waiting = self.waiting();
        let order = waiting.pop_front();
        if !waiting.is_empty() {
            self.event.signal();
        }
        order
    }
}

/// Readable when [`Orders::take`] has something.
impl AsFd for Orders {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_come_in_their_order_and_are_answered() {
        let orders = Orders::new().unwrap();
        let first = orders.give(Command::Pause).unwrap();
        let second = orders.give(Command::Resume).unwrap();
        let order = orders.take().unwrap();
        assert!(matches!(order.command, Command::Pause));
        order.answer(Ok(None));
        assert_eq!(first.blocking_recv().unwrap(), Ok(None));
        drop(second);
        orders.take().unwrap().answer(Err(Failure::internal("nobody hears this")));
        assert!(orders.take().is_none());
    }

    #[test]
    fn orders_do_not_pile_up() {
        let orders = Orders::new().unwrap();
        let given: Vec<_> = (0..MAX_WAITING).map(|_| orders.give(Command::Pause)).collect();
        assert!(given.iter().all(Option::is_some));
        assert!(orders.give(Command::Pause).is_none());
    }
}
