//! What keeps the guest busy.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, bail};

use crate::bench::bed::Bed;
use crate::bench::contestant;

/// A shell command that prints one line, which is always the same. It runs in a directory of its own,
/// again and again; `/mnt` has the benchmarks' files.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// What it is called.
    pub name: &'static str,
    command: &'static str,
    expected: Expected,
}

/// What a job has to print.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// What it prints on this machine.
    AsHere,
    /// This. The command is about the guest.
    Text(&'static str),
}

const fn job(name: &'static str, command: &'static str) -> Job {
    Job { name, command, expected: Expected::AsHere }
}

const fn about_guest(name: &'static str, command: &'static str, text: &'static str) -> Job {
    Job { name, command, expected: Expected::Text(text) }
}

/// All of them; they run at the same time.
pub const JOBS: &[Job] = &[
    job("compile", "gcc -O2 -DPARTS=1 -c /mnt/middle.c -o middle.o && sha256sum < middle.o"),
    job(
        "hash",
        "for sum in sha1 sha256 sha512 sha3-256 blake2b512; do \
         openssl dgst -$sum -r < /mnt/corpus || exit 1; done | sha256sum",
    ),
    job(
        "encrypt",
        "openssl enc -aes-256-ctr -K 0123 -iv 45 < /mnt/corpus > secret 2> /dev/null && \
         openssl enc -d -aes-256-ctr -K 0123 -iv 45 < secret 2> /dev/null | cmp - /mnt/corpus && \
         sha256sum < secret",
    ),
    job(
        "forks",
        "i=0; while [ $i -lt 40 ]; do for j in 1 2 3 4 5; do (expr $i \\* 8 + $j) & done; wait; \
         i=$((i + 1)); done | sort -n | sha256sum",
    ),
    job("python", "python3 /mnt/nbody.py 2000 && sha256sum < result"),
    job(
        "processes",
        "python3 -c \"from multiprocessing import Pool; from hashlib import sha256; \
         print(sha256(str(Pool(3).map(bin, range(20000))).encode()).hexdigest())\"",
    ),
    job("database", "rm -f insert.db; sh /mnt/insert.sh 5000 && cat result"),
    job("select", "sh /mnt/select.sh 3000 && cat result"),
    job(
        "compress",
        "head -c 1000000 /mnt/corpus | gzip -n > c.gz && gunzip < c.gz | \
         cmp -n 1000000 - /mnt/corpus && sha256sum < c.gz",
    ),
    job("disk", "head -c 16000000 /mnt/random > copy && sync copy && sha256sum < copy && rm copy"),
    // Programs lie elsewhere in memory when they are read again, where other code was before.
    about_guest("recycle", "sleep 4; echo 3 > /proc/sys/vm/drop_caches && echo ok", "ok"),
    about_guest("network", "python3 /run/soak/network.py $PORT", "ok"),
    about_guest(
        "kernel",
        "sleep 5; dmesg | grep -cE 'BUG:|Oops|WARNING:|general protection|invalid opcode|\
         soft lockup|rcu.*stall|hung_task|blocked for more than|segfault|traps:|Call Trace|\
         I/O error|Out of memory' || true",
        "0",
    ),
];

/// What each job has to print.
pub type Answers = BTreeMap<&'static str, String>;

/// Asks this machine, by the image's own programs.
pub fn answers(bed: &Bed) -> anyhow::Result<Answers> {
    let mut plan = String::new();
    let mut answers = Answers::new();
    for job in JOBS {
        match job.expected {
            Expected::Text(text) => {
                answers.insert(job.name, text.to_owned());
            }
            Expected::AsHere => {
                let Job { name, command, .. } = job;
                let _ = writeln!(plan, "{name}\t600\t\t({command}) > answer\tcat answer");
            }
        }
    }
    let path = bed.path("soak.plan");
    std::fs::write(&path, plan).with_context(|| format!("cannot write {}", path.display()))?;
    let output = contestant::native(bed, &path).output().context("cannot run unshare")?;
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text.lines() {
        let check = line.strip_prefix("@bench check ").and_then(|rest| rest.split_once(" ok "));
        if let Some((name, answer)) = check
            && let Some(job) = JOBS.iter().find(|job| job.name == name)
        {
            answers.insert(job.name, answer.trim().to_owned());
        }
    }
    for job in JOBS {
        if answers.get(job.name).is_none_or(String::is_empty) {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("{} fails on this machine itself:\n{text}{errors}", job.name);
        }
    }
    Ok(answers)
}

/// The script that does all of them, until a line comes on its standard input. It says a line for
/// each round: `@soak round NAME STATUS ANSWER`, at last `@soak over`.
pub fn script(port: u16) -> String {
    let mut script = format!(
        "exec 2> /dev/null\n\
         stty -echo\n\
         dmesg --console-off\n\
         kill -s RTMIN+21 1\n\
         export LC_ALL=C PORT={port}\n\
         mkdir -p /run/soak\n\
         cat > /run/soak/network.py <<'END'\n{}END\n\
         mount -o ro,noload /dev/disk/by-id/virtio-files /mnt\n\
         {TOUCH_MEMORY}\
         do_job() {{\n\
             mkdir -p /var/tmp/soak/$1 && cd /var/tmp/soak/$1\n\
             while [ ! -e /run/soak/stop ]; do\n\
                 answer=$(sh -c \"$2\" 2> errors)\n\
                 status=$?\n\
                 [ $status = 0 ] || answer=\"$answer: $(tail -n 1 errors)\"\n\
                 printf '@soak round %s %s %s\\n' $1 $status \"$answer\"\n\
             done\n\
         }}\n\
         printf '@soak %s\\n' ready\n",
        include_str!("../../soak/network.py"),
    );
    for job in JOBS {
        let command = job.command.replace('\'', "'\\''");
        let _ = writeln!(script, "do_job {} '{command}' < /dev/null &", job.name);
    }
    script += "read line\ntouch /run/soak/stop\nwait\nprintf '@soak %s\\n' over\npoweroff\n";
    script
}

/// Uses most of the guest's memory once. From then on the VMM holds it, and whatever it holds more
/// is its own.
const TOUCH_MEMORY: &str = "size=$(awk '/^MemAvailable/ { print int($2 * 0.85) }' /proc/meminfo)\n\
     mount -o remount,size=95% /dev/shm\n\
     head -c ${size}K /dev/zero > /dev/shm/fill; rm /dev/shm/fill\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_single_words_and_commands_single_lines() {
        for job in JOBS {
            assert!(!job.name.contains(' '), "{}", job.name);
            assert!(!job.command.contains(['\n', '\t']), "{}", job.name);
        }
    }

    #[test]
    fn the_script_is_one_that_a_shell_understands() {
        let script = script(1234);
        let mut child = std::process::Command::new("sh")
            .arg("-n")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{script}");
    }
}
