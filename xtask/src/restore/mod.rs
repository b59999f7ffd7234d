//! Measures how soon guests are there, started or restored from a snapshot, and what memory clones
//! take: `cargo xtask restore`.

mod lodge;
mod qemu;

use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use guest_tests::Lab;
use guest_tests::small::Small;

/// Measure starts, restores and clones of a small guest, side by side with QEMU
///
/// Debian's kernel with one program is started, a snapshot is made, and the guest is restored from it
/// again and again, by turns with QEMU (TCG, -incoming from a file) where that is installed: each time
/// until the program has answered. Lodge's guest answers by its socket device; QEMU has none without
/// /dev/vhost-vsock, so that its guest answers at the serial port. The snapshots' files are in the page
/// cache.
#[derive(Parser, Debug)]
#[command(
    bin_name = "cargo xtask restore",
    after_help = "\
Examples:
  cargo xtask restore                          20 rounds with a guest of 256 MiB
  cargo xtask restore --memory 1024 --clones 20"
)]
pub struct Arguments {
    /// How often each is measured
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// The guest's memory, in MiB
    #[arg(long, value_name = "MIB", default_value = "256", value_parser = clap::value_parser!(u32).range(64..=65536))]
    memory: u32,
    /// How many clones, whose memory is measured
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=1000))]
    clones: u32,
}

/// Measures, and prints a table.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let lab = Lab::debian().context("there is no image to take a kernel from")?;
    let small = Small::make(&lab).context("a small guest cannot be made here")?;
    let memory = format!("{}M", arguments.memory);
    let lodge = lodge::Lodge::new(&lab, &small, &memory);
    let mut starts = [const { Vec::new() }; 2];
    for _ in 0..arguments.rounds {
        let lodge::Started { returned, since_start } = lodge.start()?;
        starts[0].push(returned);
        starts[1].push(since_start);
    }
    lodge.prepare()?;
    let qemu = qemu::Qemu::prepare(&lab, &small, arguments.memory)?;
    let mut restores = [const { Vec::new() }; 3];
    for _ in 0..arguments.rounds {
        let restored = lodge.restore()?;
        restores[0].push(restored.answered);
        restores[1].push(restored.returned);
        if let Some(qemu) = &qemu {
            restores[2].push(qemu.restore()?);
        }
    }
    drop(qemu);
    println!("{:<58} {:>8} {:>8}", "", "median", "least");
    let [started, since_start] = starts;
    let [answered, returned, qemu] = restores;
    for (what, mut times) in [
        ("`lodge run -d` returns", started),
        ("`lodge run -d` returns, from the guest's start", since_start),
        ("`lodge snapshot restore` until the first answer", answered),
        ("`lodge snapshot restore` returns", returned),
        ("QEMU -incoming until the first answer", qemu),
    ] {
        times.sort();
        if let (Some(median), Some(least)) = (times.get(times.len() / 2), times.first()) {
            println!("{what:<58} {:>5.1} ms {:>5.1} ms", ms(*median), ms(*least));
        }
    }
    let mut memory = lodge.clones(arguments.clones)?;
    memory.sort_by(|a, b| a.own.total_cmp(&b.own));
    if let Some(median) = memory.get(memory.len() / 2) {
        let lodge::Memory { own, mapped, share } = median;
        println!("{:<58} {own:>4.1} MiB", "memory of an idle clone, its own");
        println!("{:<58} {mapped:>4.1} MiB", "with pages of files that it alone has mapped");
        println!("{:<58} {share:>4.1} MiB", "with its share of what others have mapped as well");
    }
    lab.close();
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
        assert_eq!(Arguments::try_parse_from(["restore"]).unwrap().memory, 256);
    }
}
