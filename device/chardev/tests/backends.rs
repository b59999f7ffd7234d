//! Each back end as a console device meets it.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use chardev::{Backend, Chardev, Error, FrontEnd, RING_SIZE};

/// How long anything may take on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// A device with a bounded input buffer.
#[derive(Default)]
struct Device {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    input: Vec<u8>,
    capacity: usize,
    rooms: usize,
}

impl FrontEnd for Device {
    fn can_receive(&self) -> usize {
        let state = self.state.lock().unwrap();
        state.capacity - state.input.len()
    }
    fn receive(&self, data: &[u8]) {
        let mut state = self.state.lock().unwrap();
        state.input.extend(data);
        assert!(state.input.len() <= state.capacity, "more input than there was room for");
        self.changed.notify_all();
    }
    fn room(&self) {
        self.state.lock().unwrap().rooms += 1;
        self.changed.notify_all();
    }
}

impl Device {
    fn attached(chardev: &Chardev, capacity: usize) -> Arc<Self> {
        let device = Arc::new(Self::default());
        device.state.lock().unwrap().capacity = capacity;
        let front: Arc<dyn FrontEnd> = device.clone();
        let weak: Weak<dyn FrontEnd> = Arc::downgrade(&front);
        chardev.attach(weak);
        device
    }

    fn wait(&self, until: impl Fn(&State) -> bool) {
        let state = self.state.lock().unwrap();
        let (_state, timeout) =
            self.changed.wait_timeout_while(state, SOON, |s| !until(s)).unwrap();
        assert!(!timeout.timed_out());
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.state.lock().unwrap().input)
    }
}

fn read_exactly(from: &mut impl Read, n: usize) -> Vec<u8> {
    let mut data = vec![0; n];
    from.read_exact(&mut data).unwrap();
    data
}

/// Reads until a pty, which has no read timeout, is reached in time.
fn eventually(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn stream() -> (Chardev, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(SOON)).unwrap();
    (Chardev::open(Backend::Stream(ours.into())).unwrap(), theirs)
}

#[test]
fn bytes_written_one_by_one_arrive_in_order() {
    let (chardev, mut far) = stream();
    let text: Vec<u8> = (0..20_000u32).map(|n| (n % 251) as u8).collect();
    for byte in &text {
        assert_eq!(chardev.write(std::slice::from_ref(byte)), 1);
    }
    assert_eq!(read_exactly(&mut far, text.len()), text);
}

#[test]
fn a_reader_that_stalls_stops_the_writer_and_loses_nothing() {
    let (chardev, mut far) = stream();
    let device = Device::attached(&chardev, 0);
    let mut sent = 0usize;
    let byte = |n: usize| (n % 253) as u8;
    // The socket's own buffer fills, then the ring.
    let mut stalled = 0;
    while stalled < 100 {
        let data: Vec<u8> = (sent..sent + 1000).map(byte).collect();
        let taken = chardev.write(&data);
        sent += taken;
        stalled = if taken == 0 { stalled + 1 } else { 0 };
        if taken == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    assert!(sent >= RING_SIZE);
    assert_eq!(chardev.room(), 0);
    let rooms = device.state.lock().unwrap().rooms;
    let total = sent;
    let reader = std::thread::spawn(move || {
        let data = read_exactly(&mut far, total);
        (data, far)
    });
    device.wait(|s| s.rooms > rooms);
    let (data, _far) = reader.join().unwrap();
    assert!(data.iter().enumerate().all(|(n, b)| *b == byte(n)));
}

#[test]
fn input_waits_for_the_device() {
    let (chardev, mut far) = stream();
    far.write_all(b"0123456789").unwrap();
    let device = Device::attached(&chardev, 4);
    device.wait(|s| s.input.len() == 4);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(device.take(), b"0123");
    chardev.accept_input();
    device.wait(|s| s.input.len() == 4);
    assert_eq!(device.take(), b"4567");
    chardev.accept_input();
    device.wait(|s| s.input.len() == 2);
    assert_eq!(device.take(), b"89");
}

#[test]
fn what_was_written_before_the_end_is_delivered() {
    let (chardev, mut far) = stream();
    assert_eq!(chardev.write(b"Power down"), 10);
    drop(chardev);
    let mut all = Vec::new();
    far.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"Power down");
}

#[test]
fn a_closed_stream_swallows_output() {
    let (chardev, far) = stream();
    drop(far);
    eventually(|| {
        chardev.write(b"x");
        chardev.room() == usize::MAX
    });
    for _ in 0..100 {
        assert_eq!(chardev.write(&[0; 4096]), 4096);
    }
}

#[test]
fn half_a_stream_is_still_an_output() {
    let (chardev, mut far) = stream();
    let device = Device::attached(&chardev, 100);
    far.write_all(b"bye").unwrap();
    far.shutdown(std::net::Shutdown::Write).unwrap();
    device.wait(|s| s.input == b"bye");
    std::thread::sleep(Duration::from_millis(10));
    chardev.write(b"still here");
    assert_eq!(read_exactly(&mut far, 10), b"still here");
}

#[test]
fn null_takes_everything() {
    let chardev = Chardev::null();
    assert_eq!(chardev.write(&[0; 1 << 20]), 1 << 20);
    assert_eq!(chardev.room(), usize::MAX);
    chardev.accept_input();
}

fn connect(path: &Path) -> UnixStream {
    let client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    client
}

#[test]
fn a_socket_serves_one_client_after_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    let chardev = Chardev::open(Backend::Socket(path.clone())).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let device = Device::attached(&chardev, 100);

    // Nobody is there: the newest output is kept.
    chardev.write(&[b'-'; RING_SIZE]);
    chardev.write(b"tail");
    let mut first = connect(&path);
    let backlog = read_exactly(&mut first, RING_SIZE);
    assert!(backlog.ends_with(b"---tail"));

    let mut second = connect(&path);
    let mut answer = String::new();
    second.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("in use"), "{answer}");

    first.write_all(b"ls").unwrap();
    device.wait(|s| s.input == b"ls");
    drop(first);

    let mut third = connect(&path);
    chardev.write(b"again");
    assert_eq!(read_exactly(&mut third, 5), b"again");
    drop(chardev);
    assert_eq!(third.read(&mut [0]).unwrap(), 0);
    assert!(!path.exists());
}

#[test]
fn a_client_that_left_unnoticed_makes_way() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    let chardev = Chardev::open(Backend::Socket(path.clone())).unwrap();
    let _device = Device::attached(&chardev, 0); // never looks at its input
    drop(connect(&path));
    std::thread::sleep(Duration::from_millis(20));
    let mut next = connect(&path);
    std::thread::sleep(Duration::from_millis(20));
    chardev.write(b"hello");
    assert_eq!(read_exactly(&mut next, 5), b"hello");
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _chardev = Chardev::open(Backend::Socket(path.clone())).unwrap();
    let again = Chardev::open(Backend::Socket(path.clone()));
    assert!(matches!(again, Err(Error::SocketInUse(_))));

    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let error = Chardev::open(Backend::Socket(file.clone())).unwrap_err();
    assert!(matches!(error, Error::NotASocket(_)));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");

    let long = dir.path().join("x".repeat(120));
    assert!(matches!(Chardev::open(Backend::Socket(long)), Err(Error::Socket { .. })));
}

#[test]
fn a_log_is_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    for line in ["one\n", "two\n"] {
        let chardev = Chardev::open(Backend::Log(path.clone())).unwrap();
        chardev.write(line.as_bytes());
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\n");
    let missing = dir.path().join("no/such/dir");
    assert!(matches!(Chardev::open(Backend::Log(missing)), Err(Error::Log { .. })));
}

#[test]
fn a_pty_is_a_raw_terminal_that_may_be_opened_again() {
    let chardev = Chardev::open(Backend::Pty).unwrap();
    let device = Device::attached(&chardev, 100);
    let path = chardev.pty().unwrap();
    chardev.write(b"boot\n");
    for round in 0..2 {
        let mut terminal = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(0o400 | 0o4000) // O_NOCTTY, O_NONBLOCK
            .open(path)
            .unwrap();
        let mut seen = Vec::<u8>::new();
        let want: &[u8] = if round == 0 { b"boot\n" } else { b"kept\n" };
        eventually(|| {
            let mut data = [0; 64];
            match terminal.read(&mut data) {
                Ok(n) => seen.extend(&data[..n]),
                Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
            }
            seen == want
        });
        terminal.write_all(b"a\r").unwrap();
        device.wait(|s| s.input == b"a\r");
        device.take();
        drop(terminal);
        // What is written before the worker has noticed is lost with the terminal.
        std::thread::sleep(Duration::from_millis(500));
        chardev.write(b"kept\n");
    }
}

#[test]
fn the_end_comes_though_nobody_reads() {
    let (chardev, _far) = stream();
    while chardev.write(&[0; 4096]) > 0 {}
    let end = std::thread::spawn(move || drop(chardev));
    eventually(|| end.is_finished());
    end.join().unwrap();
}
