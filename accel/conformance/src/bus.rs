//! The machine that a guest sees: a few ports and one device.

use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};

use accel::{CpuBus, Kicker};
use mem::vm_memory::Bytes;
use mem::{GuestAddress, GuestMemory};

use crate::expect::{Event, Record};
use crate::guest::{Host, HostCall};
use crate::layout::{self, port};

/// What ends the wait for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// The guest wrote to the exit port.
    Exit,
    /// A processor shut down.
    TripleFault,
    /// The accelerator gave up.
    Fault,
}

/// The test's bus.
pub(crate) struct TestBus {
    pub events: Mutex<Vec<Event>>,
    pub host: Host,
    pub host_call: Option<HostCall>,
    pub kickers: Vec<Kicker>,
    pub signal: Mutex<Sender<Signal>>,
}

/// No case does more; a guest that runs wild must not fill the host's memory.
const MAX_EVENTS: usize = 10_000;

impl TestBus {
    fn push(&self, event: Event) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() < MAX_EVENTS {
            events.push(event);
        }
    }

    /// Takes the record that a handler wrote.
    fn take_record(memory: &GuestMemory) -> Record {
        let mut bytes = [0; Record::LEN];
        let _ = memory.read_slice(&mut bytes, GuestAddress(layout::RECORD));
        let _ = memory.write_slice(&[0; Record::LEN], GuestAddress(layout::RECORD));
        let mut words = [0; 9];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*chunk);
        }
        Record::from_words(words)
    }

    pub fn signal(&self, signal: Signal) {
        let _ = self.signal.lock().unwrap_or_else(PoisonError::into_inner).send(signal);
    }
}

fn value(data: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    for (byte, from) in bytes.iter_mut().zip(data) {
        *byte = *from;
    }
    u64::from_le_bytes(bytes)
}

impl CpuBus for TestBus {
    fn mmio_read(&self, addr: u64, data: &mut [u8]) {
        match addr.checked_sub(layout::DEVICE) {
            Some(offset) if offset < layout::DEVICE_LEN => {
                for (byte, at) in data.iter_mut().zip(addr..) {
                    *byte = at as u8;
                }
            }
            _ => data.fill(0xff),
        }
    }

    fn mmio_write(&self, addr: u64, data: &[u8]) {
        if let Some(offset) = addr.checked_sub(layout::DEVICE)
            && offset < layout::DEVICE_LEN
        {
            self.push(Event::Store(offset, value(data)));
        }
    }

    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        let Ok(port) = u8::try_from(port) else { return };
        match port {
            port::OUT => self.push(Event::Out(value(data) as u32)),
            port::RECORD => self.push(Event::Fault(Self::take_record(&self.host.memory))),
            port::HOST => {
                if let Some(call) = &self.host_call {
                    call(&self.host, value(data) as u32);
                }
            }
            port::EXIT => {
                self.signal(Signal::Exit);
                self.kickers.iter().for_each(Kicker::kick);
            }
            _ => {}
        }
    }
}
