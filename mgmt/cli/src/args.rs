//! The command line, and the help that teaches it.

mod affinity;
pub mod agent;
mod balloon;
pub mod disk;
mod folder;
mod gdb;
pub mod hotplug;
mod image;
pub mod lifecycle;
mod net;
mod network;
mod program;
mod rate;
pub mod snapshot;

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vmm_api::{
    Accelerator, BlockConfig, ConsoleConfig, CpuModel, CpuShare, DiskFormat, DiskLimits, OnFull,
    Rate, SandboxMode,
};

use crate::{size, stats};
pub use affinity::AffinityArg;
use agent::{CopyArgs, ExecArgs, SshArgs};
pub use balloon::BalloonArgs;
use disk::DiskCommand;
pub use folder::FolderArgs;
pub use gdb::GdbArg;
pub use image::ImageCommand;
use lifecycle::{
    ConsoleArgs, CreateArgs, EventsArgs, ListArgs, LogsArgs, Names, RemoveArgs, RenameArgs,
    StartArgs, StopArgs,
};
pub use lifecycle::{ShellArg, StatsArgs};
pub use net::{ForwardArg, NetArg};
pub use network::{NetworkCommand, reach};
pub use program::{ImageArg, ProgramArgs};
use rate::{BURST_ALONE, parse_bandwidth, parse_bytes};
use snapshot::{CloneArgs, SnapshotCommand};

const EXAMPLES: &str = "\
Examples:
  lodge image build debian:12              build a Debian 12 image (once)
  lodge run debian:12                      start a fresh guest from it, here
  lodge run debian:12 --cpus 2 --memory 1G -p 2222:22
  lodge run oci:./app.tar -p 8080:80       a guest that runs the program of an OCI image
  lodge run --kernel bzImage --initrd initrd.img --cmdline console=ttyS0
  lodge run -d debian:12 --name web        start one in the background
  lodge ps                                 what runs; with --all, what is there
  lodge console web                        its console; Ctrl-] q leaves it
  lodge exec -it web -- bash               a shell in it; `lodge cp` copies files
  lodge stop web                           have it switch itself off
  lodge snapshot create web before         keep it as it is now; `snapshot restore web before`
  lodge stats web                          why the guest web is slow
  lodge network create lab                 a network between guests: `lodge run ... --net lab`
  lodge check                              what this machine can do, and why not";

const EXIT_STATUS: &str = "\
Exit status:
  0    done; for `run`: the guest switched itself off or was stopped by you
  any  for `run` of an OCI image: that of its program; 126 and 127 if it cannot be run or is not there
  odd  for `run`: the guest's own status, from its debug exit port
  2    the command line or the configuration asks for what cannot be
  4    a file is missing, damaged or not what it should be
  6    this host does not allow or does not have what is needed
  8    a mistake in Lodge itself
  128+N  ended by signal N
  Commands that take several guests go on after a failure and end with the status of the first.

Files:
  Images and guests are kept in $LODGE_HOME, by default ~/.local/share/lodge.";

const RUN_EXAMPLES: &str = "\
Examples:
  lodge run -d debian:12 --name web
      A guest in the background, which stays until `lodge rm web`: `lodge console web` is its
      console, `lodge logs web` what it wrote, `lodge stop web` and `lodge start web` what they say.
  lodge run debian:12
      A fresh guest on a copy of the image; what it writes is gone when it ends.
  lodge run debian:12 --name web --keep
      A guest named web that keeps its disk. `lodge run --name web` continues it,
      `lodge rm web` removes it.
  lodge run debian:12 -p 8080:80 -p 127.0.0.1:5353:53/udp
      Ports of this machine that lead into the guest.
  lodge run -d debian:12 --name db --net lab
      A guest on the network that `lodge network create lab` has made.
  lodge run debian:12 --net bridge=br0 --net user
      Two cards: one on the bridge br0 of this machine, one on a private network with a way out.
  lodge run debian:12 --disk data.qcow2 --disk cd.iso,readonly
      More disks, which appear as /dev/vdb and /dev/vdc and are written in place.
  lodge run debian:12 -v ./site:/srv/www:ro -v ~/work:/work
      Folders of this machine, which the guest sees at /srv/www and /work; the first it can only read.
  lodge run --kernel vmlinuz --initrd initrd.img --cmdline 'console=ttyS0 root=/dev/vda' --disk d.raw
      No image: a kernel and disks of your own. ELF and multiboot kernels work too.
  lodge run oci:./layout -e DEBUG=1 -- /bin/sh -c 'exit 7'
      A machine of its own for the program of an OCI image: an image layout, an archive of one or of
      `docker save`. The program's exit status is that of `lodge run`.
  lodge run debian:12 --gdb 1234 --gdb-wait
      Before its first instruction, the guest waits for `target remote :1234` in gdb.

The console: the guest's serial port is connected to this terminal.
  Ctrl-] q        have the guest switch itself off; once more, end it at once
  Ctrl-] Ctrl-]   send one Ctrl-] to the guest";

/// Guests for every x86-64 Linux machine, with or without hardware virtualization.
#[derive(Parser, Debug)]
#[command(name = "lodge", version, after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{EXIT_STATUS}"))]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Start a guest and connect this terminal to its console
    #[command(after_help = RUN_EXAMPLES, after_long_help = format!("{RUN_EXAMPLES}\n\n{EXIT_STATUS}"))]
    Run(Box<RunArgs>),
    /// Build, import and look after guest images
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Make disk images, change them and look at them; give running guests disks
    Disk {
        #[command(subcommand)]
        command: DiskCommand,
    },
    /// Make, list and remove networks that connect guests; give running guests cards
    Network {
        #[command(subcommand)]
        command: NetworkCommand,
    },
    /// Make a guest without starting it
    #[command(after_help = "\
Example:
  lodge create debian:12 --name web --memory 2G
  lodge start web

What the guest is made of is in guest.toml in its directory (`lodge inspect web` says where), which may
be edited while it does not run.")]
    Create(Box<CreateArgs>),
    /// Start guests that are there, in the background
    Start(StartArgs),
    /// List guests: those that run, or all
    #[command(after_help = "\
Examples:
  lodge ps
  lodge ps --all --filter state=crashed
  lodge rm $(lodge ps --all --quiet --filter state=stopped)")]
    Ps(ListArgs),
    /// List all guests, as `ps --all` does
    Ls(ListArgs),
    /// Have guests switch themselves off, and end by force those that do not
    Stop(StopArgs),
    /// End guests at once, like pulling the plug
    Kill(Names),
    /// Stop guests and start them again
    Restart(StopArgs),
    /// Have guests stand still; they do not notice it
    Pause(Names),
    /// Have paused guests go on
    Resume(Names),
    /// Remove guests and their disks
    Rm(RemoveArgs),
    /// Give a guest that does not run another name
    Rename(RenameArgs),
    /// Print what a guest wrote to its console
    #[command(after_help = "\
The newest one to two MiB are kept, over restarts, until the guest is removed.")]
    Logs(LogsArgs),
    /// Connect this terminal to the console of a running guest
    #[command(after_help = "\
Any number of terminals may be connected at once. Keys:
  Ctrl-] q        leave the console; the guest runs on
  Ctrl-] Ctrl-]   send one Ctrl-] to the guest")]
    Console(ConsoleArgs),
    /// Run a command in a guest
    #[command(after_help = "\
Examples:
  lodge exec web -- uname -a
  lodge exec -it web -- bash                    a shell, with a terminal
  lodge exec -u lodge -w /tmp -e LANG=C web -- sh -c 'echo $LANG; pwd; id'
  lodge exec -i web -- tar -x -C /srv < site.tar

It goes through the agent in the guest: no network, no login. A guest that is just starting is waited
for. Ctrl-C and other signals go to the command.

Exit status: the command's; 128+N if signal N ended it; 127 if there is no such command and 126 if it cannot
be run; 255 if Lodge cannot run anything there.")]
    Exec(ExecArgs),
    /// Copy files and directories into and out of a guest
    #[command(after_help = "\
Examples:
  lodge cp site.conf web:/etc/nginx/conf.d/
  lodge cp web:/var/log ./logs
  lodge cp site/. web:/srv/www                  what is in the directory site
  tar -c a b | lodge cp - web:/srv              an archive, unpacked there
  lodge cp web:/etc - | tar -t

Directories are copied with all that is in them; permissions and times stay, owners do not: in the guest, files
are root's. A path in a guest begins at its root.")]
    Cp(CopyArgs),
    /// Log in to a guest with ssh, without any network
    #[command(after_help = "\
Examples:
  lodge ssh web
  lodge ssh root@web systemctl --failed

This runs ssh(1), which reaches the guest's sshd through Lodge's agent. The images that Lodge builds have no sshd;
this adds one:  lodge image build debian:12 --force --include openssh-server")]
    Ssh(SshArgs),
    /// Have a guest give memory back to this machine, or have it again
    #[command(after_help = balloon::EXAMPLES)]
    Balloon(BalloonArgs),
    /// Print all that is known of guests as JSON
    Inspect(Names),
    /// Print what happens to guests: starts, ends, resets, pauses
    Events(EventsArgs),
    /// Keep guests as they are at a moment, memory and disks together, and go back there
    #[command(after_help = snapshot::EXAMPLES)]
    Snapshot {
        #[command(subcommand)]
        command: SnapshotCommand,
    },
    /// Start copies of a guest that go on where it is
    #[command(after_help = snapshot::CLONE_EXAMPLES)]
    Clone(CloneArgs),
    /// Show what running guests use; with a name, why that guest is slow
    #[command(after_long_help = stats::help())]
    Stats(StatsArgs),
    /// Say what this machine can do for guests, what Lodge will use, and why
    #[command(after_help = "\
Exit status: 0 if guests can run here (with --require kvm: if KVM works here), 6 if not.")]
    Check(CheckArgs),
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  lodge completion bash > /etc/bash_completion.d/lodge
  lodge completion zsh > ~/.zfunc/_lodge
  lodge completion fish > ~/.config/fish/completions/lodge.fish")]
    Completion {
        /// The shell
        shell: ShellArg,
    },
    /// Print the manual page, or write all pages to a directory
    #[command(after_help = "\
Examples:
  lodge man | man -l -
  lodge man /usr/local/share/man/man1")]
    Man {
        /// Where to write lodge.1, lodge-run.1 and so on
        directory: Option<PathBuf>,
    },
}

/// `lodge run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub guest: GuestArgs,
    /// Start the guest in the background, print its name, and keep it when it ends
    #[arg(long, short, conflicts_with = "keep", help_heading = "Guest")]
    pub detach: bool,
    /// Do not keep the guest when it ends; without --detach it is not kept anyway
    #[arg(long, conflicts_with = "keep", help_heading = "Guest")]
    pub rm: bool,
    /// With --detach: return when the guest's agent is there, so that `lodge exec` works at once
    #[arg(long, requires = "detach", help_heading = "Guest")]
    pub wait: bool,
    /// Keep the guest's disk when it ends, to be continued under its name
    #[arg(long, requires = "name", help_heading = "Guest")]
    pub keep: bool,
    /// Print the resulting configuration as JSON and start nothing
    #[arg(long, help_heading = "Guest")]
    pub print_config: bool,
}

/// What a guest is made of.
#[derive(Args, Debug, Default)]
pub struct GuestArgs {
    /// The image to start from: `lodge image ls` lists them; or an OCI image, as oci:PATH[:TAG]
    /// or docker://[HOST/]NAME[:TAG]
    pub image: Option<ImageArg>,
    #[command(flatten)]
    pub program: ProgramArgs,

    /// Boot this kernel: a Linux bzImage, an ELF kernel or a multiboot kernel [default: the image's]
    #[arg(long, value_name = "FILE", help_heading = "Boot")]
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk for --kernel
    #[arg(long, value_name = "FILE", requires = "kernel", help_heading = "Boot")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line [default: the image's]
    #[arg(long, value_name = "TEXT", help_heading = "Boot")]
    pub cmdline: Option<String>,
    /// A module for a multiboot kernel, with the text it is given; repeatable
    #[arg(long, value_name = "FILE[ TEXT]", requires = "kernel", help_heading = "Boot")]
    pub module: Vec<String>,

    /// Number of virtual processors [default: 1]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    pub cpus: Option<u32>,
    /// Memory, as in 512M or 4G; a bare number is MiB [default: 1G]
    #[arg(long, short, value_name = "SIZE", value_parser = size::parse_mib, help_heading = "Machine")]
    pub memory: Option<u64>,
    /// Take the memory from this machine's reserve of huge pages (sysctl vm.nr_hugepages), which
    /// makes guests with much memory faster under KVM
    #[arg(long, help_heading = "Machine")]
    pub hugepages: bool,
    /// What runs the processors [default: auto]
    #[arg(long, value_enum, help_heading = "Machine")]
    pub accel: Option<AccelArg>,
    /// Which processor the guest sees [default: host]
    #[arg(long, value_enum, help_heading = "Machine")]
    pub cpu: Option<CpuArg>,
    /// Offer Hyper-V's enlightenments, with which Windows runs better. Only KVM serves them
    #[arg(long, help_heading = "Machine")]
    pub hyperv: bool,

    /// Add a disk: PATH[,format=raw|qcow2][,readonly][,serial=TEXT][,overlay=PATH]
    /// [,on-full=pause|report][,bandwidth=RATE][,burst=SIZE][,iops=N]; repeatable.
    /// With an overlay, writes go to that qcow2 file and the disk itself stays as it is. When the host
    /// has no room for what the guest writes, the guest is paused until there is, or with
    /// on-full=report told of an I/O error. The guest may
    /// ask for N requests a second and for so many bytes a second, 20M or 160mbit.
    /// A comma within a path is written twice
    #[arg(long, value_name = "DISK", help_heading = "Devices")]
    pub disk: Vec<DiskArg>,
    /// Add a network card: user, NAME, bridge=NAME, tap=NAME, each with [,mac=ADDRESS]
    /// [,rate=RATE] [,rate-in=RATE] [,rate-out=RATE] [,burst=SIZE]; repeatable; or none.
    /// `user` has DHCP, DNS and a way out, and needs no privilege; a NAME is one of
    /// `lodge network create`; `bridge` connects the card to a bridge of this machine, as root; `tap` to a tap made for you.
    /// A RATE is 100mbit, or bytes a second as in 12M; it holds in either direction, or to the guest (in) or
    /// from it (out) [default: user]
    #[arg(long, value_name = "NETWORK", help_heading = "Devices")]
    pub net: Vec<NetArg>,
    /// Lead a port of this machine into the guest: [ADDRESS:]PORT:GUESTPORT[/udp]; repeatable
    #[arg(short = 'p', long = "publish", value_name = "PORTS", help_heading = "Devices")]
    pub publish: Vec<ForwardArg>,
    #[command(flatten)]
    pub folders: FolderArgs,
    /// Where the serial port leads: here, null, pty, socket:PATH or log:PATH [default: here]
    #[arg(long, value_name = "WHERE", help_heading = "Devices")]
    pub serial: Option<SerialArg>,

    /// Let the guest take so many processors of this machine at most, as in 1.5, by a control group
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub cpu_limit: Option<CpuShare>,
    /// Let the guest and its VMM take so much memory of this machine at most, by a control group
    #[arg(long, value_name = "SIZE", value_parser = size::parse_mib, help_heading = "Limits")]
    pub memory_limit: Option<u64>,
    /// Run the guest's processors on these of this machine: one for each, as in 2,3, or by number, as in
    /// 0=2,1=4-7
    #[arg(long, value_name = "LIST", help_heading = "Limits")]
    pub cpu_affinity: Option<AffinityArg>,

    /// Tell the guest's cloud-init its name, and to use DHCP; the options below imply it
    #[arg(long, help_heading = "cloud-init")]
    pub cloud_init: bool,
    /// Have the guest's cloud-init do what this file says: #cloud-config, a script, ...
    #[arg(long, value_name = "FILE", help_heading = "cloud-init")]
    pub user_data: Option<PathBuf>,
    /// Let the owner of this public key log in by ssh; `default`: yours in ~/.ssh; repeatable
    #[arg(long, value_name = "FILE", help_heading = "cloud-init")]
    pub ssh_key: Vec<PathBuf>,
    /// What the guest shall call itself [default: the guest's name]
    #[arg(long, value_name = "NAME", help_heading = "cloud-init")]
    pub hostname: Option<String>,

    /// Whether the guest's VMM confines itself [default: on]
    #[arg(long, value_enum, help_heading = "Sandbox")]
    pub sandbox: Option<SandboxArg>,
    /// Let the VMM also open, make and remove files in this directory; repeatable
    #[arg(long, value_name = "DIRECTORY", help_heading = "Sandbox")]
    pub sandbox_allow: Vec<PathBuf>,

    /// The guest's name [default: made from the image's]
    #[arg(long, help_heading = "Guest")]
    pub name: Option<String>,
    /// Read the guest's configuration from a TOML or JSON file; what is given here goes before
    #[arg(long, value_name = "FILE", help_heading = "Guest")]
    pub config: Option<PathBuf>,

    /// Let GDB connect: at PORT of this machine only, ADDRESS:PORT or socket:PATH. Whoever can
    /// connect can read and change all of the guest
    #[arg(long, value_name = "WHERE", help_heading = "Debugging")]
    pub gdb: Option<GdbArg>,
    /// Wait for GDB before the first instruction
    #[arg(long, requires = "gdb", help_heading = "Debugging")]
    pub gdb_wait: bool,

    /// For test kernels: a write of N to port 0xf4 ends the guest with exit status 2N+1
    #[arg(long, help_heading = "Test kernels")]
    pub debug_exit: bool,
    /// For test kernels: bytes written to port 0xe9 go to standard output
    #[arg(long, help_heading = "Test kernels")]
    pub debugcon: bool,
    /// For test kernels: the ports that kvm-unit-tests uses
    #[arg(long, help_heading = "Test kernels")]
    pub testdev: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccelArg {
    /// The best that this host offers
    Auto,
    /// Lodge's own engine
    Soft,
    /// The kernel's KVM
    Kvm,
}

impl From<AccelArg> for Accelerator {
    fn from(arg: AccelArg) -> Accelerator {
        match arg {
            AccelArg::Auto => Accelerator::Auto,
            AccelArg::Soft => Accelerator::Soft,
            AccelArg::Kvm => Accelerator::Kvm,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SandboxArg {
    /// As far as this machine can do it
    On,
    /// Fully, or there is no guest
    Require,
    /// Not at all
    Off,
}

impl From<SandboxArg> for SandboxMode {
    fn from(arg: SandboxArg) -> SandboxMode {
        match arg {
            SandboxArg::On => SandboxMode::On,
            SandboxArg::Require => SandboxMode::Require,
            SandboxArg::Off => SandboxMode::Off,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CpuArg {
    /// All that this host's processor has and the accelerator can honour
    Host,
    /// The baseline, up to SSE2: goes on anywhere from a snapshot
    #[value(name = "x86-64")]
    V1,
    /// Up to SSE4.2 and POPCNT: goes on from a snapshot wherever there are these
    #[value(name = "x86-64-v2")]
    V2,
    /// Up to AVX2, BMI and FMA
    #[value(name = "x86-64-v3")]
    V3,
}

impl From<CpuArg> for CpuModel {
    fn from(arg: CpuArg) -> CpuModel {
        match arg {
            CpuArg::Host => CpuModel::Host,
            CpuArg::V1 => CpuModel::X86_64,
            CpuArg::V2 => CpuModel::X86_64V2,
            CpuArg::V3 => CpuModel::X86_64V3,
        }
    }
}

/// `--disk`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskArg(pub BlockConfig);

impl FromStr for DiskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<DiskArg, String> {
        let mut parts = split_commas(text).into_iter();
        let path = parts.next().filter(|path| !path.is_empty()).ok_or("the path is missing")?;
        let mut disk = BlockConfig { path: path.into(), ..BlockConfig::default() };
        let (mut requests, mut bandwidth, mut burst) = (None, None, None);
        for part in parts {
            match part.split_once('=') {
                None if part == "readonly" => disk.readonly = true,
                Some(("format", "raw")) => disk.format = DiskFormat::Raw,
                Some(("format", "qcow2")) => disk.format = DiskFormat::Qcow2,
                Some(("format", "auto")) => disk.format = DiskFormat::Auto,
                Some(("format", other)) => {
                    return Err(format!("there is no format {other:?}: use raw, qcow2 or auto"));
                }
                Some(("serial", serial)) => disk.serial = Some(serial.to_owned()),
                Some(("on-full", "pause")) => disk.on_full = OnFull::Pause,
                Some(("on-full", "report")) => disk.on_full = OnFull::Report,
                Some(("overlay", path)) if !path.is_empty() => disk.overlay = Some(path.into()),
                Some(("iops", rate)) => match rate.parse() {
                    Ok(rate) if rate > 0 => requests = Some(rate),
                    _ => return Err(format!("iops={rate}: write requests a second, as in 500")),
                },
                Some(("bandwidth", rate)) => bandwidth = Some(parse_bandwidth(rate)?),
                Some(("burst", bytes)) => burst = Some(parse_bytes(bytes)?),
                _ => {
                    return Err(format!(
                        "{part:?} means nothing here: use format=, readonly, serial=, overlay=, \
                         on-full=pause|report, iops=, bandwidth= or burst="
                    ));
                }
            }
        }
        if burst.is_some() && bandwidth.is_none() {
            return Err(BURST_ALONE.into());
        }
        let limit = |rate: Option<u64>, burst| rate.map(|per_second| Rate { per_second, burst });
        disk.limits =
            DiskLimits { bandwidth: limit(bandwidth, burst), requests: limit(requests, None) };
        Ok(DiskArg(disk))
    }
}

/// Splits at commas; two commas in a row stand for one in the text.
fn split_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(character);
        }
    }
    parts
}

/// `--serial`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialArg {
    /// This terminal, or the standard input and output of this program.
    Here,
    /// Elsewhere.
    There(ConsoleConfig),
}

impl FromStr for SerialArg {
    type Err = String;

    fn from_str(text: &str) -> Result<SerialArg, String> {
        match text.split_once(':') {
            None if text == "here" => Ok(SerialArg::Here),
            None if text == "null" => Ok(SerialArg::There(ConsoleConfig::Null)),
            None if text == "pty" => Ok(SerialArg::There(ConsoleConfig::Pty)),
            Some(("socket", path)) if !path.is_empty() => {
                Ok(SerialArg::There(ConsoleConfig::Socket(path.into())))
            }
            Some(("log", path)) if !path.is_empty() => {
                Ok(SerialArg::There(ConsoleConfig::Log(path.into())))
            }
            _ => Err("use here, null, pty, socket:PATH or log:PATH".to_owned()),
        }
    }
}

#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Fail unless this works here
    #[arg(long, value_enum, value_name = "WHAT")]
    pub require: Option<RequireArg>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RequireArg {
    /// Hardware virtualization through /dev/kvm
    Kvm,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn disks_are_read() {
        let disk = |text: &str| text.parse::<DiskArg>().map(|arg| arg.0);
        let plain = disk("a.raw").unwrap();
        assert_eq!(plain.path, PathBuf::from("a.raw"));
        assert_eq!((plain.format, plain.readonly), (DiskFormat::Auto, false));
        let full = disk("/x/b,,c.img,format=qcow2,readonly,serial=S1").unwrap();
        assert_eq!(full.path, PathBuf::from("/x/b,c.img"));
        assert_eq!((full.format, full.readonly), (DiskFormat::Qcow2, true));
        assert_eq!(full.serial.as_deref(), Some("S1"));
        assert_eq!(disk("a,on-full=report").unwrap().on_full, OnFull::Report);
        assert_eq!(disk("a,overlay=o").unwrap().overlay, Some("o".into()));
        let limited = disk("a,iops=500,bandwidth=20M,burst=1M").unwrap().limits;
        let bandwidth = Some(Rate { per_second: 20 << 20, burst: Some(1 << 20) });
        let requests = Some(Rate { per_second: 500, burst: None });
        assert_eq!(limited, DiskLimits { bandwidth, requests });
        for bad in
            ["", ",readonly", "a,ro", "a,format=vdi", "a,overlay=", "a,format", "a,", "a,on-full"]
        {
            assert!(disk(bad).is_err(), "{bad:?}");
        }
        for bad in ["a,iops=0", "a,iops=many", "a,burst=1M", "a,iops=5,burst=1M"] {
            assert!(disk(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn serial_ports_are_read() {
        let serial = |text: &str| text.parse::<SerialArg>();
        assert_eq!(serial("here"), Ok(SerialArg::Here));
        assert_eq!(serial("log:/a:b"), Ok(SerialArg::There(ConsoleConfig::Log("/a:b".into()))));
        for bad in ["", "log", "log:", "stdio", "fd:3"] {
            assert!(serial(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_belongs_together_is_asked_for_together() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(
            parse("lodge run debian:12 --cpus 2 --memory 1G -p 2222:22 --name a --keep").is_ok()
        );
        assert!(parse("lodge run --initrd i").is_err());
        assert!(parse("lodge run debian:12 --keep").is_err());
        assert!(parse("lodge run Debian").is_err());
        assert!(parse("lodge stats web --interval 5").is_ok());
        assert!(parse("lodge stats --once --json").is_ok());
        assert!(parse("lodge run -d debian:12 --rm").is_ok());
        assert!(parse("lodge run -d debian:12 --wait").is_ok());
        assert!(parse("lodge run debian:12 --wait").is_err());
        assert!(parse("lodge run --rm debian:12 ls -l").is_ok());
        assert!(parse("lodge run debian:12 --name a --keep --rm").is_err());
        assert!(parse("lodge create debian:12 --detach").is_err());
        assert!(parse("lodge exec -it -e A=b web -- ls -l").is_ok());
        assert!(parse("lodge exec web ls -l --color").is_ok());
        assert!(parse("lodge exec web").is_err());
        assert!(parse("lodge cp a web:/b").is_ok());
        assert!(parse("lodge cp - web:/b").is_ok());
        assert!(parse("lodge ssh root@web ls -l").is_ok());
        assert!(parse("lodge network create lab --subnet 10.1.0.0/24 --nat").is_ok());
        assert!(parse("lodge network create lab --nat --isolated").is_err());
        assert!(parse("lodge network create lab --subnet 10.1.0.1/24").is_err());
        assert!(parse("lodge network rm").is_err());
        assert!(parse("lodge disk create a.qcow2 20G --json").is_ok());
        assert!(parse("lodge disk create a.qcow2 --backing b.raw").is_ok());
        assert!(parse("lodge disk create a.qcow2").is_err());
        assert!(parse("lodge disk resize a.raw +1G").is_ok());
        assert!(parse("lodge disk resize a.raw -1G").is_err());
        assert!(parse("lodge disk convert a.raw").is_err());
        assert!(parse("lodge balloon web 512M").is_ok());
        assert!(parse("lodge balloon web 512M --json").is_err());
        assert!(parse("lodge stop").is_err());
        assert!(parse("lodge image rm").is_err());
        assert!(parse("lodge image import web").is_err());
        assert!(parse("lodge image build debian:12 --include gcc,libc6-dev").is_ok());
        assert!(parse("lodge image build debian:12 --include gcc,--force").is_err());
    }
}
