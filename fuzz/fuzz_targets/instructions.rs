//! The decoder and the interpreter: the input is code, run in each mode.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lodge_fuzz::guest::{Mode, Program, run};

fuzz_target!(|code: &[u8]| {
    for mode in Mode::ALL {
        let code = code.to_vec();
        run(&Program { mode, user: false, patches: Vec::new(), interrupts: Vec::new(), code });
    }
});
