//! The state machine of the port.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

use bus::BusDevice;
use chardev::{Chardev, FrontEndMut};
use irqchip::IrqLine;
use runtime::{Clock, Expire, Timer, Timers};

use crate::spec::*;

/// The longest wait for the character timeout. At low rates four character times are longer, but
/// no console behind this port is that slow.
const MAX_TIMEOUT_NS: u64 = 1_000_000;

/// A 16550A on a console.
pub struct Serial {
    // Wiring.
    irq: IrqLine,
    pub(crate) console: Arc<Chardev>,
    clock: Arc<Clock>,
    pub(crate) timer: Timer,

    // Volatile state.
    pub(crate) ier: InterruptEnable,
    pub(crate) fcr: FifoControl,
    pub(crate) lcr: LineControl,
    pub(crate) mcr: ModemControl,
    pub(crate) msr: ModemStatus,
    pub(crate) scr: u8,
    pub(crate) divisor: u16,
    /// Receive FIFO, or the receiver buffer register as a FIFO of one.
    pub(crate) rx: VecDeque<u8>,
    /// Transmit FIFO or holding register. Holds something only while the console takes no more.
    pub(crate) tx: VecDeque<u8>,
    pub(crate) overrun: bool,
    /// The holding register has become empty and IIR has not told so.
    pub(crate) thre_pending: bool,
    /// The receive FIFO has waited for long enough.
    pub(crate) timeout_pending: bool,
    /// When it will have (guest time in ns). The timer may be set for earlier.
    pub(crate) timeout_at: Option<u64>,
    /// The level of the interrupt line.
    pub(crate) irq_level: bool,
}

impl Serial {
    /// A port in its state after reset, which interrupts on `irq` and talks to `console`.
    pub fn new(irq: IrqLine, console: Arc<Chardev>, timers: &Timers) -> Arc<Mutex<Self>> {
        let port = Arc::new_cyclic(|me: &Weak<Mutex<Self>>| {
            Mutex::new(Self {
                irq,
                console: console.clone(),
                clock: timers.clock().clone(),
                timer: timers.timer(me.clone()),
                ier: InterruptEnable::empty(),
                fcr: FifoControl::empty(),
                lcr: LineControl::empty(),
                mcr: ModemControl::empty(),
                msr: Self::CONNECTED,
                scr: 0,
                divisor: 12, // 9600 baud, what a PC's firmware leaves
                rx: VecDeque::with_capacity(FIFO_DEPTH),
                tx: VecDeque::with_capacity(FIFO_DEPTH),
                overrun: false,
                thre_pending: false,
                timeout_pending: false,
                timeout_at: None,
                irq_level: false,
            })
        });
        let front: Weak<Mutex<Self>> = Arc::downgrade(&port);
        console.attach(front);
        port
    }

    /// The modem lines that a ready peer holds.
    const CONNECTED: ModemStatus = ModemStatus::CTS.union(ModemStatus::DSR).union(ModemStatus::DCD);

    /// Back to the state after a master reset, as on a reset of the machine. Scratch
    /// register and divisor stay; so does output that waits.
    pub fn reset(&mut self) {
        self.ier = InterruptEnable::empty();
        self.fcr = FifoControl::empty();
        self.lcr = LineControl::empty();
        self.mcr = ModemControl::empty();
        self.msr = Self::CONNECTED;
        self.overrun = false;
        self.thre_pending = false;
        self.clear_receiver();
        self.update_irq();
    }

    fn fifos(&self) -> bool {
        self.fcr.contains(FifoControl::ENABLE)
    }

    fn depth(&self) -> usize {
        if self.fifos() { FIFO_DEPTH } else { 1 }
    }

    fn looped(&self) -> bool {
        self.mcr.contains(ModemControl::LOOP)
    }

    /// Whether nothing comes in. In loopback the input is cut off from the outside (MCR4). And a guest that is
    /// there (DTR) but not ready to receive (RTS) is heeded by who sends, as by a modem: Linux says so where
    /// a terminal with `CRTSCTS` has no room. One that has set neither may know nothing of modems.
    fn is_closed(&self) -> bool {
        let ready = self.mcr & (ModemControl::DTR | ModemControl::RTS);
        self.looped() || ready == ModemControl::DTR
    }

    fn read_register(&mut self, register: u64) -> u8 {
        let dlab = self.lcr.contains(LineControl::DLAB);
        match register {
            RBR_THR_DLL if dlab => self.divisor as u8,
            RBR_THR_DLL => self.read_rbr(),
            IER_DLM if dlab => (self.divisor >> 8) as u8,
            IER_DLM => self.ier.bits(),
            IIR_FCR => self.read_iir(),
            LCR => self.lcr.bits(),
            MCR => self.mcr.bits(),
            LSR => self.read_lsr(),
            MSR => self.read_msr(),
            SCR => self.scr,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, register: u64, value: u8) {
        let dlab = self.lcr.contains(LineControl::DLAB);
        match register {
            RBR_THR_DLL if dlab => self.divisor = self.divisor & 0xff00 | u16::from(value),
            RBR_THR_DLL => self.write_thr(value),
            IER_DLM if dlab => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            IER_DLM => self.write_ier(InterruptEnable::from_bits_truncate(value)),
            IIR_FCR => self.write_fcr(FifoControl::from_bits_truncate(value)),
            LCR => self.lcr = LineControl::from_bits_retain(value),
            MCR => self.write_mcr(ModemControl::from_bits_truncate(value)),
            // LSR is for reading only, but for factory tests.
            LSR | MSR => {}
            SCR => self.scr = value,
            _ => {}
        }
    }

    // Receiver.

    fn read_rbr(&mut self) -> u8 {
        let value = self.rx.pop_front();
        self.timeout_pending = false;
        if self.rx.is_empty() {
            self.timeout_at = None;
            self.console.accept_input();
        } else {
            self.expect_timeout();
        }
        self.update_irq();
        value.unwrap_or(0)
    }

    /// Puts characters that came in where the guest finds them.
    fn take_in(&mut self, data: &[u8]) {
        for &byte in data {
            if self.rx.len() < self.depth() {
                self.rx.push_back(byte);
            } else {
                // The FIFO keeps what it has; without it the new character overwrites.
                self.overrun = true;
                if !self.fifos() {
                    self.rx.clear();
                    self.rx.push_back(byte);
                }
            }
        }
        self.timeout_pending = false;
        self.expect_timeout();
        self.update_irq();
    }

    /// Counts the character timeout from now on.
    fn expect_timeout(&mut self) {
        if !self.fifos() || self.rx.is_empty() {
            return;
        }
        let character_ns =
            self.lcr.bits_per_character() * 16 * u64::from(self.divisor.max(1)) * 1_000_000_000
                / CLOCK_HZ;
        let at = self.clock.now().saturating_add((4 * character_ns).min(MAX_TIMEOUT_NS));
        // A timer that is set for earlier finds the new time when it expires. Guests read byte
        // after byte; setting it each time would cost more than the read.
        if self.timeout_at.replace(at).is_none_or(|earlier| at < earlier) {
            self.timer.arm(at);
        }
    }

    fn clear_receiver(&mut self) {
        self.rx.clear();
        self.timeout_pending = false;
        self.timeout_at = None;
        self.console.accept_input();
    }

    // Transmitter.

    fn write_thr(&mut self, byte: u8) {
        self.thre_pending = false;
        if self.looped() {
            self.update_irq();
            self.take_in(&[byte]);
        } else if !self.tx.is_empty() || self.console.write(&[byte]) == 0 {
            // A guest that does not wait for THRE loses what it writes, as on the real part.
            if self.tx.len() < self.depth() {
                self.tx.push_back(byte);
            }
        }
        if self.tx.is_empty() {
            // Down and up: the next character makes the next edge.
            self.update_irq();
            self.thre_pending = true;
        }
        self.update_irq();
    }

    pub(crate) fn drain_transmitter(&mut self) {
        if self.tx.is_empty() {
            return;
        }
        while !self.tx.is_empty() {
            let sent = self.console.write(self.tx.as_slices().0);
            if sent == 0 {
                return;
            }
            self.tx.drain(..sent);
        }
        self.thre_pending = true;
        self.update_irq();
    }

    // Control and status.

    fn write_ier(&mut self, ier: InterruptEnable) {
        let enabled = ier.difference(self.ier);
        self.ier = ier;
        if enabled.contains(InterruptEnable::ETBEI) && self.tx.is_empty() {
            self.thre_pending = true;
        }
        self.update_irq();
    }

    fn write_fcr(&mut self, fcr: FifoControl) {
        // A change of the enable bit clears both FIFOs, and the other bits count only when the
        // FIFOs are enabled.
        let toggled = (fcr ^ self.fcr).contains(FifoControl::ENABLE);
        let clears = |which| toggled || fcr.contains(FifoControl::ENABLE) && fcr.contains(which);
        if clears(FifoControl::RCVR_RESET) {
            self.clear_receiver();
        }
        if clears(FifoControl::XMIT_RESET) && !self.tx.is_empty() {
            self.tx.clear();
            self.thre_pending = true;
        }
        self.fcr = if fcr.contains(FifoControl::ENABLE) {
            fcr.difference(FifoControl::RCVR_RESET | FifoControl::XMIT_RESET)
        } else {
            FifoControl::empty()
        };
        self.update_irq();
    }

    fn write_mcr(&mut self, mcr: ModemControl) {
        let was_closed = self.is_closed();
        self.mcr = mcr;
        let lines = if self.looped() {
            // The outputs are wired to the inputs (MCR4).
            [
                (ModemControl::RTS, ModemStatus::CTS),
                (ModemControl::DTR, ModemStatus::DSR),
                (ModemControl::OUT1, ModemStatus::RI),
                (ModemControl::OUT2, ModemStatus::DCD),
            ]
            .into_iter()
            .filter(|(output, _)| mcr.contains(*output))
            .fold(ModemStatus::empty(), |lines, (_, input)| lines | input)
        } else {
            Self::CONNECTED
        };
        self.set_modem_lines(lines);
        if was_closed && !self.is_closed() {
            self.console.accept_input();
        }
        self.update_irq();
    }

    fn set_modem_lines(&mut self, lines: ModemStatus) {
        let before = self.msr.difference(ModemStatus::DELTA);
        let changed = before ^ lines;
        let mut delta = self.msr & ModemStatus::DELTA;
        for (line, bit) in [
            (ModemStatus::CTS, ModemStatus::DCTS),
            (ModemStatus::DSR, ModemStatus::DDSR),
            (ModemStatus::DCD, ModemStatus::DDCD),
        ] {
            if changed.contains(line) {
                delta |= bit;
            }
        }
        if before.difference(lines).contains(ModemStatus::RI) {
            delta |= ModemStatus::TERI;
        }
        self.msr = lines | delta;
    }

    fn read_lsr(&mut self) -> u8 {
        let mut lsr = LineStatus::empty();
        lsr.set(LineStatus::DR, !self.rx.is_empty());
        lsr.set(LineStatus::OE, std::mem::take(&mut self.overrun));
        lsr.set(LineStatus::THRE | LineStatus::TEMT, self.tx.is_empty());
        if lsr.contains(LineStatus::OE) {
            self.update_irq();
        }
        lsr.bits()
    }

    fn read_msr(&mut self) -> u8 {
        let msr = self.msr;
        self.msr = msr.difference(ModemStatus::DELTA);
        if msr.intersects(ModemStatus::DELTA) {
            self.update_irq();
        }
        msr.bits()
    }

    // Interrupts.

    fn read_iir(&mut self) -> u8 {
        let interrupt = self.interrupt();
        if interrupt == Some(Interrupt::HoldingEmpty) {
            self.thre_pending = false;
            self.update_irq();
        }
        let fifos = if self.fifos() { IIR_FIFOS } else { 0 };
        fifos | interrupt.map_or(IIR_NONE, |interrupt| interrupt as u8)
    }

    /// The most urgent of the interrupts that are pending and enabled.
    fn interrupt(&self) -> Option<Interrupt> {
        let enabled = |bit| self.ier.contains(bit);
        let trigger = if self.fifos() { self.fcr.trigger_level() } else { 1 };
        if enabled(InterruptEnable::ELSI) && self.overrun {
            Some(Interrupt::LineStatus)
        } else if enabled(InterruptEnable::ERBFI) && self.rx.len() >= trigger {
            Some(Interrupt::DataAvailable)
        } else if enabled(InterruptEnable::ERBFI) && self.timeout_pending {
            Some(Interrupt::CharacterTimeout)
        } else if enabled(InterruptEnable::ETBEI) && self.thre_pending {
            Some(Interrupt::HoldingEmpty)
        } else if enabled(InterruptEnable::EDSSI) && self.msr.intersects(ModemStatus::DELTA) {
            Some(Interrupt::ModemStatus)
        } else {
            None
        }
    }

    /// Drives the interrupt line. A PC gates it with OUT2; QEMU does not, and some kernels that
    /// were only ever run there leave OUT2 off, so neither does this.
    pub(crate) fn update_irq(&mut self) {
        let level = self.interrupt().is_some();
        if level != self.irq_level {
            self.irq_level = level;
            self.irq.set_level(level);
        }
    }
}

/// Wider accesses are those of an 8-bit ISA card: byte by byte, upwards.
impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (register, byte) in (offset..).zip(data) {
            *byte = self.read_register(register);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (register, byte) in (offset..).zip(data) {
            self.write_register(register, *byte);
        }
    }
}

impl FrontEndMut for Serial {
    fn can_receive(&mut self) -> usize {
        // What comes waits where it is.
        if self.is_closed() { 0 } else { self.depth().saturating_sub(self.rx.len()) }
    }

    fn receive(&mut self, data: &[u8]) {
        self.take_in(data);
    }

    fn room(&mut self) {
        self.drain_transmitter();
    }
}

impl Expire for Serial {
    fn expired(&mut self, _deadline: u64) {
        match self.timeout_at {
            Some(at) if at <= self.clock.now() => {
                self.timeout_at = None;
                self.timeout_pending = !self.rx.is_empty();
                self.update_irq();
            }
            Some(at) => self.timer.arm(at),
            None => {}
        }
    }
}
