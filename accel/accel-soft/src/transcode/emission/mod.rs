//! What guest instructions are emitted as, compared with listings in `tests/golden`.
//!
//! A change of what is emitted makes these tests print how. If it was meant, `LODGE_BLESS=1` in the
//! environment of `cargo test -p accel-soft emission` writes the listings anew, for the change to be
//! read in the repository's difference.

/// Blocks, each ended by a semicolon, of instructions as [`CodeAssembler`] has them.
macro_rules! blocks {
    ($setting:expr => $($($($name:ident($($arg:expr),*)).+),+;)*) => {
        [$({
            let mut a = CodeAssembler::new(super::bits($setting)).expect("there is such a mode");
            $(a$(.$name($($arg),*))+.expect("the instruction exists");)+
            a.assemble(super::START).expect("the block is assembled")
        }),*]
    };
}

macro_rules! golden {
    ($($name:ident, $setting:expr => { $($blocks:tt)* })*) => {
        $(#[test]
        fn $name() {
            super::compare(stringify!($name), $setting, &blocks! { $setting => $($blocks)* });
        })*
    };
}

mod blocks;
mod blocks32;
mod listing;

use std::fmt::Write as _;
use std::path::PathBuf;

use checker::Violation;
use iced_x86::{Decoder, DecoderOptions, Instruction};
use x86::View;

use super::proof::Proof;
use super::translate::{Common, Offer, Setting, Translated, Translator};

/// Where guest code begins in its page.
const START: u64 = 0x100;
/// Where a block lies in code memory.
const BASE: u32 = 0x1_0000;
/// The number of the first exit.
const FIRST_EXIT: u32 = 100;

/// Where common code lies in code memory: any places will do.
const COMMON: Common = Common {
    leave: 0x100,
    leave_mirrored: 0x140,
    leave_with_flags: 0x150,
    crossing: 0x180,
    load_vectors: 0x200,
    second_level: [[0x300, 0x310], [0x320, 0x330], [0x340, 0x350]],
    second_jumps: [0x400, 0x410, 0x420, 0x430],
    strings: [
        [0x500, 0x502, 0x504, 0x506, 0x508, 0x50a],
        [0x510, 0x512, 0x514, 0x516, 0x518, 0x51a],
        [0x520, 0x522, 0x524, 0x526, 0x528, 0x52a],
    ],
};

/// A program's, with all there is.
const USER: Setting = Setting {
    view: View::User,
    vectors: 3,
    time: true,
    narrow: false,
    is_32bit: false,
    mirrored: false,
};
/// The same where its memory is mirrored.
const MIRRORED: Setting = Setting { mirrored: true, ..USER };
/// A kernel's.
const KERNEL: Setting = Setting { view: View::Supervisor, ..USER };
/// A 32-bit program's.
const USER32: Setting = Setting { is_32bit: true, ..USER };
/// A 32-bit kernel's.
const KERNEL32: Setting = Setting { is_32bit: true, ..KERNEL };

/// How many bits code of this setting has.
fn bits(setting: Setting) -> u32 {
    setting.word() as u32 * 8
}

/// Guest and host have everything.
struct Everything;

impl Offer for Everything {
    fn has(&mut self, _insn: &Instruction, _is_vector: bool) -> bool {
        true
    }
}

/// Translates blocks of guest code and lists what comes out.
struct Emission {
    translator: Translator,
    proof: Proof,
}

impl Emission {
    fn new() -> Self {
        Self { translator: Translator::new(), proof: Proof::new() }
    }

    /// A line for the guest's instructions, and those of what they become.
    fn of(&mut self, code: &[u8], setting: Setting) -> String {
        let insns: Vec<Instruction> =
            Decoder::with_ip(bits(setting), code, START, DecoderOptions::NONE)
                .into_iter()
                .collect();
        let mut text = listing::guest(&insns);
        let result =
            self.translator.translate(&insns, setting, BASE, FIRST_EXIT, COMMON, &mut Everything);
        match result {
            Some(translated) => {
                if let Err(violation) = self.check(&translated, setting) {
                    let _ = writeln!(text, "    REFUSED: {violation}");
                }
                text.push_str(&listing::host(&self.translator, &translated, setting));
            }
            None => text.push_str("    left to the interpreter\n"),
        }
        text
    }

    fn check(&mut self, translated: &Translated, setting: Setting) -> Result<(), Violation> {
        self.proof.check(&self.translator, translated, setting, BASE, FIRST_EXIT, COMMON)
    }
}

/// Compares what blocks are emitted as with the listing of this name.
#[track_caller]
fn compare(name: &str, setting: Setting, blocks: &[Vec<u8>]) {
    let mut emission = Emission::new();
    let found: Vec<String> = blocks.iter().map(|code| emission.of(code, setting)).collect();
    let found = found.join("\n");
    assert!(!found.contains("REFUSED"), "the checker refuses translations:\n{found}");

    let path: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "tests", "golden", &format!("{name}.txt")].iter().collect();
    if std::env::var_os("LODGE_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(&path, found).expect("the listing is written");
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == found,
        "{}: emitted code differs\n{}if that is meant: LODGE_BLESS=1 cargo test -p accel-soft emission",
        path.display(),
        listing::difference(&expected, &found),
    );
}

#[test]
fn a_difference_names_the_block_and_the_lines() {
    let before = "inc ecx\n    one\n    two\n    three\n\ndec ecx\n    one\n";
    let after = "inc ecx\n    one\n    2\n    three\n\ndec ecx\n    one\n\nneg ecx\n    four\n";
    let expected = "inc ecx\n     one\n-    two\n+    2\n     three\n+neg ecx\n+    four\n";
    assert_eq!(listing::difference(before, after), expected);
    assert_eq!(listing::difference(after, after), "");
}
