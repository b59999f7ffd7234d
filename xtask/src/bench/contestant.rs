//! What is compared, and how each is started.

use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::bed::Bed;
use super::facts;
use super::workload::{Guest, KernelForm};

/// Where a workload runs.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Contestant {
    /// On this machine itself.
    Native,
    /// In a guest under QEMU's TCG.
    Tcg,
    /// In a guest under Lodge's engine.
    Lodge,
}

/// All of them, in the order of the table.
pub const ALL: [Contestant; 3] = [Contestant::Native, Contestant::Tcg, Contestant::Lodge];

/// QEMU's program.
pub const QEMU: &str = "qemu-system-x86_64";
/// What both guests are given.
pub const MEMORY_MIB: &str = "1024";

/// The console is for results: the kernel may speak only of what ends it.
const QUIET: &str = "console=ttyS0 quiet loglevel=1 panic=-1";

impl Contestant {
    /// Its name on the command line and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Contestant::Native => "native",
            Contestant::Tcg => "tcg",
            Contestant::Lodge => "lodge",
        }
    }

    /// The command that runs a plan; it prints what the driver says.
    pub fn run_plan(self, bed: &Bed, plan: &Path, initrd: &Path, guest: Guest) -> Command {
        let cmdline = format!("{QUIET} rdinit=/bench/driver");
        let files = bed.path("files.raw");
        let scratch = (guest == Guest::WithDevices).then(|| bed.path("scratch.raw"));
        let processors = guest.processors();
        match self {
            Contestant::Native => native(bed, plan),
            Contestant::Tcg => {
                let mut command = qemu("pc", processors);
                command.arg("-kernel").arg(&bed.kernel).arg("-initrd").arg(initrd);
                command.args(["-append", &cmdline]);
                for disk in [&bed.disk, &files] {
                    command.arg("-drive");
                    command.arg(format!("file={},format=raw,if=virtio,readonly=on", escape(disk)));
                }
                if let Some(scratch) = scratch {
                    command.args([
                        "-netdev",
                        "user,id=net",
                        "-device",
                        "virtio-net-pci,netdev=net",
                    ]);
                    command.arg("-drive");
                    command.arg(format!("file={},format=raw,if=virtio", escape(&scratch)));
                }
                command
            }
            Contestant::Lodge => {
                let mut command = lodge(bed, processors);
                command.arg("--kernel").arg(&bed.kernel).arg("--initrd").arg(initrd);
                command.args(["--cmdline", &cmdline]);
                command.args(["--net", if scratch.is_some() { "user" } else { "none" }]);
                for disk in [&bed.disk, &files] {
                    command.arg("--disk").arg(format!("{},format=raw,readonly", escape(disk)));
                }
                if let Some(scratch) = scratch {
                    command.arg("--disk").arg(format!("{},format=raw", escape(&scratch)));
                }
                command
            }
        }
    }

    /// A workload's command, with where the server and the disk to write to are.
    pub fn fill(self, command: &str, server: u16) -> String {
        let (host, scratch) = match self {
            Contestant::Native => ("127.0.0.1", "/mnt/scratch"),
            // The gateway of both user-mode networks.
            Contestant::Tcg | Contestant::Lodge => ("10.0.2.2", "/dev/vdc"),
        };
        command.replace("{server}", &format!("{host}:{server}")).replace("{scratch}", scratch)
    }

    /// The command that starts a kernel with the smallest first program; `None` natively.
    pub fn start_kernel(self, bed: &Bed, form: KernelForm) -> Option<Command> {
        let (kernel, machine) = match form {
            KernelForm::BzImage => (bed.kernel.clone(), "pc"),
            KernelForm::Vmlinux => (bed.path("vmlinux"), "microvm"),
        };
        let initrd = bed.path("boot.cpio");
        let mut cmdline = QUIET.to_owned();
        // With nothing but the PIT to measure the TSC by, as on a microvm, kernels fail to do so on
        // a busy machine, and hang. So they are told.
        if let (KernelForm::Vmlinux, Some(khz)) = (form, tsc_khz()) {
            cmdline += &format!(" tsc_early_khz={khz}");
        }
        match self {
            Contestant::Native => None,
            Contestant::Tcg => {
                let mut command = qemu(machine, 1);
                command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
                command.args(["-append", &cmdline]);
                Some(command)
            }
            Contestant::Lodge => {
                let mut command = lodge(bed, 1);
                command.args(["--net", "none"]);
                command.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
                command.args(["--cmdline", &cmdline]);
                Some(command)
            }
        }
    }

    /// The command that starts all of Debian; `None` natively. Writes go nowhere that matters.
    pub fn start_debian(self, bed: &Bed) -> Option<Command> {
        const CMDLINE: &str = "root=/dev/vda rw console=ttyS0";
        let disk = escape(&bed.disk);
        match self {
            Contestant::Native => None,
            Contestant::Tcg => {
                let mut command = qemu("pc", 1);
                command.arg("-kernel").arg(&bed.kernel).arg("-initrd").arg(&bed.initrd);
                command.args(["-append", CMDLINE, "-drive"]);
                command.arg(format!("file={disk},format=raw,if=virtio,snapshot=on"));
                Some(command)
            }
            Contestant::Lodge => {
                let overlay = bed.path("overlay.qcow2");
                // Of a run that was interrupted; a new one is made.
                let _ = std::fs::remove_file(&overlay);
                let mut command = lodge(bed, 1);
                command.args(["--net", "none"]);
                command.arg("--kernel").arg(&bed.kernel).arg("--initrd").arg(&bed.initrd);
                command.args(["--cmdline", CMDLINE, "--disk"]);
                command.arg(format!("{disk},format=raw,overlay={}", escape(&overlay)));
                Some(command)
            }
        }
    }
}

/// A comma within a path is written twice, by QEMU and by Lodge.
pub fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// The image's own programs on this machine: in a directory with the image's files, and in
/// namespaces of their own, so that nothing of it is left.
pub fn native(bed: &Bed, plan: &Path) -> Command {
    let mut command = dies_with_us("KILL", "unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child"]);
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.arg(bed.path("programs/driver")).arg("native");
    command.arg(bed.path("native")).arg(bed.path("files")).arg(plan);
    command
}

fn qemu(machine: &str, processors: u32) -> Command {
    let mut command = dies_with_us("KILL", QEMU);
    command.args(["-machine", machine, "-accel", "tcg", "-cpu", "max"]);
    command.args(["-smp", &processors.to_string()]);
    command.args(["-m", MEMORY_MIB, "-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-no-reboot", "-serial", "stdio"]);
    command
}

fn lodge(bed: &Bed, processors: u32) -> Command {
    let mut command = dies_with_us("TERM", &bed.lodge.display().to_string());
    command.env("LODGE_HOME", &bed.dir);
    command.args(["run", "--accel", "soft", "--cpus", &processors.to_string()]);
    command.args(["--memory", MEMORY_MIB]);
    command
}

/// The rate of the TSC, where it has a constant one: "bogomips" is twice that in MHz.
fn tsc_khz() -> Option<u32> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    if !facts::field(&cpuinfo, "flags")?.split(' ').any(|flag| flag == "constant_tsc") {
        return None;
    }
    let bogomips: f64 = facts::field(&cpuinfo, "bogomips")?.parse().ok()?;
    Some((bogomips * 500.0) as u32).filter(|khz| *khz > 0)
}

/// A command that ends when this program does, in whichever way.
pub fn dies_with_us(signal: &str, program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal, program]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
