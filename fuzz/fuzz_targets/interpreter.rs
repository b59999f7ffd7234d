//! The interpreter: a state that is far from usual, damaged tables, interrupts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lodge_fuzz::guest::{Program, run};

fuzz_target!(|program: Program<'_>| run(&program));
