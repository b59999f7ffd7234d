//! What of the port is saved. What has left for the console, or waits there, is the host's.

use bus::{BadState, Hex, Snapshot};
use serde::{Deserialize, Serialize};

use crate::Serial;
use crate::spec::*;

/// The state of a [`Serial`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialState {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    msr: u8,
    scr: u8,
    divisor: u16,
    /// The receiver's and the transmitter's FIFO.
    rx: Hex,
    tx: Hex,
    overrun: bool,
    thre_pending: bool,
    timeout_pending: bool,
    /// When the guest is told of few characters that wait, in guest time.
    timeout_at: Option<u64>,
}

impl Snapshot for Serial {
    type State = SerialState;

    fn save(&self) -> SerialState {
        SerialState {
            ier: self.ier.bits(),
            fcr: self.fcr.bits(),
            lcr: self.lcr.bits(),
            mcr: self.mcr.bits(),
            msr: self.msr.bits(),
            scr: self.scr,
            divisor: self.divisor,
            rx: Hex(self.rx.iter().copied().collect()),
            tx: Hex(self.tx.iter().copied().collect()),
            overrun: self.overrun,
            thre_pending: self.thre_pending,
            timeout_pending: self.timeout_pending,
            timeout_at: self.timeout_at,
        }
    }

    fn restore(&mut self, state: SerialState) -> Result<(), BadState> {
        if state.rx.0.len() > FIFO_DEPTH || state.tx.0.len() > FIFO_DEPTH {
            return Err(BadState::new("a FIFO holds more than it can"));
        }
        self.ier = InterruptEnable::from_bits_truncate(state.ier);
        self.fcr = FifoControl::from_bits_truncate(state.fcr);
        self.lcr = LineControl::from_bits_retain(state.lcr);
        self.mcr = ModemControl::from_bits_truncate(state.mcr);
        self.msr = ModemStatus::from_bits_truncate(state.msr);
        self.scr = state.scr;
        self.divisor = state.divisor;
        self.rx = state.rx.0.into();
        self.tx = state.tx.0.into();
        self.overrun = state.overrun;
        self.thre_pending = state.thre_pending;
        self.timeout_pending = state.timeout_pending;
        self.timeout_at = state.timeout_at;
        if let Some(at) = self.timeout_at {
            self.timer.arm(at);
        }
        self.update_irq();
        self.drain_transmitter();
        self.console.accept_input();
        Ok(())
    }
}
