//! The thread that serves a queue while it runs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mem::GuestMemory;
use runtime::Event;
use runtime::thread::{Role, spawn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use virtio_queue::{Queue, QueueState};

use crate::queue::{QueueError, VirtQueue};
use crate::shared::Shared;

/// What serves a queue. It lives as long as the queue runs and leaves no state behind.
pub trait QueueTask: Send {
    /// Does what there is to do and returns what to wait for. Called first when the queue starts
    /// and then after each wake-up. It must return soon once [`VirtQueue::stopping`] is true; an
    /// error breaks the device.
    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Wake, QueueError>;

    /// A back end that can have news of its own, readable while it does.
    fn source(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// What it may need of the host.
    fn role(&self) -> Role {
        Role::Queue
    }
}

/// What wakes a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The driver rings.
    Doorbell,
    /// The driver rings, or [`QueueTask::source`] is readable.
    DoorbellOrSource,
    /// So much time has passed.
    After(Duration),
}

/// A running queue, seen from the device.
pub(crate) struct Worker {
    stop: Arc<AtomicBool>,
    doorbell: Arc<Event>,
    thread: JoinHandle<QueueState>,
}

impl Worker {
    /// Sends a queue out to be served by `task`.
    pub fn start(
        queue: Queue,
        index: usize,
        memory: &GuestMemory,
        doorbell: &Arc<Event>,
        shared: &Arc<Shared>,
        task: Box<dyn QueueTask>,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let queue = VirtQueue::new(queue, memory.clone(), shared.clone(), index, stop.clone());
        let thread = spawn(task.role(), format!("virtqueue {index}"), {
            let (doorbell, shared) = (doorbell.clone(), shared.clone());
            move || {
                let _alarm = Alarm { shared: &shared, index };
                run(queue, &doorbell, task)
            }
        })?;
        Ok(Self { stop, doorbell: doorbell.clone(), thread })
    }

    /// Calls the queue home. [`Worker::join`] then waits for it.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.doorbell.signal();
    }

    /// Waits for the queue, once the request in hand is done. `None` if the worker panicked.
    pub fn join(self) -> Option<QueueState> {
        self.thread.join().ok()
    }
}

/// Has the guest hear of a worker that panics, which would otherwise just be silent.
struct Alarm<'a> {
    shared: &'a Shared,
    index: usize,
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.break_down(&format_args!("the worker of queue {} panicked", self.index));
        }
    }
}

fn run(mut queue: VirtQueue, doorbell: &Event, mut task: Box<dyn QueueTask>) -> QueueState {
    while !queue.stopping() {
        // Cleared before the queue is looked at, so that no ring goes unnoticed.
        doorbell.clear();
        match task.serve(&mut queue) {
            Ok(_) if queue.stopping() => break,
            Ok(Wake::Doorbell) => wait(doorbell, None, None),
            Ok(Wake::DoorbellOrSource) => wait(doorbell, task.source(), None),
            Ok(Wake::After(time)) => wait(doorbell, None, Some(time)),
            Err(error) => {
                queue.shared().break_down(&error);
                break;
            }
        }
    }
    queue.into_state()
}

/// Waits for the doorbell or the source, but no longer than `time`. May return early.
fn wait(doorbell: &Event, source: Option<BorrowedFd<'_>>, time: Option<Duration>) {
    let bell = PollFd::from_borrowed_fd(doorbell.as_fd(), PollFlags::IN);
    // A longer time only brings the worker back too early.
    let time = time.map(|time| Timespec {
        tv_sec: time.as_secs().min(3600).cast_signed(),
        tv_nsec: time.subsec_nanos().into(),
    });
    let result = match source {
        Some(fd) => poll(&mut [bell, PollFd::from_borrowed_fd(fd, PollFlags::IN)], time.as_ref()),
        None => poll(&mut [bell], time.as_ref()),
    };
    match result {
        Ok(_) | Err(Errno::INTR) => {}
        // Out of kernel memory: no wait is possible, so come back in a little.
        Err(_) => thread::sleep(Duration::from_millis(1)),
    }
}
