//! The engine against the host's processor.
//!
//! `LODGE_ORACLE_SEED`, `LODGE_ORACLE_FIRST` and `LODGE_ORACLE_CASES` choose other cases than the
//! default ones.

use oracle::run::{Pair, Plan};

const SEED: u64 = 0x10d6e;
const CASES: u64 = 1_000_000;

fn setting(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|_| panic!("{name}={text} is not a number"))
}

#[test]
fn host_and_engine_agree() {
    let plan = Plan {
        seed: setting("LODGE_ORACLE_SEED", SEED),
        first: setting("LODGE_ORACLE_FIRST", 0),
        count: setting("LODGE_ORACLE_CASES", CASES),
        corrupt: None,
    };
    println!("seed {:#x}, {} cases from {}", plan.seed, plan.count, plan.first);
    let report = Pair::new(plan.seed).unwrap().run(&plan).unwrap();
    println!("{}", report.text());
    assert_eq!(report.cases, plan.count);
    assert_eq!(report.mismatches, 0, "host and engine disagree");
}

#[test]
fn a_wrong_result_is_reported() {
    let plan = Plan {
        seed: SEED,
        first: 0,
        count: 64,
        corrupt: Some(|number, outcome| match number {
            0 => outcome.gpr[3] ^= 1 << 40,
            1 => outcome.rflags ^= 1,
            2 => outcome.rip += 1,
            3 => outcome.trap ^= 1,
            4 => outcome.vector.zmm[31][7] ^= 1,
            5 => outcome.vector.k[1] ^= 1 << 63,
            6 => outcome.vector.x87.mxcsr ^= 0x20,
            7 => outcome.vector.x87.st[7][1] ^= 0x8000,
            8 => outcome.vector.x87.ftw ^= 0x80,
            9 => outcome.data[4095] ^= 0x10,
            10 => outcome.fs_base += 1,
            11 => outcome.vector.x87.fsw ^= 0x100,
            _ => {}
        }),
    };
    let honest = Plan { corrupt: None, ..plan };
    let mut pair = Pair::new(plan.seed).unwrap();
    let before = pair.run(&honest).unwrap().mismatches;
    assert_eq!(before, 0, "the cases that are tampered with agree otherwise");
    let report = pair.run(&plan).unwrap();
    assert_eq!(report.mismatches, 12, "{}", report.text());
}
