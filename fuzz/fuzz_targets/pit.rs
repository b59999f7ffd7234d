//! The 8254.
#![no_main]

use arbitrary::Arbitrary;
use irqchip::Pit;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    Read(u8),
    Write(u8, u8),
    Read61,
    Write61(u8),
    /// Guest time passes.
    Wait {
        ns: u32,
        scale: u8,
    },
    /// Guest time comes to the next deadline.
    Expire,
    Reset,
}

fuzz_target!(|steps: Vec<Step>| {
    let mut pit = Pit::new();
    let mut now = 0u64;
    for step in &steps {
        match *step {
            Step::Read(port) => drop(pit.read(port & 3, now)),
            Step::Write(port, value) => pit.write(port & 3, value, now),
            Step::Read61 => drop(pit.read_port61(now)),
            Step::Write61(value) => pit.write_port61(value, now),
            // Up to 18 years in all.
            Step::Wait { ns, scale } => {
                now = (now + (u64::from(ns) << (scale % 24))).min(1 << 59);
            }
            Step::Expire => now = now.max(pit.next_deadline().unwrap_or(now)).min(1 << 59),
            Step::Reset => pit.reset(),
        }
        pit.poll(now).levels().for_each(drop);
        if let Some(deadline) = pit.next_deadline() {
            // A deadline that has passed leads to a next one.
            let mut later = pit.clone();
            later.poll(deadline.max(now));
            assert!(later.next_deadline().is_none_or(|next| next > deadline), "{pit:?}");
        }
    }
});
