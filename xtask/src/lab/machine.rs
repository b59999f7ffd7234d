//! The emulators that a lab's machine is to be had from.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command};

use anyhow::bail;
use clap::ValueEnum;

use super::system::{System, which};
use super::{bochs, qemu};

/// An emulator of a processor with hardware virtualization.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Machine {
    /// AMD-V, by QEMU: quick, all jobs
    #[default]
    Qemu,
    /// Intel VT-x, by Bochs: exact, slow, the conformance suite only
    Bochs,
    /// The same, on a processor that scales the TSC, for what is about that (--filter "tsc: ")
    BochsScaling,
}

/// A machine that was started.
pub struct Running {
    pub child: Child,
    /// What goes to the second serial port.
    pub keyboard: Box<dyn Write + Send>,
    /// What comes from it.
    pub screen: Box<dyn Read + Send>,
}

impl Machine {
    /// Whether it can be had here.
    pub fn find(self) -> anyhow::Result<()> {
        match self {
            Self::Qemu => which("qemu-system-x86_64").map(drop),
            Self::Bochs | Self::BochsScaling => {
                let program = Path::new("/usr/bin/bochs-bin");
                let mut files = bochs::FIRMWARE.iter().map(Path::new).chain([program]);
                match files.find(|file| !file.is_file()) {
                    Some(file) => bail!(
                        "there is no {}: run scripts/install-lab-deps --bochs",
                        file.display()
                    ),
                    None => Ok(()),
                }
            }
        }
    }

    /// The half of KVM that its processor wants.
    pub fn kvm_module(self) -> &'static str {
        match self {
            Self::Qemu => "kernel/arch/x86/kvm/kvm-amd",
            Self::Bochs | Self::BochsScaling => "kernel/arch/x86/kvm/kvm-intel",
        }
    }

    /// What the runner of the conformance suite is told. In Bochs time passes with instructions, so
    /// that a busy host takes none from it.
    pub fn conform_arguments(self) -> &'static str {
        match self {
            Self::Qemu => "--emulated --patience 1200",
            Self::Bochs | Self::BochsScaling => "--patience 600",
        }
    }

    /// Starts the system with a job. `settings` are variables of its script.
    pub fn start(
        self,
        system: &System,
        dir: &Path,
        job: &str,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Running> {
        match self {
            Self::Qemu => qemu::start(system, dir, job, &cmdline(job, settings)),
            // Broadwell is the newest of Bochs's models without AVX-512.
            Self::Bochs => start_bochs(system, dir, job, settings, "broadwell_ult"),
            Self::BochsScaling => start_bochs(system, dir, job, settings, "corei7_skylake_x"),
        }
    }
}

fn start_bochs(
    system: &System,
    dir: &Path,
    job: &str,
    settings: &[(&str, &str)],
    model: &str,
) -> anyhow::Result<Running> {
    // Counting to find the processor's speed takes long, and tells nothing. With AVX-512, Bochs
    // gives sizes of the state that Linux finds inconsistent, so that it would use no XSAVE.
    let more = "quiet lpj=4000000 clearcpuid=avx512f,pku";
    let cmdline = format!("{} {more}", cmdline(job, settings));
    bochs::start(system, dir, job, &cmdline, model)
}

/// The kernel's command line.
pub fn cmdline(job: &str, settings: &[(&str, &str)]) -> String {
    // Where the host has no time for it, the kernel would find that its timer does not work.
    let mut cmdline =
        format!("console=ttyS0 panic=-1 mitigations=off no_timer_check LAB_JOB={job}");
    for (name, value) in settings {
        // Quotes keep blanks together (Documentation/admin-guide/kernel-parameters.rst).
        cmdline.push_str(&format!(" {name}=\"{value}\""));
    }
    cmdline
}

/// A program that ends with this one, in whatever way that ends.
pub fn bound(program: &str) -> anyhow::Result<Command> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(which(program)?);
    Ok(command)
}
