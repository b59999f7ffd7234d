//! A guest that means harm cannot harm the accelerator.

use crate::case::{Case, case};
use crate::hostile::{Hostile, LOAD, PROGRESS, image};
use crate::layout::{ROM, port};
use crate::start::Start::Prot32;

pub fn cases() -> Vec<Case> {
    [1u64, 0x1234_5678_9abc_def1]
        .into_iter()
        .map(|seed| {
            case(format!("hostile: nonsense everywhere, seed {seed:#x}"), Prot32, move |g| {
                let mut plan = Hostile { seed, rounds: 2_000, ..Hostile::default() };
                // The test's own ports and device would show up in the outcome.
                plan.spared_ports.extend(0xe0..=0xf7);
                plan.windows.retain(|&(start, _)| start != 0xc000_0000);
                plan.windows.push((0xe000_0000, 0x1000_0000));
                plan.exit_port = port::EXIT.into();
                g.write(LOAD.into(), &image(&plan));
                g.state(|state| state.rip = u64::from(LOAD) + 32);
                // An INIT that it sends by chance leads to the reset vector: OUT to the exit port.
                g.write(ROM + 0xfff0, &[0xe6, port::EXIT, 0xeb, 0xfe]);
                // The random part may be its end.
                g.ends_anyhow();
                g.want_memory(PROGRESS.into(), 4, 2);
                Ok(())
            })
        })
        .collect()
}
