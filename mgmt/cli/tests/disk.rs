//! `lodge disk`.

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use common::{Home, outcome, text};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn lodge(home: &Home, line: &str) -> (Option<i32>, String, String) {
    let words: Vec<&str> = line.split(' ').collect();
    let output = home.lodge(&words).current_dir(home.path()).output().unwrap();
    let (status, errors) = outcome(&output);
    (status, text(&output.stdout), errors)
}

fn json(home: &Home, line: &str) -> Value {
    let (status, out, errors) = lodge(home, line);
    assert_eq!((status, errors.contains("lodge: ")), (Some(0), false), "{line}: {errors}");
    serde_json::from_str(&out).unwrap()
}

fn refused(home: &Home, line: &str, status: i32, words: &str) {
    let (got, _, errors) = lodge(home, line);
    assert_eq!(got, Some(status), "{line}: {errors}");
    assert!(errors.contains(words), "{line}: {errors}");
}

#[test]
fn a_disk_is_made_looked_at_resized_and_copied() {
    let home = Home::new();
    let made = json(&home, "disk create a.qcow2 1G --json");
    assert_eq!((&made["format"], &made["size"]), (&"qcow2".into(), &(1u64 << 30).into()));
    assert_eq!(made["qcow2"]["backing"], Value::Null);
    refused(&home, "disk create a.qcow2 2G", 2, "exists already");

    let grown = json(&home, "disk resize a.qcow2 +1G --json");
    assert_eq!(grown["size"], 2u64 << 30);
    refused(&home, "disk resize a.qcow2 1G", 2, "--shrink");
    assert_eq!(json(&home, "disk resize a.qcow2 1G --shrink --json")["size"], 1u64 << 30);
    refused(&home, "disk resize a.qcow2 0", 2, "--shrink");
    refused(&home, "disk resize a.qcow2 0 --shrink", 2, "size of 0");

    let raw = json(&home, "disk convert a.qcow2 b.raw --to raw --json");
    assert_eq!((&raw["format"], &raw["size"]), (&"raw".into(), &(1u64 << 30).into()));
    let over = json(&home, "disk create c.qcow2 --backing b.raw --json");
    assert_eq!(
        (&over["size"], &over["qcow2"]["backing"]["format"]),
        (&(1u64 << 30).into(), &"raw".into())
    );
    let (status, out, _) = lodge(&home, "disk info c.qcow2");
    assert_eq!(status, Some(0));
    for word in ["qcow2", "1 GiB (1073741824 bytes)", "b.raw (raw)"] {
        assert!(out.contains(word), "{out}");
    }
    refused(&home, "disk info nowhere", 4, "check the path");
    refused(&home, "disk create d.raw 1G --format raw --backing b.raw", 2, "cannot have a backing");
    refused(&home, "disk create d.qcow2 --backing nowhere", 4, "nowhere");
    home.file("foreign", [b"KDMV".as_slice(), &[0; 1020]].concat());
    refused(&home, "disk convert foreign d.qcow2", 4, "VMDK");
    assert_eq!(names(&home), ["a.qcow2", "b.raw", "c.qcow2", "foreign"]);
}

#[test]
fn an_image_of_the_store_is_not_resized() {
    let home = Home::new();
    home.import_web();
    refused(&home, "disk resize images/web/disk.raw 1G", 2, "belongs to an image");
}

/// Ctrl-C while it copies: the status says so, and nothing is left.
#[test]
fn a_copy_that_is_given_up_leaves_nothing() {
    let home = Home::new();
    // Without holes, so that copying takes a while.
    let made = Command::new("sh")
        .args(["-c", "yes lodge | head -c 256M > \"$0\""])
        .arg(home.path().join("a.raw"))
        .status()
        .unwrap();
    assert!(made.success());
    // On a busy machine the copy may be done before the signal comes.
    for _ in 0..20 {
        let mut lodge = home
            .lodge(&["disk", "convert", "a.raw", "b.qcow2"])
            .current_dir(home.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It says what it does before it copies; signals are caught by then.
        let mut first = [0];
        lodge.stderr.as_mut().unwrap().read_exact(&mut first).unwrap();
        kill_process(Pid::from_child(&lodge), Signal::INT).unwrap();
        let status = lodge.wait().unwrap();
        if status.success() {
            fs::remove_file(home.path().join("b.qcow2")).unwrap();
            continue;
        }
        assert_eq!((status.code(), status.signal()), (Some(130), None));
        assert_eq!(names(&home), ["a.raw"]);
        return;
    }
    panic!("each copy was done before its signal came");
}

fn names(home: &Home) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(home.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
