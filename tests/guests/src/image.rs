//! The image that guests are made of.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::{lab, note, sha256, skipped};

/// The image of all tests.
pub(crate) const NAME: &str = "debian:12";

/// An image in the user's store, and how it was when the test began.
#[derive(Debug)]
pub struct Image {
    manifest: Value,
    files: BTreeMap<String, PathBuf>,
    before: Vec<Stamp>,
}

/// What changes if somebody writes to a file.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    length: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Image {
    /// The image, built now if it is not there. `None`, said loudly, if it cannot be built here.
    ///
    /// # Panics
    ///
    /// If `lodge` builds an image that it does not find afterwards.
    #[must_use]
    pub fn find() -> Option<Image> {
        if let Some(image) = Image::inspect() {
            return Some(image);
        }
        note(&format!("building the image {NAME}"));
        // Its progress is for whoever waits.
        let mut build = Command::new(lab::program());
        let built = build.args(["image", "build", NAME]).stdin(Stdio::null()).status();
        if !built.expect("lodge starts").success() {
            skipped("guests of Debian", "the image cannot be built here, as said above");
            return None;
        }
        Some(Image::inspect().expect("the image that was just built"))
    }

    fn inspect() -> Option<Image> {
        let output = lodge(&["image", "inspect", NAME]);
        if !output.status.success() {
            return None;
        }
        let mut facts: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let files = serde_json::from_value(facts["paths"].take()).expect("paths");
        let mut image = Image { manifest: facts["manifest"].take(), files, before: Vec::new() };
        image.before = image.stamps();
        Some(image)
    }

    /// The kernel that guests start with.
    #[must_use]
    pub fn kernel(&self) -> &Path {
        &self.files["kernel"]
    }

    /// Its disk, raw.
    pub(crate) fn disk(&self) -> &Path {
        &self.files["disk"]
    }

    /// What guests' kernels are told.
    ///
    /// # Panics
    ///
    /// If the manifest does not tell.
    #[must_use]
    pub fn cmdline(&self) -> &str {
        self.manifest["cmdline"].as_str().expect("a command line")
    }

    /// The same for a busy machine, which must not make systemd give up on a unit or a device.
    pub fn patient_cmdline(&self) -> String {
        let cmdline = self.cmdline();
        format!(
            "{cmdline} systemd.default_timeout_start_sec=600 systemd.default_device_timeout_sec=600"
        )
    }

    /// Whether Lodge's agent is in it.
    #[must_use]
    pub fn has_agent(&self) -> bool {
        self.manifest["agent"] == true
    }

    /// The directory of all images.
    pub(crate) fn store(&self) -> &Path {
        let directory = self.kernel().parent().and_then(Path::parent);
        directory.expect("an image is a directory in a directory")
    }

    /// The password of root.
    ///
    /// # Panics
    ///
    /// If the manifest tells none.
    pub(crate) fn root_password(&self) -> String {
        let logins = self.manifest["logins"].as_array().expect("logins");
        let root = logins.iter().find(|login| login["user"] == "root").expect("a login of root");
        root["password"].as_str().expect("a password").to_owned()
    }

    /// Asserts that nobody wrote to the image since the test began.
    #[track_caller]
    pub(crate) fn assert_untouched(&self) {
        assert_eq!(self.stamps(), self.before, "somebody wrote to the image");
    }

    /// Asserts that each byte of the disk is as it was when the image was built; takes seconds.
    ///
    /// # Panics
    ///
    /// If one is not.
    #[track_caller]
    pub fn assert_every_byte(&self) {
        let wanted = self.manifest["disk"]["sha256"].as_str().expect("a sum");
        let disk = File::open(&self.files["disk"]).expect("the image's disk");
        assert_eq!(sha256(disk), wanted, "the image's disk is changed");
    }

    fn stamps(&self) -> Vec<Stamp> {
        let stamp = |path: &PathBuf| {
            let metadata = path.metadata().expect("a file of the image");
            Stamp {
                path: path.clone(),
                length: metadata.len(),
                inode: metadata.ino(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            }
        };
        self.files.values().map(stamp).collect()
    }
}

/// Runs `lodge` on the user's own store.
fn lodge(arguments: &[&str]) -> Output {
    let mut command = Command::new(lab::program());
    command.args(arguments).stdin(Stdio::null()).output().expect("lodge starts")
}
