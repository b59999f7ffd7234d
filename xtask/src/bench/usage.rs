//! How much processor time and memory a program and all that it started use.

use std::collections::BTreeMap;
use std::fs;

use super::facts;

/// What Linux counts processor time in, for programs, on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Process {
    parent: u32,
    /// Seconds of its own threads.
    own: f64,
    /// Seconds of children that ended and were waited for.
    children: f64,
}

/// The seconds that this process, its living descendants and the dead that were waited for have
/// used.
pub fn time_of(root: u32) -> f64 {
    let processes = all();
    let below = descendants(&processes, root);
    // Of threads that ended, as the most do of one that is about to, the process alone knows.
    below
        .map(|(pid, process)| {
            threads_of(pid).map_or(process.own, |time| time.max(process.own)) + process.children
        })
        .sum()
}

/// The bytes of memory that this process and its living descendants hold (VmRSS in proc(5)).
pub fn memory_of(root: u32) -> f64 {
    let processes = all();
    let kib = descendants(&processes, root).map(|(pid, _)| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let value = facts::field(&status, "VmRSS").and_then(|value| value.split(' ').next());
        value.and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0)
    });
    kib.sum::<f64>() * 1024.0
}

fn all() -> BTreeMap<u32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, parse(&fs::read_to_string(entry.path().join("stat")).ok()?)?))
        })
        .collect()
}

/// The time of all living threads, to the nanosecond (Linux's Documentation/scheduler/
/// sched-stats.rst); `None` if the kernel does not tell.
fn threads_of(pid: u32) -> Option<f64> {
    let mut nanoseconds = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        nanoseconds += text.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(nanoseconds as f64 * 1e-9)
}

/// The fields of `/proc/PID/stat` after the name, which is in brackets and may contain any
/// character (proc(5)).
fn parse(line: &str) -> Option<Process> {
    let (_, rest) = line.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    // The first of these fields is the third of all: ppid is 4, utime to cstime are 14 to 17.
    let seconds = |at: usize| -> Option<f64> {
        let ticks: u64 = fields.get(at - 3)?.parse().ok()?;
        Some(ticks as f64 / TICKS_PER_SECOND)
    };
    Some(Process {
        parent: fields.get(1)?.parse().ok()?,
        own: seconds(14)? + seconds(15)?,
        children: seconds(16)? + seconds(17)?,
    })
}

fn descendants(
    processes: &BTreeMap<u32, Process>,
    root: u32,
) -> impl Iterator<Item = (u32, &Process)> {
    let is_below = move |mut pid: u32| {
        // A chain of parents is no longer than the table.
        for _ in 0..processes.len() {
            if pid == root {
                return true;
            }
            match processes.get(&pid) {
                Some(process) => pid = process.parent,
                None => return false,
            }
        }
        false
    };
    processes.iter().map(|(pid, process)| (*pid, process)).filter(move |(pid, _)| is_below(*pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_whatever_the_name() {
        let line = "7 (a) R 1 (b)) S 3 7 7 0 -1 4194304 100 200 0 0 100 50 25 25 20 0 1 0 99";
        assert_eq!(parse(line), Some(Process { parent: 3, own: 1.5, children: 0.5 }));
        assert_eq!(parse("7 (a) S 3"), None);
    }

    #[test]
    fn descendants_count_and_others_do_not() {
        let process = |parent| Process { parent, own: 0.0, children: 0.0 };
        let processes = BTreeMap::from([1, 5, 6, 7, 8].map(|pid| {
            (
                pid,
                process(match pid {
                    1 => 0,
                    5 | 8 => 1,
                    _ => pid - 1,
                }),
            )
        }));
        let below = |root| descendants(&processes, root).map(|(pid, _)| pid).collect::<Vec<_>>();
        assert_eq!(below(5), [5, 6, 7]);
        assert_eq!(below(9), [0u32; 0]);
    }

    #[test]
    fn this_process_holds_memory() {
        assert!(memory_of(std::process::id()) > 100_000.0);
        assert_eq!(memory_of(u32::MAX), 0.0);
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
