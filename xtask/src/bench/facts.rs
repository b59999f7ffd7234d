//! The circumstances of a measurement.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use super::bed::Bed;
use super::contestant::QEMU;

/// On what and with what was measured.
#[derive(Debug, Serialize)]
pub struct Facts {
    /// The day, in UTC.
    pub date: String,
    /// The processor's name and its family, model and stepping.
    pub processor: String,
    /// How many of them.
    pub processors: usize,
    /// In GiB.
    pub memory_gib: u64,
    /// Whether this machine is itself a guest.
    pub is_guest: bool,
    /// This machine's kernel.
    pub kernel: String,
    /// The guest's.
    pub guest_kernel: String,
    /// What the image is.
    pub image: String,
    /// The versions of what is measured.
    pub versions: Vec<String>,
    /// How busy this machine was before (the one minute load average).
    pub load_before: f64,
}

/// How was measured.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// How often.
    pub runs: u32,
    /// By the processor time that was used instead of the time that passed.
    pub processor_time: bool,
}

impl Facts {
    /// Looks around.
    pub fn collect(bed: &Bed) -> Facts {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| field(&cpuinfo, name).unwrap_or("unknown").to_owned();
        let commit = first_line(&mut git(&["rev-parse", "--short", "HEAD"]));
        let lodge = first_line(Command::new(&bed.lodge).arg("--version"));
        Facts {
            date: first_line(Command::new("date").args(["-u", "+%Y-%m-%d"])),
            processor: format!(
                "{}, family {}, model {}, stepping {}",
                field("model name"),
                field("cpu family"),
                field("model"),
                field("stepping")
            ),
            processors: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            memory_gib: memory_gib(),
            is_guest: field("flags").split(' ').any(|flag| flag == "hypervisor"),
            kernel: read_line("/proc/sys/kernel/osrelease"),
            guest_kernel: guest_kernel(&bed.path("native/boot")),
            image: bed.image.clone(),
            versions: vec![
                format!("{lodge} (commit {commit}{})", if is_changed() { ", changed" } else { "" }),
                first_line(Command::new(QEMU).arg("--version")),
                first_line(Command::new("cc").arg("--version")),
            ],
            load_before: load(),
        }
    }
}

/// The load average of the last minute (proc(5)).
pub fn load() -> f64 {
    let text = read_line("/proc/loadavg");
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// A field of /proc/cpuinfo, of the first processor, or of /proc/meminfo.
pub fn field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

fn memory_gib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = field(&text, "MemTotal").and_then(|value| value.split(' ').next()?.parse().ok());
    kib.map_or(0, |kib: u64| (kib + (1 << 19)) >> 20)
}

/// The image's kernel is named after its version.
fn guest_kernel(boot: &Path) -> String {
    let entries = fs::read_dir(boot).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let versions: Vec<String> =
        names.filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned)).collect();
    versions.join(", ")
}

/// Whether the tree that Lodge is built from differs from the commit.
fn is_changed() -> bool {
    let status = git(&["diff", "--quiet", "HEAD", "--"]).status();
    status.is_ok_and(|status| status.code() == Some(1))
}

fn git(arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.args(["-C", env!("CARGO_MANIFEST_DIR")]).args(arguments);
    command
}

fn read_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn first_line(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&output);
    text.lines().next().unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC\nmodel\t\t: 2\n";
        assert_eq!(field(text, "model"), Some("2"));
        assert_eq!(field(text, "model name"), Some("AMD EPYC"));
        assert_eq!(field(text, "mode"), None);
    }
}
