//! The thread that moves bytes between a ring and a port.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use runtime::Event;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::port::{Port, Reader};
use crate::ring::Ring;
use crate::{FrontEnd, GRACE};

/// At most so much is moved at once. POLLOUT promises a pipe room for PIPE_BUF (4096) bytes, so a
/// write of this size does not block (pipe(7)).
const CHUNK: usize = 4096;

/// After output the worker looks again so long later, instead of being woken: a guest that
/// writes byte by byte then pays one wake-up for many bytes.
const LINGER: Duration = Duration::from_millis(1);

/// How often to look whether somebody opened a pseudo terminal.
const PROBE: Duration = Duration::from_millis(200);

/// What the device's threads and the worker share.
pub(crate) struct Shared {
    pub(crate) event: Event,
    pub(crate) front: Mutex<Option<Weak<dyn FrontEnd>>>,
    output: Mutex<Output>,
    /// The device had no room for input when the worker last asked.
    input_waits: AtomicBool,
}

struct Output {
    ring: Ring,
    reader: Reader,
    /// The worker will look at the ring without being told.
    watched: bool,
    /// A writer found too little room and waits to be told.
    refused: bool,
    closing: bool,
}

impl Shared {
    pub(crate) fn new(ring: Ring, reader: Reader) -> io::Result<Self> {
        Ok(Self {
            event: Event::new()?,
            front: Mutex::new(None),
            output: Mutex::new(Output {
                ring,
                reader,
                watched: false,
                refused: false,
                closing: false,
            }),
            input_waits: AtomicBool::new(false),
        })
    }

    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn front(&self) -> Option<Arc<dyn FrontEnd>> {
        self.front.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.upgrade()
    }

    pub(crate) fn write(&self, data: &[u8]) -> usize {
        let mut output = self.output();
        let taken = match output.reader {
            Reader::Present => output.ring.push(data),
            Reader::Awaited => {
                output.ring.push_over(data);
                data.len()
            }
            Reader::Gone => data.len(),
        };
        let refused = taken < data.len() && !output.refused;
        output.refused |= refused;
        let wake = output.reader == Reader::Present && (!output.watched || refused);
        output.watched |= wake;
        drop(output);
        if wake {
            self.event.signal();
        }
        taken
    }

    pub(crate) fn room(&self) -> usize {
        let output = self.output();
        match output.reader {
            Reader::Present => output.ring.room(),
            Reader::Awaited | Reader::Gone => usize::MAX,
        }
    }

    pub(crate) fn accept_input(&self) {
        if self.input_waits.swap(false, Ordering::SeqCst) {
            self.event.signal();
        }
    }

    pub(crate) fn close(&self) {
        self.output().closing = true;
        self.event.signal();
    }

    /// How much input the device takes. Zero: `accept_input` will wake the worker.
    fn input_room(&self, front: Option<&dyn FrontEnd>) -> usize {
        let Some(front) = front else { return 0 };
        // First say that the worker waits, then look: a device that makes room in between
        // finds the flag set.
        self.input_waits.store(true, Ordering::SeqCst);
        let room = front.can_receive();
        if room > 0 {
            self.input_waits.store(false, Ordering::SeqCst);
        }
        room
    }
}

/// Moves bytes until the chardev closes.
pub(crate) fn run(shared: &Shared, mut port: Port) {
    let mut buffer = [0; CHUNK];
    let mut close_by = None;
    // Whether the last round moved output.
    let mut moved = false;
    loop {
        let front = shared.front();
        let pending = {
            let mut output = shared.output();
            output.reader = port.reader();
            if output.reader == Reader::Gone {
                output.ring.clear();
            }
            let pending = output.reader == Reader::Present && !output.ring.is_empty();
            output.watched = pending || moved;
            if output.closing {
                let by = *close_by.get_or_insert_with(|| Instant::now() + GRACE);
                if !pending || Instant::now() >= by {
                    return;
                }
            }
            pending
        };
        if shared.take_refusal()
            && let Some(front) = &front
        {
            front.room();
        }
        let input_room = shared.input_room(front.as_deref());
        drop(front);

        let timeout = if close_by.is_some() {
            Some(GRACE / 20)
        } else if pending {
            None
        } else if moved {
            Some(LINGER)
        } else if port.needs_probe() {
            Some(PROBE)
        } else {
            None
        };
        let ready = wait(shared, &port, pending, input_room > 0, timeout);
        moved = false;
        shared.event.clear();
        if ready.input && !receive(shared, port.input(), &mut buffer, input_room) {
            port.input_ended();
        }
        if ready.output_ended {
            port.output_ended();
        } else if ready.output {
            match send(shared, port.output(), &mut buffer) {
                Some(sent) => moved = sent,
                None => port.output_ended(),
            }
        }
        // Last: what poll(2) said concerned the one who was there before.
        if ready.listener {
            port.accept();
        }
        if port.needs_probe() {
            port.probe();
        }
    }
}

impl Shared {
    /// Whether a writer waits for room and there is some now. It is told once.
    fn take_refusal(&self) -> bool {
        let mut output = self.output();
        let there_is_room = output.reader != Reader::Present || output.ring.is_half_empty();
        let tell = output.refused && there_is_room;
        output.refused &= !tell;
        tell
    }
}

/// What poll(2) said.
#[derive(Default)]
struct Ready {
    listener: bool,
    input: bool,
    output: bool,
    /// Nobody can take the output. (A write to the master of a pseudo terminal that nobody has
    /// open would be lost in the kernel's buffer.)
    output_ended: bool,
}

fn wait(
    shared: &Shared,
    port: &Port,
    want_output: bool,
    want_input: bool,
    timeout: Option<Duration>,
) -> Ready {
    // Only wanted descriptors take part: a hang-up of one that is not would end every poll.
    let wanted = [
        Some((shared.event.as_fd(), PollFlags::IN)),
        port.listener().map(|fd| (fd, PollFlags::IN)),
        port.input().filter(|_| want_input).map(|fd| (fd, PollFlags::IN)),
        port.output().filter(|_| want_output).map(|fd| (fd, PollFlags::OUT)),
    ];
    let mut fds: Vec<PollFd<'_>> =
        wanted.iter().flatten().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
    let timeout = timeout
        .map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: i64::from(t.subsec_nanos()) });
    if let Err(e) = poll(&mut fds, timeout.as_ref())
        && e != Errno::INTR
    {
        // Out of kernel memory: come back in a little.
        std::thread::sleep(LINGER);
    }
    let mut answers = fds.iter().map(PollFd::revents);
    let [_, listener, input, output] =
        wanted.map(|w| w.and_then(|_| answers.next()).unwrap_or(PollFlags::empty()));
    Ready {
        listener: !listener.is_empty(),
        input: !input.is_empty(),
        output: !output.is_empty(),
        output_ended: output.intersects(PollFlags::HUP | PollFlags::ERR),
    }
}

/// Moves input to the device. False: the input has ended.
fn receive(
    shared: &Shared,
    from: Option<BorrowedFd<'_>>,
    buffer: &mut [u8; CHUNK],
    room: usize,
) -> bool {
    let Some(from) = from else { return true };
    match rustix::io::read(from, &mut buffer[..room.min(CHUNK)]) {
        Ok(0) => false,
        Ok(n) => {
            if let Some(front) = shared.front() {
                front.receive(&buffer[..n]);
            }
            true
        }
        Err(Errno::AGAIN | Errno::INTR) => true,
        // EIO: nobody has the terminal open any more, or it hung up.
        Err(_) => false,
    }
}

/// Moves output from the ring. `None`: the output has ended; else whether any was moved.
fn send(shared: &Shared, to: Option<BorrowedFd<'_>>, buffer: &mut [u8; CHUNK]) -> Option<bool> {
    let Some(to) = to else { return Some(false) };
    let n = shared.output().ring.peek(buffer);
    match rustix::io::write(to, &buffer[..n]) {
        Ok(sent) => {
            shared.output().ring.consume(sent);
            Some(true)
        }
        Err(Errno::AGAIN | Errno::INTR) => Some(false),
        Err(e) => {
            if !matches!(e, Errno::PIPE | Errno::CONNRESET | Errno::IO) {
                tracing::warn!("console output can't be written and is dropped from now on: {e}");
            }
            None
        }
    }
}
