//! The decoder and the interpreter: the first byte of the input is the mode, and whether the
//! program runs at privilege level 3; the others are its code.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lodge_fuzz::guest::{Mode, Program, run};

fuzz_target!(|input: &[u8]| {
    let Some((first, code)) = input.split_first() else { return };
    let mode = Mode::ALL[usize::from(first & 7)];
    let user = first & 8 != 0;
    run(&Program { mode, user, patches: Vec::new(), interrupts: Vec::new(), code });
});
