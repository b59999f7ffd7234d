//! What the tests of the `lodge` program share.

#![allow(dead_code)] // Each test program uses a part of it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A home directory for Lodge of its own, gone after the test.
pub struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Home {
        Home { directory: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A file with these contents.
    pub fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, contents).unwrap();
        path
    }

    /// A program with this text. Another process writes it: a child that another test's thread
    /// forks while this one has it open for writing would keep it from being executed (ETXTBSY).
    pub fn program(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        let mut writer = Command::new("sh")
            .args(["-c", r#"cat > "$0" && chmod 755 "$0""#])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());
        path
    }

    /// `lodge` with this home and nothing of the test's own environment that it looks at.
    pub fn lodge(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lodge"));
        command.args(arguments).env("LODGE_HOME", self.path()).env_remove("LODGE_VMM");
        command.stdin(Stdio::null());
        command
    }

    /// `lodge` whose VMM is a bash script that finds the configuration in `$config`, the console
    /// at `$console` and the status at `$status` (descriptors).
    pub fn lodge_with_vmm(&self, script: &str, arguments: &[&str]) -> Command {
        let path = self.program("fake-vmm", &format!("{FAKE_VMM}\n{script}\n"));
        let mut command = self.lodge(arguments);
        command.env("LODGE_VMM", path);
        command
    }

    /// An image named `web` with a disk and a kernel.
    pub fn import_web(&self) {
        let disk = self.file("disk.raw", vec![1; 4096]);
        let kernel = self.file("kernel", b"kernel");
        let output = self
            .lodge(&["image", "import", "web", "--disk"])
            .arg(disk)
            .arg("--kernel")
            .arg(kernel)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }

    /// The names of the guests' directories.
    pub fn guests(&self) -> Vec<String> {
        let Ok(directory) = fs::read_dir(self.path().join("guests")) else { return Vec::new() };
        let mut names: Vec<String> =
            directory.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

const FAKE_VMM: &str = r#"#!/bin/bash
set -eu
[ "$1" = --config-fd ] && [ "$3" = --status-fd ]
config=$(cat <&"$2")
status=$4
console=$(sed -n 's/.*"serial":{"fd":\([0-9]*\)}.*/\1/p' <<< "$config")
event() { echo "$1" >&"$status"; }
started='{"event":"started","accelerator":"soft"}'
power_off='{"event":"stopped","reason":"power-off"}'
requested='{"event":"stopped","reason":"requested"}'
"#;

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The exit status and all of standard error.
pub fn outcome(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), text(&output.stderr))
}
