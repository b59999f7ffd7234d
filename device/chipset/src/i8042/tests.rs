//! The controller and its keyboard as drivers see them.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::test_wiring::Pins;
use crate::{At, PowerRequests, power_channel};
use bus::Snapshot;

struct Bench {
    device: Arc<Mutex<I8042>>,
    command: Arc<Mutex<At<I8042>>>,
    pins: Arc<Pins>,
    a20: A20,
    requests: PowerRequests,
}

fn bench() -> Bench {
    let pins = Pins::new();
    let (power, requests) = power_channel().unwrap();
    let a20 = A20::new();
    let device = Arc::new(Mutex::new(I8042::new(pins.line(1), pins.line(12), a20.clone(), power)));
    let command = At::new(device.clone(), COMMAND);
    Bench { device, command, pins, a20, requests }
}

impl Bench {
    fn data(&self, value: u8) {
        self.device.lock().unwrap().write(0, &[value]);
    }
    fn command(&self, value: u8) {
        self.command.lock().unwrap().write(0, &[value]);
    }
    fn status(&self) -> Status {
        let mut data = [0];
        self.command.lock().unwrap().read(0, &mut data);
        Status::from_bits_retain(data[0])
    }
    fn read(&self) -> u8 {
        let mut data = [0];
        self.device.lock().unwrap().read(0, &mut data);
        data[0]
    }
    fn read_all(&self) -> Vec<u8> {
        let mut all = Vec::new();
        while self.status().contains(Status::OUTPUT_FULL) {
            all.push(self.read());
        }
        all
    }
    fn key(&self, codes: &[u8]) {
        self.device.lock().unwrap().key(codes);
    }
}

#[test]
fn linux_probes_the_controller() {
    // drivers/input/serio/i8042.c: i8042_controller_selftest() to i8042_check_aux().
    let b = bench();
    assert!(b.read_all().is_empty());
    b.command(SELF_TEST);
    assert_eq!(b.read(), 0x55);
    b.command(0x20);
    assert_eq!(b.read(), 0x65);
    b.command(0x60);
    b.data(0x74);
    b.command(0x20);
    assert_eq!(b.read(), 0x74);
    // The loop through the second port, with its interrupt.
    b.command(WRITE_AUX_BUFFER);
    b.data(0x5a);
    assert!(b.status().contains(Status::OUTPUT_FULL | Status::AUX_FULL));
    assert_eq!(b.read(), 0x5a);
    b.command(DISABLE_AUX);
    b.command(0x20);
    assert_eq!(b.read() & 0x20, 0x20);
    b.command(ENABLE_AUX);
    b.command(0x20);
    assert_eq!(b.read() & 0x20, 0);
    b.command(0x60);
    b.data(0x47);
    b.command(WRITE_AUX_BUFFER);
    b.data(0xa5);
    assert!(b.pins.level(12) && !b.pins.level(1));
    assert_eq!(b.read(), 0xa5);
    assert!(!b.pins.level(12));
    // And no mouse.
    b.command(WRITE_AUX);
    b.data(0xff);
    assert!(b.status().contains(Status::TIMEOUT | Status::AUX_FULL));
    assert_eq!(b.read(), RESEND);
    assert!(!b.status().contains(Status::TIMEOUT));
    for test in [TEST_AUX, TEST_KEYBOARD] {
        b.command(test);
        assert_eq!(b.read(), 0);
    }
}

#[test]
fn linux_probes_the_keyboard() {
    // drivers/input/keyboard/atkbd.c: atkbd_probe(), atkbd_set_repeat_rate() and so on.
    let b = bench();
    b.data(0xf2);
    assert_eq!(b.read_all(), [0xfa, 0xab, 0x41]); // the ID is translated, too
    for byte in [0xed, 0x00, 0xf3, 0x00, 0xf4] {
        b.data(byte);
        assert_eq!(b.read_all(), [0xfa]);
    }
    b.data(0xff);
    assert_eq!(b.read_all(), [0xfa, 0xaa]);
    b.data(0xee);
    assert_eq!(b.read_all(), [0xee]);
    b.data(0x12);
    assert_eq!(b.read_all(), [0xfe]);
}

#[test]
fn keys_arrive_one_interrupt_each() {
    let b = bench();
    b.key(&[0x1c, 0xf0, 0x1c]); // A
    assert!(b.pins.level(1));
    assert_eq!(b.pins.edges(1), 1);
    assert_eq!(b.read(), 0x1e);
    assert_eq!(b.pins.edges(1), 2);
    assert_eq!(b.read(), 0x9e);
    assert!(!b.pins.level(1));
    b.key(&[0xe0, 0x75, 0xe0, 0xf0, 0x75]); // up
    assert_eq!(b.read_all(), [0xe0, 0x48, 0xe0, 0xc8]);
    b.command(0x60);
    b.data(0x05); // without translation
    b.key(&[0xf0, 0x1c]);
    assert_eq!(b.read_all(), [0xf0, 0x1c]);
    b.data(0xf0);
    b.data(0x01); // the keyboard itself speaks set 1
    assert_eq!(b.read_all(), [0xfa, 0xfa]);
    b.key(&[0xf0, 0x1c]);
    assert_eq!(b.read_all(), [0x9e]);
    b.data(0xf0);
    b.data(0x00);
    assert_eq!(b.read_all(), [0xfa, 0xfa, 0x01]);
}

#[test]
fn a_disabled_keyboard_keeps_its_keys_and_a_full_one_drops_them() {
    let b = bench();
    b.command(DISABLE_KEYBOARD);
    for _ in 0..20 {
        b.key(&[0x1c]);
    }
    assert!(b.read_all().is_empty());
    b.command(ENABLE_KEYBOARD);
    assert_eq!(b.read_all(), [0x1e; 16]);
    b.data(0xf5);
    assert_eq!(b.read_all(), [0xfa]);
    b.key(&[0x1c]);
    assert!(b.read_all().is_empty());
}

#[test]
fn resets_and_a20() {
    let b = bench();
    b.command(0xff);
    b.command(0xf1);
    assert_eq!(b.requests.take(), None);
    b.command(0xfe);
    assert_eq!(b.requests.take(), Some(PowerRequest::Reset));
    b.command(READ_OUTPUT_PORT);
    assert_eq!(b.read() & 0b11, 0b11);
    b.command(WRITE_OUTPUT_PORT);
    b.data(0xdd);
    assert!(!b.a20.is_open());
    assert_eq!(b.requests.take(), None);
    b.command(ENABLE_A20);
    assert!(b.a20.is_open());
    b.command(WRITE_OUTPUT_PORT);
    b.data(0xfe);
    assert_eq!(b.requests.take(), Some(PowerRequest::Reset));
    b.device.lock().unwrap().reset();
    assert_eq!(b.status(), Status::SYS | Status::UNLOCKED);
}

proptest! {
    #[test]
    fn any_access_is_harmless(accesses in prop::collection::vec(
        (0u8..5, 0u64..8, any::<[u8; 4]>(), 1usize..=4), 1..300))
    {
        let b = bench();
        let mut device = b.device.lock().unwrap();
        for (kind, offset, mut data, len) in accesses {
            match kind {
                0 => device.read(offset, &mut data[..len]),
                1 => device.key(&data[..len]),
                2 => device.write(COMMAND, &data[..len]),
                3 => device.write(DATA, &data[..len]),
                _ => device.write(offset, &data[..len]),
            }
            prop_assert!(!(b.pins.level(1) && b.pins.level(12)));
        }
        // However many commands came, what waits is bounded.
        let mut waiting = 0;
        while device.read_status() & 1 != 0 {
            device.read_data();
            waiting += 1;
        }
        prop_assert!(waiting <= 40);
    }
}

proptest! {
    /// After any accesses, a controller that takes over the state goes on as the first one does.
    #[test]
    fn another_one_goes_on(
        before in prop::collection::vec((0u8..4, any::<u8>()), 0..60),
        after in prop::collection::vec((0u8..4, any::<u8>()), 0..60),
    ) {
        let drive = |b: &Bench, (kind, value): (u8, u8)| {
            match kind {
                0 => b.data(value),
                1 => b.command(value),
                2 => b.key(&[value]),
                _ => return (b.read(), b.status(), b.pins.level(1), b.pins.level(12)),
            }
            (0, b.status(), b.pins.level(1), b.pins.level(12))
        };
        let (a, b) = (bench(), bench());
        for step in before {
            drive(&a, step);
        }
        let state = a.device.lock().unwrap().save();
        let text = serde_json::to_string(&state).unwrap();
        b.device.lock().unwrap().restore(serde_json::from_str(&text).unwrap()).unwrap();
        prop_assert_eq!(b.a20.is_open(), a.a20.is_open());
        for step in after {
            prop_assert_eq!(drive(&b, step), drive(&a, step));
        }
    }
}
