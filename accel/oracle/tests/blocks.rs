//! The transcoder against the host's processor: sequences of instructions.
//!
//! `LODGE_ORACLE_SEED`, `LODGE_ORACLE_FIRST` and `LODGE_ORACLE_CASES` choose other cases than the
//! default ones, `LODGE_ORACLE_WITHOUT` (codes or mnemonics, as iced names them, with commas between) leaves out
//! instructions, and `LODGE_ORACLE_INTERPRET` has the interpreter run everything.

use accel_soft::Execution;
use iced_x86::Code;
use oracle::blocks::{Blocks, Plan};

const SEED: u64 = 0x10d6e;
const CASES: u64 = 200_000;

fn setting(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|_| panic!("{name}={text} is not a number"))
}

fn execution() -> Execution {
    match std::env::var_os("LODGE_ORACLE_INTERPRET") {
        Some(_) => Execution::Interpret,
        None => Execution::Transcode { after: 0, check: true },
    }
}

fn without() -> Vec<Code> {
    let names = std::env::var("LODGE_ORACLE_WITHOUT").unwrap_or_default().to_lowercase();
    let names = names.split(',').collect::<Vec<_>>();
    let is_named = |name: String| names.contains(&name.to_lowercase().as_str());
    Code::values()
        .filter(|c| is_named(format!("{c:?}")) || is_named(format!("{:?}", c.mnemonic())))
        .collect()
}

/// Runs sequences of 64-bit or 32-bit code on both.
fn compare(bits: u32) {
    let plan = Plan {
        seed: setting("LODGE_ORACLE_SEED", SEED),
        first: setting("LODGE_ORACLE_FIRST", 0),
        count: setting("LODGE_ORACLE_CASES", CASES),
        without: without(),
        corrupt: None,
    };
    println!("seed {:#x}, {} {bits}-bit cases from {}", plan.seed, plan.count, plan.first);
    let report = Blocks::new(bits, plan.seed, execution()).unwrap().run(&plan).unwrap();
    println!("{}", report.text());
    assert_eq!(report.cases, plan.count);
    assert_eq!(report.mismatches, 0, "host and transcoder disagree");
    assert_eq!(accel_soft::refused_blocks(), 0, "the checker refused translated blocks");
    // Each case has a block at least, unless it faults before anything is translated.
    let is_translated = matches!(execution(), Execution::Transcode { .. });
    assert!(!is_translated || report.translations > plan.count / 2, "what ran was not translated");
}

#[test]
fn host_and_transcoder_agree() {
    compare(64);
}

#[test]
fn host_and_transcoder_agree_on_32_bit_code() {
    compare(32);
}

#[test]
fn a_wrong_result_is_reported() {
    let honest = Plan { seed: SEED, first: 0, count: 64, without: Vec::new(), corrupt: None };
    let plan = Plan {
        corrupt: Some(|number, outcome| match number {
            0 => outcome.gpr[3] ^= 1 << 40,
            1 => outcome.rflags ^= 1,
            2 => outcome.rip += 1,
            3 => outcome.trap ^= 1,
            4 => outcome.vector.zmm[31][7] ^= 1,
            5 => outcome.vector.k[1] ^= 1 << 63,
            6 => outcome.data[4095] ^= 0x10,
            9 => outcome.gpr[10] ^= 1,
            _ => {}
        }),
        ..honest.clone()
    };
    let mut blocks = Blocks::new(64, plan.seed, execution()).unwrap();
    let before = blocks.run(&honest).unwrap().mismatches;
    assert_eq!(before, 0, "the cases that are tampered with agree otherwise");
    let report = blocks.run(&plan).unwrap();
    assert_eq!(report.mismatches, 8, "{}", report.text());
}
