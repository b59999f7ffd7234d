//! The interpreter's blocks, code that changes itself included, against single steps.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lodge_fuzz::guest::{Mode, Program, compare_with_steps};

fuzz_target!(|program: Program<'_>| {
    let mode = match program.mode {
        Mode::Real | Mode::Protected16 => program.mode,
        _ => Mode::Protected32,
    };
    compare_with_steps(&Program { mode, interrupts: Vec::new(), ..program });
});
