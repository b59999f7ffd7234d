//! How much processor time a program and all that it started have used.

use std::collections::BTreeMap;
use std::fs;

/// What Linux counts processor time in, for programs, on every architecture with a `/proc`.
const TICKS_PER_SECOND: f64 = 100.0;

/// One line of `/proc/PID/stat`, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// Of itself and of all children that ended, in the kernel and outside.
    ticks: u64,
}

/// The seconds that this process, its living descendants and the dead that were waited for have
/// used.
pub fn time_of(root: u32) -> f64 {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats: BTreeMap<u32, Stat> = entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read_to_string(entry.path().join("stat")).ok()?;
            Some((pid, parse(&line)?))
        })
        .collect();
    sum(&stats, root) as f64 / TICKS_PER_SECOND
}

/// The fields after the name, which is in brackets and may contain any character (proc(5)).
fn parse(line: &str) -> Option<Stat> {
    let (_, rest) = line.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    // The first of these fields is the third of all: ppid is 4, utime to cstime are 14 to 17.
    let ticks = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(Stat { parent: fields.get(1)?.parse().ok()?, ticks })
}

fn sum(stats: &BTreeMap<u32, Stat>, root: u32) -> u64 {
    let is_below = |mut pid: u32| {
        // Parents come before their children, so that a chain is no longer than the table.
        for _ in 0..stats.len() {
            if pid == root {
                return true;
            }
            match stats.get(&pid) {
                Some(stat) => pid = stat.parent,
                None => return false,
            }
        }
        false
    };
    stats.iter().filter(|(pid, _)| is_below(**pid)).map(|(_, stat)| stat.ticks).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_whatever_the_name() {
        let line = "7 (a) R 1 (b)) S 3 7 7 0 -1 4194304 100 200 0 0 11 22 33 44 20 0 1 0 99";
        assert_eq!(parse(line), Some(Stat { parent: 3, ticks: 110 }));
        assert_eq!(parse("7 (a) S 3"), None);
    }

    #[test]
    fn descendants_count_and_others_do_not() {
        let stat = |parent, ticks| Stat { parent, ticks };
        let stats = BTreeMap::from([
            (1, stat(0, 1000)),
            (5, stat(1, 1)),
            (6, stat(5, 2)),
            (7, stat(6, 4)),
            (8, stat(1, 8)),
        ]);
        assert_eq!(sum(&stats, 5), 7);
        assert_eq!(sum(&stats, 9), 0);
    }

    #[test]
    fn this_process_has_used_some() {
        let mut x = 1u64;
        let begun = time_of(std::process::id());
        while time_of(std::process::id()) <= begun {
            for i in 0..1_000_000u64 {
                x = std::hint::black_box(x.wrapping_mul(31) ^ i);
            }
        }
    }
}
