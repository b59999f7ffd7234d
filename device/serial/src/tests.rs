//! The port as a driver sees it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bus::{BusDevice, Snapshot};
use chardev::{Backend, Chardev};
use irqchip::{IrqLine, IrqSink, Msi};
use proptest::prelude::*;
use runtime::{Clock, Timers};

use crate::Serial;
use crate::spec::*;

#[derive(Default)]
struct Pin {
    level: AtomicBool,
    edges: AtomicUsize,
}

impl IrqSink for Pin {
    fn set_gsi(&self, gsi: u32, level: bool) {
        assert_eq!(gsi, 4);
        if level && !self.level.swap(level, Ordering::SeqCst) {
            self.edges.fetch_add(1, Ordering::SeqCst);
        }
        self.level.store(level, Ordering::SeqCst);
    }
    fn send_msi(&self, _: Msi) {}
}

struct Bench {
    port: Arc<Mutex<Serial>>,
    pin: Arc<Pin>,
    far: UnixStream,
    _timers: Timers,
}

impl Bench {
    fn new() -> Self {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let pin = Arc::new(Pin::default());
        let timers = Timers::new(Arc::new(Clock::new())).unwrap();
        let console = Arc::new(Chardev::open(Backend::Stream(near.into())).unwrap());
        let port = Serial::new(IrqLine::new(pin.clone(), 4), console, &timers);
        Self { port, pin, far, _timers: timers }
    }

    fn get(&self, register: u64) -> u8 {
        let mut data = [0];
        self.port.lock().unwrap().read(register, &mut data);
        data[0]
    }

    fn set(&self, register: u64, value: u8) {
        self.port.lock().unwrap().write(register, &[value]);
    }

    fn irq(&self) -> bool {
        self.pin.level.load(Ordering::SeqCst)
    }

    fn eventually(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < Duration::from_secs(10), "{what}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn hear(&mut self, text: &str) {
        let mut data = vec![0; text.len()];
        self.far.read_exact(&mut data).unwrap();
        assert_eq!(data, text.as_bytes());
    }
}

const IDLE: u8 = LineStatus::THRE.union(LineStatus::TEMT).bits();
const LOOP: u8 = ModemControl::LOOP.bits();

#[test]
fn registers_hold_what_they_should() {
    let bench = Bench::new();
    assert_eq!(bench.get(LSR), IDLE);
    assert_eq!(bench.get(IIR_FCR), IIR_NONE);
    assert_eq!(bench.get(MSR), 0xb0);
    bench.set(SCR, 0x5a);
    assert_eq!(bench.get(SCR), 0x5a);
    bench.set(IER_DLM, 0xff);
    assert_eq!(bench.get(IER_DLM), 0x0f);
    bench.set(LCR, 0x83);
    bench.set(RBR_THR_DLL, 0x34);
    bench.set(IER_DLM, 0x12);
    assert_eq!((bench.get(RBR_THR_DLL), bench.get(IER_DLM)), (0x34, 0x12));
    bench.set(LCR, 0x03);
    assert_eq!(bench.get(IER_DLM), 0x0f);
    bench.set(MCR, 0xff);
    assert_eq!(bench.get(MCR), 0x1f);
    bench.port.lock().unwrap().reset();
    assert_eq!((bench.get(MCR), bench.get(IER_DLM), bench.get(LCR)), (0, 0, 0));
    assert_eq!(bench.get(SCR), 0x5a);
}

#[test]
fn linux_identifies_it_as_a_16550a() {
    // drivers/tty/serial/8250/8250_port.c, autoconfig().
    let bench = Bench::new();
    bench.set(MCR, LOOP | 0x0a);
    assert_eq!(bench.get(MSR) & 0xf0, 0x90);
    bench.set(MCR, 0);
    bench.set(IIR_FCR, 0x01);
    assert_eq!(bench.get(IIR_FCR) >> 6, 3);
    bench.set(IIR_FCR, 0x21); // not a 16750: bit 5 stays clear
    assert_eq!(bench.get(IIR_FCR) >> 5, 6);
    bench.set(IIR_FCR, 0);
    assert_eq!(bench.get(IIR_FCR) >> 6, 0);
}

#[test]
fn a_guest_that_is_not_ready_has_its_peer_wait() {
    let (dtr, rts) = (ModemControl::DTR.bits(), ModemControl::RTS.bits());
    let mut bench = Bench::new();
    bench.set(IIR_FCR, FifoControl::ENABLE.bits());
    // Who sets neither line gets what there is, and so does who is ready.
    for lines in [0, dtr | rts, rts] {
        bench.set(MCR, lines);
        bench.far.write_all(b"x").unwrap();
        bench.eventually("the character comes", |bench| bench.get(LSR) & 1 != 0);
        assert_eq!(bench.get(RBR_THR_DLL), b'x');
    }
    bench.set(MCR, dtr);
    let text: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    let mut sender = bench.far.try_clone().unwrap();
    let sent = text.clone();
    let sender = std::thread::spawn(move || sender.write_all(&sent).unwrap());
    // No more comes than there was room for before.
    let mut read = Vec::new();
    for _ in 0..2 * FIFO_DEPTH {
        std::thread::sleep(Duration::from_millis(2));
        if bench.get(LSR) & LineStatus::DR.bits() != 0 {
            read.push(bench.get(RBR_THR_DLL));
        }
    }
    assert!(read.len() <= FIFO_DEPTH, "{} come", read.len());
    // Now and then it is not ready; nothing is lost.
    while read.len() < text.len() {
        bench.set(MCR, if read.len() % 1000 == 0 { dtr } else { dtr | rts });
        bench.set(MCR, dtr | rts);
        bench.eventually("a character comes", |bench| bench.get(LSR) & 1 != 0);
        assert_eq!(bench.get(LSR) & LineStatus::OE.bits(), 0);
        read.push(bench.get(RBR_THR_DLL));
    }
    assert!(read == text);
    sender.join().unwrap();
}

#[test]
fn characters_go_out_at_once() {
    let mut bench = Bench::new();
    for byte in b"login: " {
        assert_eq!(bench.get(LSR) & IDLE, IDLE);
        bench.set(RBR_THR_DLL, *byte);
    }
    bench.hear("login: ");
    // As one wide access, which reaches THR and, upwards, IER.
    bench.port.lock().unwrap().write(0, b"x\x02");
    bench.hear("x");
    assert_eq!(bench.get(IER_DLM), 2);
}

#[test]
fn an_empty_transmitter_interrupts_once_per_cause() {
    let bench = Bench::new();
    let edges = || bench.pin.edges.load(Ordering::SeqCst);
    bench.set(IER_DLM, 2);
    assert!(bench.irq());
    assert_eq!(bench.get(IIR_FCR), Interrupt::HoldingEmpty as u8);
    assert!(!bench.irq());
    assert_eq!(bench.get(IIR_FCR), IIR_NONE);
    bench.set(RBR_THR_DLL, b'a');
    assert!(bench.irq());
    let before = edges();
    bench.set(RBR_THR_DLL, b'b'); // without reading IIR
    assert!(bench.irq());
    assert_eq!(edges(), before + 1);
    bench.set(IER_DLM, 0);
    assert!(!bench.irq());
    bench.get(IIR_FCR);
    bench.set(IER_DLM, 2);
    assert!(bench.irq());
}

#[test]
fn without_fifos_each_character_interrupts() {
    let mut bench = Bench::new();
    bench.set(IER_DLM, 1);
    bench.far.write_all(b"ab").unwrap();
    bench.eventually("data", Bench::irq);
    assert_eq!(bench.get(IIR_FCR), Interrupt::DataAvailable as u8);
    assert_eq!(bench.get(LSR), IDLE | 1);
    assert_eq!(bench.get(RBR_THR_DLL), b'a');
    bench.eventually("more data", |b| b.get(LSR) & 1 != 0);
    assert_eq!(bench.get(RBR_THR_DLL), b'b');
    assert!(!bench.irq());
    assert_eq!(bench.get(LSR), IDLE); // and nothing overran
}

#[test]
fn the_receive_fifo_interrupts_at_its_trigger_level_and_after_a_timeout() {
    let mut bench = Bench::new();
    bench.set(IIR_FCR, 0xc1); // 14
    bench.set(IER_DLM, 1);
    bench.far.write_all(b"0123456789abcdef+").unwrap();
    bench.eventually("trigger", |b| b.get(IIR_FCR) == IIR_FIFOS | 0b0100);
    for byte in b"012" {
        assert_eq!(bench.get(RBR_THR_DLL), *byte);
    }
    assert_ne!(bench.get(IIR_FCR), IIR_FIFOS | 0b0100);
    bench.eventually("timeout", |b| b.get(IIR_FCR) == IIR_FIFOS | 0b1100);
    assert_eq!(bench.get(RBR_THR_DLL), b'3');
    assert!(!bench.irq()); // counts anew
    bench.eventually("second timeout", Bench::irq);
    for byte in b"456789abcdef" {
        assert_eq!(bench.get(RBR_THR_DLL), *byte);
    }
    bench.eventually("the rest", |b| b.get(LSR) & 1 != 0);
    assert_eq!(bench.get(RBR_THR_DLL), b'+');
    bench.set(IIR_FCR, 0x03);
    assert_eq!(bench.get(LSR), IDLE);
}

#[test]
fn loopback_turns_output_into_input() {
    let mut bench = Bench::new();
    bench.set(MCR, LOOP);
    assert_eq!(bench.get(MSR) & 0x0f, 0x0b); // CTS, DSR, DCD fell
    bench.set(IIR_FCR, 0x01);
    bench.set(IER_DLM, 0b1101);
    for n in 0..17 {
        bench.set(RBR_THR_DLL, n);
    }
    assert_eq!(bench.get(IIR_FCR), IIR_FIFOS | Interrupt::LineStatus as u8);
    assert_eq!(bench.get(LSR), IDLE | 0b11);
    assert_eq!(bench.get(LSR), IDLE | 0b01);
    for n in 0..16 {
        assert_eq!(bench.get(RBR_THR_DLL), n);
    }
    bench.set(MCR, LOOP | 0x0f);
    assert_eq!(bench.get(IIR_FCR), IIR_FIFOS | Interrupt::ModemStatus as u8);
    assert_eq!(bench.get(MSR), 0xfb);
    assert_eq!(bench.get(MSR), 0xf0);
    bench.set(MCR, LOOP);
    assert_eq!(bench.get(MSR), 0x0f); // RI fell: TERI
    bench.far.write_all(b"!").unwrap();
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(bench.get(LSR), IDLE);
    bench.set(MCR, 0);
    bench.eventually("input from outside", |b| b.get(LSR) & 1 != 0);
    assert_eq!(bench.get(RBR_THR_DLL), b'!');
    bench.set(RBR_THR_DLL, b'?');
    bench.hear("?"); // and nothing of the loop got out
}

#[test]
fn a_stalled_console_keeps_the_transmitter_busy_and_loses_nothing() {
    let mut bench = Bench::new();
    bench.set(IIR_FCR, 0x01);
    let byte = |n: usize| (n % 255) as u8;
    let mut sent = 0;
    let mut quiet = 0;
    while quiet < 100 {
        if bench.get(LSR) & LineStatus::THRE.bits() != 0 {
            bench.set(RBR_THR_DLL, byte(sent));
            sent += 1;
            quiet = 0;
        } else {
            quiet += 1;
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    assert!(sent > chardev::RING_SIZE);
    bench.set(IER_DLM, 2);
    assert!(!bench.irq());
    let mut data = vec![0; sent];
    bench.far.read_exact(&mut data).unwrap();
    assert!(data.iter().enumerate().all(|(n, b)| *b == byte(n)));
    bench.eventually("transmitter empty", Bench::irq);
    assert_eq!(bench.get(LSR), IDLE);
}

proptest! {
    /// Whatever a guest does, no access panics, and the line agrees with IIR.
    #[test]
    fn any_access_is_harmless(accesses in prop::collection::vec(
        (any::<bool>(), 0u64..8, 1usize..=4, any::<u32>()), 1..200)
    ) {
        let pin = Arc::new(Pin::default());
        let timers = Timers::new(Arc::new(Clock::stopped_at(0))).unwrap();
        let port = Serial::new(IrqLine::new(pin.clone(), 4), Arc::new(Chardev::null()), &timers);
        let mut port = port.lock().unwrap();
        for (write, offset, len, value) in accesses {
            let mut data = value.to_le_bytes();
            if write {
                port.write(offset, &data[..len]);
            } else {
                port.read(offset, &mut data[..len]);
            }
            let mut iir = [0];
            let level = pin.level.load(Ordering::SeqCst);
            port.read(IIR_FCR, &mut iir);
            prop_assert_eq!(level, iir[0] & IIR_NONE == 0);
        }
    }
}

#[test]
fn another_port_goes_on() {
    let mut a = Bench::new();
    a.set(IIR_FCR, 0xc1);
    a.set(LCR, 0x83);
    a.set(RBR_THR_DLL, 1);
    a.set(LCR, 0x03);
    a.set(SCR, 0x5a);
    a.set(IER_DLM, 0x01);
    a.far.write_all(b"abc").unwrap();
    a.eventually("input", |a| a.port.lock().unwrap().rx.len() == 3);
    let state = serde_json::to_string(&a.port.lock().unwrap().save()).unwrap();
    let mut b = Bench::new();
    b.port.lock().unwrap().restore(serde_json::from_str(&state).unwrap()).unwrap();
    b.eventually("the guest is told of characters that wait", Bench::irq);
    for register in [IER_DLM, LCR, MCR, SCR] {
        assert_eq!(b.get(register), a.get(register));
    }
    assert_eq!([b.get(RBR_THR_DLL), b.get(RBR_THR_DLL), b.get(RBR_THR_DLL)], *b"abc");
    assert!(!b.irq());
    b.set(RBR_THR_DLL, b'x');
    b.hear("x");
    b.far.write_all(b"d").unwrap();
    b.eventually("input", |b| b.port.lock().unwrap().rx.len() == 1);
}
