//! Installs Debian with mmdebstrap and follows its work.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use super::archive::{self, Archive};
use super::disk::Layout;
use super::{BuildOptions, Job, PackageName, Release, process};
use crate::{Error, Progress, Unit};

/// What makes a small, stock Debian machine of the essential packages.
///
/// The kernel is the cloud one: the same sources and version as linux-image-amd64 with the drivers
/// of virtual machines only, a tenth of the size. systemd-networkd and -resolved are what Debian's
/// own cloud images use; they take any card's name, and DNS from DHCP.
const PACKAGES: &[&str] = &[
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "lz4",
    "systemd",
    "systemd-sysv",
    "systemd-resolved",
    "udev",
    "dbus",
    "kmod",
    "procps",
    "sudo",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "netcat-openbsd",
    "curl",
    "ca-certificates",
    "less",
    "nano",
];

/// Installs the release into a tar archive.
pub(super) fn install(
    job: &mut Job<'_>,
    release: &Release,
    options: &BuildOptions,
    archives: &[Archive],
    layout: Layout,
    tar: &Path,
) -> Result<(), Error> {
    let sources = archive::to_sources(archives);
    let fill = |script: &str| {
        script
            .replace("@ROOT_DEVICE@", layout.root_device())
            .replace("@SOURCES@", sources.trim_end())
            .replace("@FOLDERS@", include_str!("lodge-folders").trim_end())
    };
    let output = File::create_new(tar).map_err(Error::io("create", tar))?;
    let (list, mut list_writer) = std::io::pipe().map_err(Error::io("open", tar))?;
    // A source list is far smaller than a pipe, so that this does not wait for a reader.
    list_writer.write_all(sources.as_bytes()).map_err(Error::io("write", tar))?;
    drop(list_writer);

    let include: Vec<&str> =
        PACKAGES.iter().copied().chain(options.packages.iter().map(PackageName::as_str)).collect();
    let mut command = job.mode.mmdebstrap();
    command
        .env("TMPDIR", job.work)
        .arg("--verbose")
        .arg(format!("--mode={}", job.mode.mmdebstrap_name()))
        .args(["--variant=apt", "--format=tar", "--architectures=amd64"])
        .arg(format!("--include={}", include.join(",")))
        .arg(format!("--essential-hook={}", fill(include_str!("prepare.sh"))))
        .args(options.agent.as_deref().map(install_agent).transpose()?)
        .arg(format!("--customize-hook={}", fill(include_str!("customize.sh"))))
        .args(archive::transport_options().iter().map(|option| format!("--aptopt={option}")))
        .args([release.codename, "-", "-"])
        .stdin(Stdio::from(list))
        .stdout(Stdio::from(output));
    let mut follower = Follower { step: "Installing Debian", done: 0, total: 0 };
    let ended = process::run(&mut command, job.cancel, |line| follower.line(line, job.progress))?;
    if ended.status.success() {
        return Ok(());
    }
    let complaint = ended.complaint();
    Err(match network_trouble(&complaint) {
        Some(line) => Error::Network { detail: line.to_owned() },
        None => Error::Build { step: follower.step.to_owned(), log: complaint },
    })
}

/// Has mmdebstrap put the agent into the guest. customize.sh sees to the rest, if it is there.
fn install_agent(program: &Path) -> Result<String, Error> {
    // Read already by the hook's own words, which are split as a shell does (mmdebstrap(1)).
    File::open(program).map_err(Error::io("open", program))?;
    let quoted = program.to_str().filter(|path| !path.contains('\'')).ok_or_else(|| {
        let error =
            std::io::Error::other("its path has characters that mmdebstrap cannot be given");
        Error::io("use", program)(error)
    })?;
    Ok(format!("--customize-hook=upload '{quoted}' /usr/local/sbin/lodge-agent"))
}

/// Makes steps and counts of what mmdebstrap and apt print.
struct Follower {
    step: &'static str,
    done: u64,
    total: u64,
}

impl Follower {
    fn line(&mut self, line: &str, progress: &mut dyn Progress) {
        let step = match line {
            "I: running apt-get update..." => "Fetching the package lists",
            "I: downloading packages with apt..." => "Downloading the base system",
            "I: extracting archives..." => "Unpacking the base system",
            "I: installing essential packages..." => "Installing the base system",
            "I: installing remaining packages inside the chroot..." => {
                "Installing the kernel and tools"
            }
            "I: cleaning package lists and apt cache..." => "Cleaning up",
            "I: creating tarball..." => "Packing",
            _ if line.starts_with("I: running --customize-hook") => "Setting the machine up",
            _ => return self.count(line, progress),
        };
        self.step = step;
        self.done = 0;
        self.total = 0;
        progress.step(step);
    }

    fn count(&mut self, line: &str, progress: &mut dyn Progress) {
        if let Some(packages) = newly_installed(line) {
            // Each is fetched, unpacked and set up; the base system is only fetched in its step.
            let stages = if self.step.starts_with("Downloading") { 1 } else { 3 };
            self.total = packages.saturating_mul(stages);
        } else if self.total > 0
            && ["Get:", "Unpacking ", "Setting up "].iter().any(|p| line.starts_with(p))
        {
            self.done = (self.done + 1).min(self.total);
            progress.advance(self.done, self.total, Unit::Packages);
        }
    }
}

/// The number in apt's "0 upgraded, 70 newly installed, 0 to remove and 0 not upgraded."
fn newly_installed(line: &str) -> Option<u64> {
    let (before, _) = line.split_once(" newly installed")?;
    before.rsplit(' ').next()?.parse().ok()
}

/// The line that says that an archive could not be reached, if there is one.
fn network_trouble(complaint: &str) -> Option<&str> {
    const SYMPTOMS: [&str; 8] = [
        "Could not resolve",
        "Temporary failure resolving",
        "Could not connect",
        "Unable to connect",
        "Connection timed out",
        "Connection failed",
        "Connection refused",
        "Network is unreachable",
    ];
    let shows = |line: &&str| SYMPTOMS.iter().any(|symptom| line.contains(symptom));
    complaint.lines().find(shows).map(|line| line.trim_start_matches("E: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder(Vec<String>);

    impl Progress for Recorder {
        fn step(&mut self, what: &str) {
            self.0.push(what.to_owned());
        }
        fn advance(&mut self, done: u64, total: u64, _unit: Unit) {
            self.0.push(format!("{done}/{total}"));
        }
        fn note(&mut self, text: &str) {
            self.0.push(text.to_owned());
        }
    }

    #[test]
    fn the_output_of_mmdebstrap_becomes_progress() {
        let output = "\
I: running apt-get update...
Get:1 http://deb.debian.org/debian bookworm InRelease [151 kB]
I: downloading packages with apt...
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Get:1 http://deb.debian.org/debian bookworm/main amd64 a amd64 1 [20 kB]
Get:2 http://deb.debian.org/debian bookworm/main amd64 b amd64 1 [20 kB]
I: installing remaining packages inside the chroot...
0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.
Get:1 http://deb.debian.org/debian bookworm/main amd64 c amd64 1 [20 kB]
Unpacking c (1) ...
Setting up c (1) ...
Setting up c-again (1) ...
I: running --customize-hook in shell: sh -c '
# Run by mmdebstrap
";
        let mut recorder = Recorder::default();
        let mut follower = Follower { step: "", done: 0, total: 0 };
        for line in output.lines() {
            follower.line(line, &mut recorder);
        }
        assert_eq!(
            recorder.0,
            [
                "Fetching the package lists",
                "Downloading the base system",
                "1/2",
                "2/2",
                "Installing the kernel and tools",
                "1/3",
                "2/3",
                "3/3",
                "3/3",
                "Setting the machine up",
            ]
        );
    }

    #[test]
    fn trouble_with_the_network_is_told_from_other_trouble() {
        let complaint = "E: noise\nE: Failed to fetch http://a/  Temporary failure resolving 'a'";
        assert_eq!(
            network_trouble(complaint),
            Some("Failed to fetch http://a/  Temporary failure resolving 'a'")
        );
        assert_eq!(network_trouble("E: setup failed: E: command failed: false"), None);
    }
}
