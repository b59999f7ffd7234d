//! The keyboard controller Intel 8042 (as in the IBM PS/2 and after) with a keyboard at its first
//! port. Nothing is plugged into the second port, for a mouse.

mod keyboard;
mod snapshot;
mod spec;

#[cfg(test)]
mod tests;

use bus::BusDevice;
use irqchip::IrqLine;

use crate::{A20, PowerRequest, PowerSender};
use keyboard::Keyboard;
use spec::*;

/// Offset of the data port (60h) in the device.
pub const DATA: u64 = 0;
/// Offset of the status and command port (64h) in the device; see [`crate::At`].
pub const COMMAND: u64 = 4;

/// Where a byte in the output buffer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Source {
    /// The controller or the keyboard: IRQ 1.
    Keyboard,
    /// As if from the mouse: IRQ 12.
    Aux,
}

/// The controller. Attach it at port 60h (one port), and `At::new(i8042, COMMAND)` at port 64h.
pub struct I8042 {
    // Wiring.
    keyboard_irq: IrqLine,
    aux_irq: IrqLine,
    a20: A20,
    power: PowerSender,

    // Volatile state.
    keyboard: Keyboard,
    /// The controller's RAM. Byte 0 is the command byte.
    ram: [u8; 32],
    status: Status,
    /// What the guest reads next at port 60h.
    output: Option<(u8, Source)>,
    /// The controller's answer while the output buffer still held something.
    answer: Option<(u8, Source)>,
    /// A command whose parameter the guest writes next to port 60h.
    awaits_parameter: Option<u8>,
    keyboard_irq_level: bool,
    aux_irq_level: bool,
}

impl I8042 {
    /// The controller as firmware leaves it: self-test passed, translation on. The lines are ISA
    /// interrupts 1 and 12.
    pub fn new(keyboard_irq: IrqLine, aux_irq: IrqLine, a20: A20, power: PowerSender) -> Self {
        Self {
            keyboard_irq,
            aux_irq,
            a20,
            power,
            keyboard: Keyboard::new(),
            ram: Self::initial_ram(),
            status: Self::INITIAL_STATUS,
            output: None,
            answer: None,
            awaits_parameter: None,
            keyboard_irq_level: false,
            aux_irq_level: false,
        }
    }

    const INITIAL_STATUS: Status = Status::SYS.union(Status::UNLOCKED);

    fn initial_ram() -> [u8; 32] {
        let command = CommandByte::KEYBOARD_INTERRUPT
            | CommandByte::SYS
            | CommandByte::AUX_DISABLE
            | CommandByte::TRANSLATE;
        let mut ram = [0; 32];
        ram[0] = command.bits();
        ram
    }

    /// Back to the state after firmware's start.
    pub fn reset(&mut self) {
        self.keyboard = Keyboard::new();
        self.ram = Self::initial_ram();
        self.status = Self::INITIAL_STATUS;
        self.output = None;
        self.answer = None;
        self.awaits_parameter = None;
        self.a20.set(true);
        self.update();
    }

    /// Sends keys: whole scan codes of set 2, as `1C` and `F0 1C` for the pressed and released
    /// A. A keyboard whose buffer is full drops them, as real ones do.
    pub fn key(&mut self, scan_codes: &[u8]) {
        self.keyboard.key(scan_codes);
        self.update();
    }

    fn command_byte(&self) -> CommandByte {
        CommandByte::from_bits_retain(self.ram[0])
    }

    fn command(&mut self, command: u8) {
        self.status.insert(Status::COMMAND);
        self.awaits_parameter = None;
        let set = |byte: &mut u8, bit: CommandByte, on: bool| {
            *byte = if on { *byte | bit.bits() } else { *byte & !bit.bits() };
        };
        match command {
            0x20..=0x3f => self.answer(self.ram[usize::from(command & 0x1f)]),
            0x60..=0x7f => self.awaits_parameter = Some(command),
            TEST_PASSWORD => self.answer(NO_PASSWORD),
            DISABLE_AUX => set(&mut self.ram[0], CommandByte::AUX_DISABLE, true),
            ENABLE_AUX => set(&mut self.ram[0], CommandByte::AUX_DISABLE, false),
            TEST_AUX | TEST_KEYBOARD => self.answer(INTERFACE_GOOD),
            SELF_TEST => {
                self.status.insert(Status::SYS);
                self.answer(SELF_TEST_PASSED);
            }
            DISABLE_KEYBOARD => set(&mut self.ram[0], CommandByte::KEYBOARD_DISABLE, true),
            ENABLE_KEYBOARD => set(&mut self.ram[0], CommandByte::KEYBOARD_DISABLE, false),
            READ_INPUT_PORT => self.answer(INPUT_UNLOCKED),
            READ_OUTPUT_PORT => self.answer(self.output_port().bits()),
            WRITE_OUTPUT_PORT | WRITE_KEYBOARD_BUFFER | WRITE_AUX_BUFFER | WRITE_AUX => {
                self.awaits_parameter = Some(command);
            }
            DISABLE_A20 => self.a20.set(false),
            ENABLE_A20 => self.a20.set(true),
            PULSE..=0xff => {
                // A zero in bits 3 to 0 pulses that line of the output port.
                if command & OutputPort::NOT_RESET.bits() == 0 {
                    self.power.send(PowerRequest::Reset);
                }
            }
            _ => tracing::debug!("unknown keyboard controller command {command:#x}"),
        }
        self.update();
    }

    fn data(&mut self, value: u8) {
        self.status.remove(Status::COMMAND);
        match self.awaits_parameter.take() {
            None => {
                // Writing to the keyboard enables it.
                self.ram[0] &= !CommandByte::KEYBOARD_DISABLE.bits();
                self.keyboard.command(value);
            }
            Some(command @ 0x60..=0x7f) => self.ram[usize::from(command & 0x1f)] = value,
            Some(WRITE_OUTPUT_PORT) => {
                let port = OutputPort::from_bits_retain(value);
                self.a20.set(port.contains(OutputPort::A20));
                if !port.contains(OutputPort::NOT_RESET) {
                    self.power.send(PowerRequest::Reset);
                }
            }
            Some(WRITE_KEYBOARD_BUFFER) => self.answer = Some((value, Source::Keyboard)),
            Some(WRITE_AUX_BUFFER) => self.answer = Some((value, Source::Aux)),
            Some(WRITE_AUX) => {
                // Nobody answers: "transmit time-out" and FEh in the buffer (IBM PS/2 technical
                // reference, keyboard and auxiliary device controller).
                self.status.insert(Status::TIMEOUT);
                self.answer = Some((RESEND, Source::Aux));
            }
            Some(_) => {}
        }
        self.update();
    }

    fn answer(&mut self, value: u8) {
        self.answer = Some((value, Source::Keyboard));
    }

    fn read_data(&mut self) -> u8 {
        let value = self.output.take().map_or(0, |(value, _)| value);
        self.status.remove(Status::TIMEOUT);
        self.set_irqs(); // down, so that the next byte makes an edge
        self.update();
        value
    }

    fn output_port(&self) -> OutputPort {
        let mut port = OutputPort::NOT_RESET | OutputPort::IDLE;
        port.set(OutputPort::A20, self.a20.is_open());
        port.set(OutputPort::KEYBOARD_FULL, matches!(self.output, Some((_, Source::Keyboard))));
        port.set(OutputPort::AUX_FULL, matches!(self.output, Some((_, Source::Aux))));
        port
    }

    /// Fills the output buffer, and drives the interrupt lines.
    fn update(&mut self) {
        if self.output.is_none() {
            self.output = self.answer.take();
        }
        if self.output.is_none() && !self.command_byte().contains(CommandByte::KEYBOARD_DISABLE) {
            let translate = self.command_byte().contains(CommandByte::TRANSLATE);
            self.output = self.keyboard.next(translate).map(|value| (value, Source::Keyboard));
        }
        self.set_irqs();
    }

    fn set_irqs(&mut self) {
        let drive = |line: &IrqLine, was: &mut bool, level: bool| {
            if std::mem::replace(was, level) != level {
                line.set_level(level);
            }
        };
        let command = self.command_byte();
        let source = self.output.map(|(_, source)| source);
        let keyboard =
            source == Some(Source::Keyboard) && command.contains(CommandByte::KEYBOARD_INTERRUPT);
        let aux = source == Some(Source::Aux) && command.contains(CommandByte::AUX_INTERRUPT);
        drive(&self.keyboard_irq, &mut self.keyboard_irq_level, keyboard);
        drive(&self.aux_irq, &mut self.aux_irq_level, aux);
    }

    fn read_status(&self) -> u8 {
        let mut status = self.status;
        status.set(Status::OUTPUT_FULL, self.output.is_some());
        status.set(Status::AUX_FULL, matches!(self.output, Some((_, Source::Aux))));
        status.bits()
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(byte) = data.first_mut() {
            match offset {
                DATA => *byte = self.read_data(),
                COMMAND => *byte = self.read_status(),
                _ => {}
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data.first()) {
            (DATA, Some(&value)) => self.data(value),
            (COMMAND, Some(&value)) => self.command(value),
            _ => {}
        }
    }
}
