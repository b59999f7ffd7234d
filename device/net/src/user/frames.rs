//! The two queues of frames between a guest's card and the network's thread. Frames change
//! hands in batches: one lock and at most one wake-up for many of them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io;

/// How much a queue holds when the MTU is small; a larger MTU gets [`FRAMES`] frames' worth.
const MIN_LIMIT: usize = 1 << 20;

/// How many frames of full length a queue holds at least.
const FRAMES: usize = 32;

/// The bytes that a queue may hold on a network with `mtu`.
fn limit(mtu: usize) -> usize {
    MIN_LIMIT.max(FRAMES * mtu)
}

/// A poisoned lock guards nothing worse than frames that were cut short.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An eventfd: a file descriptor that is readable from [`Signal::raise`] to [`Signal::clear`].
#[derive(Debug)]
pub struct Signal(OwnedFd);

impl Signal {
    /// A signal that is not raised.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes the descriptor readable.
    pub fn raise(&self) {
        // Fails only when the counter is full, and then it is raised already.
        let _ = io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Makes the descriptor unreadable.
    pub fn clear(&self) {
        // Fails only when the signal is not raised.
        let _ = io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Frames in one buffer, each behind its length.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    read: usize,
}

impl Batch {
    const PREFIX: usize = size_of::<u32>();

    /// Whether no frame is left.
    pub fn is_empty(&self) -> bool {
        self.read >= self.bytes.len()
    }

    /// The bytes of the frames that are left.
    pub fn size(&self) -> usize {
        self.bytes.len().saturating_sub(self.read)
    }

    /// Appends a frame of `len` bytes, which `fill` writes over zeros.
    pub fn push_with(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) {
        let Ok(prefix) = u32::try_from(len) else { return };
        self.bytes.extend_from_slice(&prefix.to_ne_bytes());
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        if let Some(frame) = self.bytes.get_mut(start..) {
            fill(frame);
        }
    }

    /// Appends a frame.
    pub fn push(&mut self, frame: &[u8]) {
        let Ok(prefix) = u32::try_from(frame.len()) else { return };
        self.bytes.extend_from_slice(&prefix.to_ne_bytes());
        self.bytes.extend_from_slice(frame);
    }

    /// Takes the first frame.
    pub fn pop(&mut self) -> Option<&[u8]> {
        let rest = self.bytes.get(self.read..)?;
        let (prefix, rest) = rest.split_first_chunk::<{ Self::PREFIX }>()?;
        let len = u32::from_ne_bytes(*prefix) as usize;
        self.read += Self::PREFIX + len;
        rest.get(..len)
    }

    /// Moves all frames of `other` to the end of this batch.
    fn take(&mut self, other: &mut Self) {
        if self.is_empty() {
            std::mem::swap(self, other);
        } else {
            self.bytes.extend_from_slice(other.bytes.get(other.read..).unwrap_or_default());
        }
        other.clear();
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.read = 0;
    }
}

/// Frames from the guest. Any thread puts them in, the network's thread takes them out.
#[derive(Debug)]
pub struct Inbox {
    state: Mutex<InboxState>,
    limit: usize,
    wake: Arc<Signal>,
}

#[derive(Debug, Default)]
struct InboxState {
    batch: Batch,
    /// The network's thread sleeps, or is about to, and wants to be woken.
    sleeping: bool,
}

impl Inbox {
    /// An inbox whose reader waits on `wake`.
    pub fn new(mtu: usize, wake: Arc<Signal>) -> Self {
        Self { state: Mutex::default(), limit: limit(mtu), wake }
    }

    /// Puts a frame in, if there is room.
    pub fn put(&self, frame: &[u8]) -> bool {
        let mut state = lock(&self.state);
        if state.batch.size() + frame.len() > self.limit {
            return false;
        }
        state.batch.push(frame);
        if std::mem::take(&mut state.sleeping) {
            drop(state);
            self.wake.raise();
        }
        true
    }

    /// Takes all frames into `batch`, which must be empty.
    pub fn take(&self, batch: &mut Batch) {
        let mut state = lock(&self.state);
        state.sleeping = false;
        batch.clear();
        std::mem::swap(&mut state.batch, batch);
    }

    /// Asks to be woken at the next frame. Returns false if frames are waiting already.
    pub fn sleep(&self) -> bool {
        let mut state = lock(&self.state);
        state.sleeping = state.batch.is_empty();
        state.sleeping
    }
}

/// Frames for the guest. The network's thread puts them in, any one thread takes them out.
#[derive(Debug)]
pub struct Outbox {
    /// Where the network's thread leaves batches.
    shared: Mutex<Batch>,
    /// What the reader is reading.
    reading: Mutex<Batch>,
    /// The bytes in both.
    queued: AtomicUsize,
    limit: usize,
    readable: Signal,
    /// The network's thread found no room and waits for some.
    starved: AtomicBool,
    wake: Arc<Signal>,
}

impl Outbox {
    /// An outbox that raises `wake` when a starved writer finds room again.
    pub fn new(mtu: usize, wake: Arc<Signal>) -> io::Result<Self> {
        Ok(Self {
            shared: Mutex::default(),
            reading: Mutex::default(),
            queued: AtomicUsize::new(0),
            limit: limit(mtu),
            readable: Signal::new()?,
            starved: AtomicBool::new(false),
            wake,
        })
    }

    /// Puts the staged frames in, whatever the room.
    pub fn put(&self, staged: &mut Batch) {
        if staged.is_empty() {
            return;
        }
        let mut shared = lock(&self.shared);
        self.queued.fetch_add(staged.size(), Ordering::SeqCst);
        let was_empty = shared.is_empty();
        shared.take(staged);
        // Under the lock, or a reader that finds nothing could clear the signal after this.
        if was_empty {
            self.readable.raise();
        }
    }

    /// Whether there is anything to read.
    pub fn has_frames(&self) -> bool {
        self.queued.load(Ordering::SeqCst) > 0
    }

    /// Whether `staged` more bytes fit. If not, the writer is woken when there is room again.
    pub fn has_room(&self, staged: usize) -> bool {
        let fits = || self.queued.load(Ordering::SeqCst) + staged <= self.limit;
        if fits() {
            return true;
        }
        self.starved.store(true, Ordering::SeqCst);
        // The reader may have made room before it could see the flag.
        fits()
    }

    /// Whether `staged` more bytes go beyond any use: twice the room there is.
    pub fn is_overfull(&self, staged: usize) -> bool {
        self.queued.load(Ordering::Relaxed) + staged > 2 * self.limit
    }

    /// Takes the next frame into `buffer` and returns its length. Frames longer than the buffer
    /// are dropped.
    pub fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        let mut reading = lock(&self.reading);
        loop {
            let before = reading.size();
            if let Some(frame) = reading.pop() {
                let len = frame.len();
                let taken = buffer.get_mut(..len).map(|buffer| buffer.copy_from_slice(frame));
                self.release(before - reading.size());
                if taken.is_some() {
                    return Some(len);
                }
                continue;
            }
            let mut shared = lock(&self.shared);
            if shared.is_empty() {
                self.readable.clear();
                return None;
            }
            reading.take(&mut shared);
        }
    }

    fn release(&self, bytes: usize) {
        let left = self.queued.fetch_sub(bytes, Ordering::SeqCst).saturating_sub(bytes);
        if left <= self.limit / 2 && self.starved.swap(false, Ordering::SeqCst) {
            self.wake.raise();
        }
    }

    /// Readable while frames may be waiting.
    pub fn readable(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn raised(fd: BorrowedFd<'_>) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&now)).unwrap() == 1
    }

    #[test]
    fn the_outbox_is_readable_while_it_has_frames() {
        let outbox = Outbox::new(1500, Arc::new(Signal::new().unwrap())).unwrap();
        let mut buffer = [0; 64];
        assert!(!raised(outbox.readable()));
        let mut staged = Batch::default();
        staged.push(b"one");
        staged.push(b"two");
        outbox.put(&mut staged);
        staged.push(b"three");
        outbox.put(&mut staged);
        for frame in [&b"one"[..], b"two", b"three"] {
            assert!(raised(outbox.readable()));
            let len = outbox.receive(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], frame);
        }
        assert_eq!(outbox.receive(&mut buffer), None);
        assert!(!raised(outbox.readable()));
    }

    #[test]
    fn a_frame_longer_than_the_buffer_is_dropped() {
        let outbox = Outbox::new(1500, Arc::new(Signal::new().unwrap())).unwrap();
        let mut staged = Batch::default();
        staged.push(&[0; 65]);
        staged.push(b"short");
        outbox.put(&mut staged);
        assert_eq!(outbox.receive(&mut [0; 64]), Some(5));
        assert_eq!(outbox.receive(&mut [0; 64]), None);
        assert!(outbox.has_room(outbox.limit));
    }

    #[test]
    fn a_starved_writer_is_woken_when_half_is_read() {
        let wake = Arc::new(Signal::new().unwrap());
        let outbox = Outbox::new(1500, Arc::clone(&wake)).unwrap();
        let mut staged = Batch::default();
        let mut frames = 0;
        while outbox.has_room(staged.size() + 1500) {
            staged.push(&[0; 1500]);
            frames += 1;
        }
        outbox.put(&mut staged);
        assert!(!outbox.has_room(1500));
        let mut buffer = [0; 1500];
        for _ in 0..frames / 2 - 2 {
            outbox.receive(&mut buffer).unwrap();
        }
        assert!(!raised(wake.as_fd()));
        for _ in 0..4 {
            outbox.receive(&mut buffer).unwrap();
        }
        assert!(raised(wake.as_fd()));
        assert!(outbox.has_room(1500));
    }

    #[test]
    fn the_inbox_wakes_only_a_sleeper_and_drops_what_does_not_fit() {
        let wake = Arc::new(Signal::new().unwrap());
        let inbox = Inbox::new(1500, Arc::clone(&wake));
        inbox.put(b"frame");
        assert!(!raised(wake.as_fd()));
        assert!(!inbox.sleep());
        let mut batch = Batch::default();
        inbox.take(&mut batch);
        assert_eq!(batch.pop(), Some(&b"frame"[..]));
        assert!(inbox.sleep());
        for _ in 0..10_000 {
            inbox.put(&[0; 1500]);
        }
        assert!(raised(wake.as_fd()));
        inbox.take(&mut batch);
        assert!(batch.size() <= MIN_LIMIT + 1500);
        assert!(batch.size() > MIN_LIMIT / 2);
    }
}
