//! A US keyboard with 101 keys (IBM PS/2 Hardware Interface Technical Reference, "Keyboards
//! (101- and 102-Key)").

use std::collections::VecDeque;

use bus::BadState;
use serde::{Deserialize, Serialize};

/// How many bytes of scan codes a keyboard keeps.
const BUFFER: usize = 16;
/// How many bytes of answers it may owe; a host that sends more commands than it reads answers
/// loses the oldest.
const ANSWERS: usize = 16;

mod spec {
    pub const SET_LEDS: u8 = 0xed;
    pub const ECHO: u8 = 0xee;
    pub const SCAN_CODE_SET: u8 = 0xf0;
    pub const READ_ID: u8 = 0xf2;
    pub const SET_TYPEMATIC: u8 = 0xf3;
    pub const ENABLE: u8 = 0xf4;
    pub const DEFAULT_DISABLE: u8 = 0xf5;
    pub const SET_DEFAULT: u8 = 0xf6;
    pub const SET_ALL_KEYS_FIRST: u8 = 0xf7;
    pub const SET_ALL_KEYS_LAST: u8 = 0xfa;
    pub const SET_KEY_FIRST: u8 = 0xfb;
    pub const SET_KEY_LAST: u8 = 0xfd;
    pub const RESEND: u8 = 0xfe;
    pub const RESET: u8 = 0xff;

    pub const ACK: u8 = 0xfa;
    pub const SELF_TEST_PASSED: u8 = 0xaa;
    pub const ID: [u8; 2] = [0xab, 0x83];
    /// In set 2, the next byte names a released key.
    pub const BREAK: u8 = 0xf0;
    /// In set 1, a released key.
    pub const BREAK_BIT: u8 = 0x80;
}

/// A scan code set that keys are reported in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CodeSet {
    One = 1,
    Two = 2,
}

/// What of a keyboard is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyboardState {
    scanning: bool,
    /// The scan code set: 1 or 2.
    set: u8,
    awaits_parameter: Option<u8>,
    answers: Vec<u8>,
    keys: Vec<u8>,
    last_sent: u8,
    translating_break: bool,
}

/// The keyboard.
#[derive(Debug)]
pub struct Keyboard {
    scanning: bool,
    set: CodeSet,
    /// A command whose parameter comes next.
    awaits_parameter: Option<u8>,
    answers: VecDeque<u8>,
    /// Scan codes in the keyboard's set.
    keys: VecDeque<u8>,
    last_sent: u8,
    /// The controller's translation has seen F0 and not what follows.
    translating_break: bool,
}

impl Keyboard {
    pub fn new() -> Self {
        Self {
            scanning: true,
            set: CodeSet::Two,
            awaits_parameter: None,
            answers: VecDeque::new(),
            keys: VecDeque::new(),
            last_sent: 0,
            translating_break: false,
        }
    }

    /// Its state now.
    pub fn save(&self) -> KeyboardState {
        KeyboardState {
            scanning: self.scanning,
            set: self.set as u8,
            awaits_parameter: self.awaits_parameter,
            answers: self.answers.iter().copied().collect(),
            keys: self.keys.iter().copied().collect(),
            last_sent: self.last_sent,
            translating_break: self.translating_break,
        }
    }

    /// Takes over a state.
    pub fn restore(&mut self, state: KeyboardState) -> Result<(), BadState> {
        if state.answers.len() > ANSWERS || state.keys.len() > BUFFER {
            return Err(BadState::new("the keyboard holds more than it can"));
        }
        *self = Self {
            scanning: state.scanning,
            set: match state.set {
                1 => CodeSet::One,
                2 => CodeSet::Two,
                _ => return Err(BadState::new("the keyboard has no such scan codes")),
            },
            awaits_parameter: state.awaits_parameter,
            answers: state.answers.into(),
            keys: state.keys.into(),
            last_sent: state.last_sent,
            translating_break: state.translating_break,
        };
        Ok(())
    }

    /// Takes whole scan codes of set 2.
    pub fn key(&mut self, codes: &[u8]) {
        if !self.scanning || self.keys.len().saturating_add(codes.len()) > BUFFER {
            return;
        }
        let mut released = false;
        for &code in codes {
            match self.set {
                CodeSet::Two => self.keys.push_back(code),
                CodeSet::One => self.keys.extend(translate(code, &mut released)),
            }
        }
    }

    /// Takes a byte that the host sends.
    pub fn command(&mut self, value: u8) {
        match (self.awaits_parameter.take(), value) {
            // What looks like a command is one, even in place of a parameter.
            (_, spec::SET_LEDS..) => self.start(value),
            (Some(spec::SCAN_CODE_SET), 0) => self.answer(&[spec::ACK, self.set as u8]),
            (Some(spec::SCAN_CODE_SET), 1) => self.use_set(CodeSet::One),
            (Some(spec::SCAN_CODE_SET), 2) => self.use_set(CodeSet::Two),
            (Some(spec::SCAN_CODE_SET), _) | (None, _) => self.answer(&[spec::RESEND]),
            // LEDs, repeat rate and key types: there is nobody to see them.
            (Some(_), _) => self.answer(&[spec::ACK]),
        }
    }

    fn start(&mut self, command: u8) {
        match command {
            spec::ECHO => self.answer(&[spec::ECHO]),
            spec::READ_ID => self.answer(&[spec::ACK, spec::ID[0], spec::ID[1]]),
            spec::ENABLE => {
                self.scanning = true;
                self.keys.clear();
                self.answer(&[spec::ACK]);
            }
            spec::DEFAULT_DISABLE | spec::SET_DEFAULT => {
                self.set_default();
                self.scanning = command == spec::SET_DEFAULT;
                self.answer(&[spec::ACK]);
            }
            spec::SET_ALL_KEYS_FIRST..=spec::SET_ALL_KEYS_LAST => self.answer(&[spec::ACK]),
            spec::SET_LEDS
            | spec::SCAN_CODE_SET
            | spec::SET_TYPEMATIC
            | spec::SET_KEY_FIRST..=spec::SET_KEY_LAST => {
                self.awaits_parameter = Some(command);
                self.answer(&[spec::ACK]);
            }
            spec::RESEND => self.answer(&[self.last_sent]),
            spec::RESET => {
                self.set_default();
                self.answers.clear();
                self.answer(&[spec::ACK, spec::SELF_TEST_PASSED]);
            }
            _ => self.answer(&[spec::RESEND]),
        }
    }

    fn set_default(&mut self) {
        self.scanning = true;
        self.set = CodeSet::Two;
        self.keys.clear();
    }

    fn use_set(&mut self, set: CodeSet) {
        self.set = set;
        self.keys.clear();
        self.answer(&[spec::ACK]);
    }

    fn answer(&mut self, bytes: &[u8]) {
        self.answers.extend(bytes);
        let surplus = self.answers.len().saturating_sub(ANSWERS);
        self.answers.drain(..surplus);
    }

    /// The next byte for the controller's output buffer. `translated`: the controller turns set 2
    /// into set 1.
    pub fn next(&mut self, translated: bool) -> Option<u8> {
        loop {
            let byte = self.answers.pop_front().or_else(|| self.keys.pop_front())?;
            self.last_sent = byte;
            if !translated {
                return Some(byte);
            }
            if let Some(byte) = translate(byte, &mut self.translating_break) {
                return Some(byte);
            }
        }
    }
}

/// One byte of set 2 in set 1. The prefix of a released key becomes a bit of the next byte.
fn translate(byte: u8, released: &mut bool) -> Option<u8> {
    if byte == spec::BREAK {
        *released = true;
        return None;
    }
    let code = SET_2_TO_1.get(usize::from(byte)).copied().unwrap_or(byte);
    Some(if std::mem::take(released) { code | spec::BREAK_BIT } else { code })
}

/// The controller's translation table. Bytes beyond it stay as they are.
#[rustfmt::skip]
const SET_2_TO_1: [u8; 0x85] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
    0x80, 0x81, 0x82, 0x41, 0x54,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_translates_well_known_keys() {
        // A, Enter, Esc, space, left shift, F7, F1, keypad 0: set 2 and set 1.
        for (two, one) in [
            (0x1c, 0x1e),
            (0x5a, 0x1c),
            (0x76, 0x01),
            (0x29, 0x39),
            (0x12, 0x2a),
            (0x83, 0x41),
            (0x05, 0x3b),
            (0x70, 0x52),
        ] {
            assert_eq!(translate(two, &mut false), Some(one));
            assert_eq!(translate(two, &mut true), Some(one | 0x80));
        }
        assert_eq!(translate(0xe0, &mut false), Some(0xe0));
        assert_eq!(translate(0xfa, &mut false), Some(0xfa));
        // Each key of set 1 has one key of set 2, but for F7 and SysRq, which have two codes.
        let mut seen = [0; 256];
        SET_2_TO_1.iter().for_each(|one| seen[usize::from(*one)] += 1);
        let twice: Vec<_> = (0..256).filter(|n| seen[*n] > 1).collect();
        assert_eq!(twice, [0x41, 0x54]);
    }
}
