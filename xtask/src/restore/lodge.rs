//! Lodge's side.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use guest_tests::Lab;
use guest_tests::small::{self, Small, Talk};

use crate::bench::facts;

const GUEST: &str = "small";
const SNAPSHOT: &str = "ready";
/// How long a clone may be left alone until it counts as idle.
const SETTLE: Duration = Duration::from_secs(2);

/// The guest, and how it is made.
pub struct Lodge<'a> {
    lab: &'a Lab,
    small: &'a Small,
    memory: &'a str,
}

/// How long a start took.
pub struct Started {
    /// Until the command was over.
    pub returned: Duration,
    /// How much of that was after the guest's start, at most.
    pub since_start: Duration,
}

/// How long a restore took.
pub struct Restored {
    /// Until the guest's first answer.
    pub answered: Duration,
    /// Until the command was over.
    pub returned: Duration,
}

/// Memory in MiB.
pub struct Memory {
    /// What it has changed, or has made (Pss_Dirty of smaps: translated code, which is mapped twice, counts once).
    pub own: f64,
    /// With pages of files that nobody else has mapped (Private_Clean): the host may forget them.
    pub mapped: f64,
    /// With a part of what others have mapped as well (Pss).
    pub share: f64,
}

impl<'a> Lodge<'a> {
    pub fn new(lab: &'a Lab, small: &'a Small, memory: &'a str) -> Self {
        Self { lab, small, memory }
    }

    /// Lodge as a person has it: without the checks that the tests switch on.
    fn lodge(&self) -> Command {
        let mut command = self.lab.lodge();
        command.env_remove("LODGE_CHECK_CODE").stdout(Stdio::null());
        command
    }

    fn say(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let status = self.lodge().args(arguments).status().context("cannot run lodge")?;
        ensure!(status.success(), "lodge {}: {status}", arguments.join(" "));
        Ok(())
    }

    fn directory(&self, guest: &str) -> PathBuf {
        self.lab.path("home/guests").join(guest)
    }

    /// How long `lodge run -d` takes. The guest goes again.
    pub fn start(&self) -> anyhow::Result<Started> {
        let begun = Instant::now();
        self.say(&self.small.run(GUEST, self.memory))?;
        let returned = begun.elapsed();
        // This is asked when the command is over, so that the guest has run for longer than until then.
        let since_start = self.running(GUEST)?;
        self.say(&["rm", "--force", GUEST])?;
        Ok(Started { returned, since_start })
    }

    /// How long ago the guest's processors were started, as its VMM says.
    fn running(&self, guest: &str) -> anyhow::Result<Duration> {
        let mut stream = UnixStream::connect(self.directory(guest).join("api.sock"))?;
        stream.write_all(
            b"GET /v1/statistics HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n",
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("the VMM does not speak HTTP")?;
        let statistics: serde_json::Value = serde_json::from_str(body)?;
        let ns = statistics["running_ns"].as_u64().context("no time in the VMM's statistics")?;
        Ok(Duration::from_nanos(ns))
    }

    /// Starts the guest and makes the snapshot.
    pub fn prepare(&self) -> anyhow::Result<()> {
        self.say(&self.small.run(GUEST, self.memory))?;
        // It has answered once, so that its program has been there.
        Talk::with(&self.directory(GUEST)).ask("count")?;
        self.say(&["snapshot", "create", GUEST, SNAPSHOT])
    }

    /// Restores the guest, which ends before.
    pub fn restore(&self) -> anyhow::Result<Restored> {
        self.say(&["kill", GUEST])?;
        let begun = Instant::now();
        let mut command = self.lodge();
        let mut child = command.args(["snapshot", "restore", GUEST, SNAPSHOT]).spawn()?;
        let over = std::thread::spawn(move || child.wait().map(|status| (status, begun.elapsed())));
        let answer = Talk::with(&self.directory(GUEST)).ask("count")?;
        let answered = begun.elapsed();
        ensure!(answer.count == 2, "it goes on from elsewhere: {answer:?}");
        let (status, returned) = over.join().ok().context("a thread panicked")??;
        ensure!(status.success(), "lodge snapshot restore: {status}");
        Ok(Restored { answered, returned })
    }

    /// The memory of so many clones, each of which has answered and idles. They end then, and the guest.
    pub fn clones(&self, count: u32) -> anyhow::Result<Vec<Memory>> {
        let number = count.to_string();
        self.say(&["clone", GUEST, "--count", &number, "--snapshot", SNAPSHOT])?;
        let names: Vec<String> = (1..=count).map(|n| format!("{GUEST}-{n}")).collect();
        for name in &names {
            Talk::with(&self.directory(name)).ask("count")?;
        }
        std::thread::sleep(SETTLE);
        let memory = names.iter().map(|name| self.memory(name)).collect();
        let all: Vec<&str> =
            ["rm", "--force", GUEST].into_iter().chain(names.iter().map(String::as_str)).collect();
        self.say(&all)?;
        memory
    }

    fn memory(&self, guest: &str) -> anyhow::Result<Memory> {
        let pid = small::vmm(&self.directory(guest)).context("it has no VMM")?;
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let mib = |name| -> anyhow::Result<f64> {
            let value = facts::field(&rollup, name).context("smaps_rollup has another form")?;
            Ok(value.trim_end_matches(" kB").trim().parse::<f64>()? / 1024.0)
        };
        let own = mib("Pss_Dirty")?;
        Ok(Memory { own, mapped: own + mib("Private_Clean")?, share: mib("Pss")? })
    }
}
