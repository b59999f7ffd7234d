//! What is measured.

/// One workload: a row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it is called in the table.
    pub title: &'static str,
    /// How many times as fast as under TCG it has to be under Lodge, at least; the number itself if
    /// it is [`Unit::Times`].
    pub target: f64,
    /// What it measures, and where.
    pub kind: Kind,
}

/// What a workload measures.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Shell commands in the image. `{n}` in them stands for how much to do.
    Commands(Commands),
    /// The same, on two processors; no part of the mean.
    OnTwo(Commands),
    /// The same, in a guest that has a network card on the user-mode network, where `{server}` is this
    /// benchmark's server, and a disk to write to, `{scratch}`; no part of the mean.
    OnDevices(Commands),
    /// The start of a guest's kernel up to the first program.
    Start(KernelForm),
    /// The memory that a VMM holds when the whole of Debian came to its login prompt.
    Memory,
}

/// A guest in which workloads run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// With one processor and the disks that are read.
    Plain,
    /// With another processor.
    TwoProcessors,
    /// With a network card and a disk to write to.
    WithDevices,
}

impl Guest {
    /// All of them.
    pub const ALL: [Guest; 3] = [Guest::Plain, Guest::TwoProcessors, Guest::WithDevices];

    /// How many processors it has.
    pub fn processors(self) -> u32 {
        if self == Guest::TwoProcessors { 2 } else { 1 }
    }
}

/// The commands of a workload. They run in an empty directory in memory; `/mnt` has the
/// workloads' files.
#[derive(Clone, Copy, Debug)]
pub struct Commands {
    /// How much to do: about half a second's work for a processor of 2025, natively.
    pub count: u32,
    /// In what its result is shown.
    pub unit: Unit,
    /// Done before, not measured: brings programs and files into the page cache.
    pub prepare: &'static str,
    /// What is measured.
    pub work: &'static str,
    /// Done after, not measured: prints what has to be the same everywhere. May be empty.
    pub check: &'static str,
}

/// What a measured number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds: less is better.
    Seconds,
    /// So many of these per second: more is better.
    PerSecond(&'static str),
    /// So many times: more is better.
    Times,
    /// MiB: less is better.
    Mib,
}

/// How the kernel is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelForm {
    /// As Debian ships it; QEMU's machine is a PC.
    BzImage,
    /// Uncompressed; QEMU's machine is a microvm.
    Vmlinux,
}

impl Workload {
    /// Whether the processor time that it took says nothing: it waits more than it works, or is
    /// about two processors.
    pub fn needs_real_time(&self) -> bool {
        self.name == "fio" || matches!(self.kind, Kind::OnTwo(_) | Kind::OnDevices(_))
    }

    /// The commands that are its work, if it is such.
    pub fn commands(&self) -> Option<&Commands> {
        match &self.kind {
            Kind::Commands(commands) | Kind::OnTwo(commands) | Kind::OnDevices(commands) => {
                Some(commands)
            }
            Kind::Start(_) | Kind::Memory => None,
        }
    }

    /// The guest that it runs in.
    pub fn guest(&self) -> Guest {
        match self.kind {
            Kind::OnTwo(_) => Guest::TwoProcessors,
            Kind::OnDevices(_) => Guest::WithDevices,
            _ => Guest::Plain,
        }
    }

    /// Whether quick runs leave it out, unless it is asked for.
    pub fn is_slow(&self) -> bool {
        matches!(self.kind, Kind::Memory)
    }

    /// In what its result is shown.
    pub fn unit(&self) -> Unit {
        match &self.kind {
            Kind::Commands(commands) | Kind::OnTwo(commands) | Kind::OnDevices(commands) => {
                commands.unit
            }
            Kind::Start(_) => Unit::Seconds,
            Kind::Memory => Unit::Mib,
        }
    }
}

const fn commands(
    name: &'static str,
    title: &'static str,
    target: f64,
    commands: Commands,
) -> Workload {
    Workload { name, title, target, kind: Kind::Commands(commands) }
}

/// Data by TCP, between a guest and this machine.
const fn network(name: &'static str, title: &'static str, work: &'static str) -> Workload {
    let prepare = "sh /mnt/devices.sh {server}";
    let check = "cat result";
    let commands = Commands { count: 1024, unit: Unit::Seconds, prepare, work, check };
    Workload { name, title, target: 2.0, kind: Kind::OnDevices(commands) }
}

/// fio, on the disk that it may write to.
const fn disk(name: &'static str, title: &'static str, unit: Unit, work: &'static str) -> Workload {
    // For a native run it is a file, which a guest's disk is too.
    let prepare =
        "[ -e {scratch} ] || head -c 134217728 /mnt/random > {scratch}; cat {scratch} > /dev/null";
    let commands = Commands { count: 20_000, unit, prepare, work, check: "" };
    Workload { name, title, target: 1.5, kind: Kind::OnDevices(commands) }
}

/// A workload of `micro/`.
const fn micro(
    name: &'static str,
    title: &'static str,
    target: f64,
    count: u32,
    work: &'static str,
) -> Workload {
    let prepare = "/mnt/micro getppid 1";
    let check = "cat result";
    commands(name, title, target, Commands { count, unit: Unit::Seconds, prepare, work, check })
}

const MB: Unit = Unit::PerSecond("MB");

/// All of them, in the order of the table.
pub const WORKLOADS: &[Workload] = &[
    commands(
        "sha256",
        "openssl sha256",
        10.0,
        Commands {
            count: 0,
            unit: MB,
            prepare: "openssl sha256 /dev/null",
            work: "openssl speed -mr -elapsed -seconds 1 -bytes 16384 -evp sha256 2>&1 | \
                   awk -F: '/^\\+F/ { rate = $4 / 1e6 } END { print \"rate\", rate }'",
            check: "head -c 1000000 /mnt/corpus | openssl sha256",
        },
    ),
    commands(
        "aes-256-gcm",
        "openssl aes-256-gcm",
        25.0,
        Commands {
            count: 0,
            unit: MB,
            prepare: "openssl sha256 /dev/null",
            work: "openssl speed -mr -elapsed -seconds 1 -bytes 16384 -evp aes-256-gcm 2>&1 | \
                   awk -F: '/^\\+F/ { rate = $4 / 1e6 } END { print \"rate\", rate }'",
            check: "head -c 1000000 /mnt/corpus | openssl enc -aes-256-ctr -K 00 -iv 01 2>/dev/null \
                    | openssl sha256",
        },
    ),
    commands(
        "rsa2048",
        "openssl rsa2048 sign",
        10.0,
        Commands {
            count: 0,
            unit: Unit::PerSecond("signs"),
            prepare: "openssl sha256 /dev/null",
            work: "openssl speed -mr -elapsed -seconds 1 rsa2048 2>&1 | \
                   awk -F: '/^\\+R1/ { rate = $2 / $4 } END { print \"rate\", rate }'",
            check: "",
        },
    ),
    micro("doubles", "double-precision loop", 8.0, 80_000_000, "/mnt/micro doubles {n}"),
    micro("matrix", "matrix product of doubles", 8.0, 300, "/mnt/micro matrix {n}"),
    commands(
        "stress-matrix",
        "stress-ng matrix",
        8.0,
        Commands {
            count: 2800,
            unit: Unit::PerSecond("bogo ops"),
            prepare: "stress-ng --matrix 1 --matrix-ops 14",
            work: "stress-ng --matrix 1 --matrix-ops {n} --metrics 2>&1 | \
                   awk '$4 == \"matrix\" && $6 + 0 > 0 { rate = $9 } END { print \"rate\", rate }'",
            check: "",
        },
    ),
    commands(
        "stress-vecmath",
        "stress-ng vecmath",
        8.0,
        Commands {
            count: 1500,
            unit: Unit::PerSecond("bogo ops"),
            prepare: "stress-ng --vecmath 1 --vecmath-ops 1",
            work: "stress-ng --vecmath 1 --vecmath-ops {n} --metrics 2>&1 | \
                   awk '$4 == \"vecmath\" && $6 + 0 > 0 { rate = $9 } END { print \"rate\", rate }'",
            check: "",
        },
    ),
    commands(
        "python-nbody",
        "Python nbody",
        4.0,
        Commands {
            count: 80_000,
            unit: Unit::Seconds,
            prepare: "python3 /mnt/nbody.py 1",
            work: "python3 /mnt/nbody.py {n}",
            check: "cat result",
        },
    ),
    commands(
        "python-dicts",
        "Python dictionaries",
        4.0,
        Commands {
            count: 800_000,
            unit: Unit::Seconds,
            prepare: "python3 /mnt/dicts.py 1",
            work: "python3 /mnt/dicts.py {n}",
            check: "cat result",
        },
    ),
    commands(
        "python-start",
        "Python start-up",
        4.0,
        Commands {
            count: 40,
            unit: Unit::Seconds,
            prepare: "python3 -c pass",
            work: "i=0; while [ $i -lt {n} ]; do python3 -c pass || exit 1; i=$((i + 1)); done",
            check: "",
        },
    ),
    commands(
        "sqlite-insert",
        "sqlite insert",
        5.0,
        Commands {
            count: 250_000,
            unit: Unit::Seconds,
            prepare: "sh /mnt/insert.sh 1 && rm insert.db",
            work: "sh /mnt/insert.sh {n}",
            check: "cat result",
        },
    ),
    commands(
        "sqlite-select",
        "sqlite select",
        5.0,
        Commands {
            count: 100_000,
            unit: Unit::Seconds,
            prepare: "cat /mnt/select.db > /dev/null && sh /mnt/select.sh 1",
            work: "sh /mnt/select.sh {n}",
            check: "cat result",
        },
    ),
    commands(
        "gcc",
        "gcc compiling a middle-sized file",
        4.0,
        Commands {
            count: 36,
            unit: Unit::Seconds,
            prepare: "gcc -O2 -DPARTS=1 -c /mnt/middle.c -o middle.o",
            work: "gcc -O2 -DPARTS={n} -c /mnt/middle.c -o middle.o",
            check: "sha256sum middle.o",
        },
    ),
    commands(
        "7z-compress",
        "7-Zip compress",
        3.0,
        Commands {
            count: 2_000_000,
            unit: Unit::Seconds,
            prepare: "head -c {n} /mnt/corpus > corpus && 7z i > /dev/null",
            work: "7z a -bso0 -bsp0 -mx5 -mmt1 corpus.7z corpus",
            check: "tail -c +33 corpus.7z | head -c 50000 | sha256sum",
        },
    ),
    commands(
        "7z-decompress",
        "7-Zip decompress",
        2.0,
        Commands {
            count: 15,
            unit: Unit::Seconds,
            prepare: "i=0; while [ $i -lt {n} ]; do cp /mnt/corpus.7z $i.7z; i=$((i + 1)); done; \
                      7z i > /dev/null",
            work: "7z t -bsp0 -mmt1 '*.7z'",
            check: "",
        },
    ),
    micro("copy", "memory copy, 32 MiB", 4.0, 200, "/mnt/micro copy {n}"),
    micro("random-16", "random access, 16 MiB", 2.0, 30_000_000, "/mnt/micro random-16 {n}"),
    micro("random-64", "random access, 64 MiB", 2.0, 20_000_000, "/mnt/micro random-64 {n}"),
    micro("random-256", "random access, 256 MiB", 2.0, 20_000_000, "/mnt/micro random-256 {n}"),
    micro(
        "fork-exec",
        "fork and exec of /bin/true, 2,000 times",
        6.0,
        2_000,
        "/mnt/micro fork-exec {n}",
    ),
    micro("fork-wait", "fork and wait", 3.0, 3_000, "/mnt/micro fork-wait {n}"),
    micro("faults", "page faults", 3.0, 40, "/mnt/micro faults {n}"),
    micro("pipes", "pipe ping-pong", 3.0, 50_000, "/mnt/micro pipes {n}"),
    micro("getppid", "getppid, a million times", 1.5, 1_000_000, "/mnt/micro getppid {n}"),
    micro("integers", "simple integer loop", 1.0, 300_000_000, "/mnt/micro integers {n}"),
    micro("recursion", "recursive calls", 4.0, 8_000, "/mnt/micro recursion {n}"),
    commands(
        "fio",
        "fio 4k random read",
        1.5,
        Commands {
            count: 20_000,
            unit: Unit::PerSecond("reads"),
            prepare: "cat /mnt/random > /dev/null",
            work: "fio --name=read --filename=/mnt/random --readonly --rw=randread --bs=4k --direct=1 \
                   --ioengine=psync --randseed=1 --norandommap --number_ios={n} --output-format=terse \
                   --terse-version=3 | awk -F';' '{ print \"rate\", $8 }'",
            check: "head -c 10000000 /mnt/random | sha256sum",
        },
    ),
    network(
        "net-send",
        "TCP from a guest to this machine, user-mode network",
        "SERVER={server} /mnt/micro net-send {n}",
    ),
    network(
        "net-receive",
        "TCP from this machine to a guest, user-mode network",
        "SERVER={server} /mnt/micro net-receive {n}",
    ),
    disk(
        "disk-read",
        "fio 1M sequential read",
        MB,
        "fio --name=read --filename={scratch} --readonly --rw=read --bs=1M --direct=1 --ioengine=psync \
         --io_size={n}00k --output-format=terse --terse-version=3 | awk -F';' '{ print \"rate\", $7 / 1024 }'",
    ),
    disk(
        "disk-write",
        "fio 1M sequential write",
        MB,
        "fio --name=write --filename={scratch} --rw=write --bs=1M --direct=1 --ioengine=psync \
         --io_size={n}00k --output-format=terse --terse-version=3 | awk -F';' '{ print \"rate\", $48 / 1024 }'",
    ),
    disk(
        "disk-random-write",
        "fio 4k random write",
        Unit::PerSecond("writes"),
        "fio --name=write --filename={scratch} --rw=randwrite --bs=4k --direct=1 --ioengine=psync --randseed=1 \
         --norandommap --number_ios={n} --output-format=terse --terse-version=3 | \
         awk -F';' '{ print \"rate\", $49 }'",
    ),
    Workload {
        name: "start-bzimage",
        title: "kernel start to first program, bzImage (QEMU: PC)",
        target: 2.0,
        kind: Kind::Start(KernelForm::BzImage),
    },
    Workload {
        name: "start-vmlinux",
        title: "kernel start to first program, vmlinux (QEMU: microvm)",
        target: 2.0,
        kind: Kind::Start(KernelForm::Vmlinux),
    },
    Workload {
        name: "two-processors",
        title: "two busy processes on two processors: throughput of one, times",
        target: 1.8,
        kind: Kind::OnTwo(Commands {
            count: 8_000,
            unit: Unit::Times,
            prepare: "/mnt/micro recursion 1",
            work: "/mnt/micro recursion {n} > one && \
                   { /mnt/micro recursion {n} > a & /mnt/micro recursion {n} > b && wait $!; } && \
                   awk '{ t[NR] = $2 } END { \
                       print \"rate\", 2 * t[1] / (t[2] > t[3] ? t[2] : t[3]) }' one a b",
            check: "cat result",
        }),
    },
    Workload {
        name: "memory",
        title: "memory of the VMM at Debian's login prompt",
        target: 1.0,
        kind: Kind::Memory,
    },
];

/// What the geometric mean of all workloads has to be, at least; the kernel's start is apart.
pub const MEAN_TARGET: f64 = 4.0;

/// In quick mode a workload does this part of its work.
pub const QUICK_PART: u32 = 5;

impl Commands {
    /// One of the commands, with how much to do filled in.
    pub fn fill(&self, command: &str, quick: bool) -> String {
        let count = if quick { self.count / QUICK_PART } else { self.count };
        command.replace("{n}", &count.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_fit_the_protocol() {
        let names: BTreeSet<_> = WORKLOADS.iter().map(|workload| workload.name).collect();
        assert_eq!(names.len(), WORKLOADS.len());
        assert!(names.iter().all(|name| !name.contains(char::is_whitespace)));
    }

    #[test]
    fn commands_fit_a_line_of_the_plan() {
        for commands in WORKLOADS.iter().filter_map(Workload::commands) {
            for text in [commands.prepare, commands.work, commands.check] {
                assert!(!text.contains(['\t', '\n']) && text.len() < 1000, "{text}");
            }
            assert!(!commands.work.is_empty());
        }
    }

    #[test]
    fn quick_work_is_a_part_of_the_whole() {
        let gcc = WORKLOADS.iter().find(|workload| workload.name == "gcc").unwrap();
        let commands = gcc.commands().unwrap();
        assert_eq!(commands.fill("-DPARTS={n}", false), "-DPARTS=36");
        assert_eq!(commands.fill("-DPARTS={n}", true), "-DPARTS=7");
    }
}
