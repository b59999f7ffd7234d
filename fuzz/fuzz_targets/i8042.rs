//! The keyboard controller, with keys.
#![no_main]

use arbitrary::Arbitrary;
use chipset::{A20, I8042};
use libfuzzer_sys::fuzz_target;
use lodge_fuzz::registers::{Access, Bus};
use lodge_fuzz::wiring;

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    Access(Access),
    Keys(&'a [u8]),
    Reset,
}

fuzz_target!(|steps: Vec<Step<'_>>| {
    let (power, _requests) = chipset::power_channel().unwrap();
    let mut controller = I8042::new(wiring::line(), wiring::line(), A20::new(), power);
    for step in &steps {
        match step {
            // Ports 60h and 64h.
            Step::Access(access) => access.on(&mut controller, 5, Bus::Ports),
            Step::Keys(codes) => controller.key(codes),
            Step::Reset => controller.reset(),
        }
    }
});
