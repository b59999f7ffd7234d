//! What cannot be is turned down soon, with a message that helps, and nothing is left behind.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::{Lab, Refusal, has_tool, skipped, tiny, tool};

/// Exit statuses, as the manual page has them.
const CONFIGURATION: i32 = 2;
const ARTIFACT: i32 = 4;
const HOST: i32 = 6;

/// Asserts a refusal of this kind whose message names all of `words`: what is wrong, why, and
/// what to do.
#[track_caller]
fn assert_refused(refusal: &Refusal, status: i32, words: &[&str]) {
    let message = &refusal.message;
    assert_eq!(refusal.status, Some(status), "{message}");
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
    for bad in ["panicked", "RUST_BACKTRACE", "Os {", "Some(", "Err("] {
        assert!(!message.contains(bad), "{bad:?} is not for people: {message}");
    }
    assert!(message.lines().count() <= 6, "too long: {message}");
}

#[track_caller]
fn assert_kernel_refused(lab: &Lab, kernel: &Path, words: &[&str]) {
    let path = kernel.to_str().expect("plain characters");
    let refusal = lab.refusal(&["run", "--kernel", path, "--net", "none"]);
    assert_refused(&refusal, ARTIFACT, &[words, &[path]].concat());
}

#[test]
fn kernels_that_are_none() {
    let lab = Lab::empty();
    let kernel = |contents: &[u8]| lab.file("kernel", contents);
    assert_kernel_refused(&lab, &kernel(b""), &[]);
    assert_kernel_refused(&lab, &kernel(b"#!/bin/sh\necho hello\n"), &[]);
    assert_kernel_refused(&lab, &kernel(&[0; 100_000]), &[]);
    assert_kernel_refused(&lab, &kernel(&tiny::sleeper()[..20]), &[]);
    // An ELF file for another processor, AArch64.
    let mut elf = [0; 64];
    elf[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0");
    assert_kernel_refused(&lab, &kernel(&elf), &[]);
    // A program of this host is an ELF file, but no kernel.
    assert_kernel_refused(&lab, &std::env::current_exe().expect("this program"), &[]);
    assert_kernel_refused(&lab, &lab.path("missing"), &[]);
    assert_kernel_refused(&lab, &lab.path("home"), &[]);
    lab.close();
}

#[test]
fn truncated_kernels() {
    let Some(lab) = Lab::debian() else { return };
    let whole = std::fs::read(lab.image().kernel()).expect("the image's kernel");
    for length in [100, 1000, 100_000, whole.len() / 2, whole.len() - 20_000] {
        let kernel = lab.file("kernel", &whole[..length]);
        assert_kernel_refused(&lab, &kernel, &[]);
    }
    lab.close();
}

#[test]
fn initial_ram_disks_and_modules_that_are_missing() {
    let lab = Lab::empty();
    let kernel = lab.file("kernel", tiny::sleeper());
    let kernel = kernel.to_str().expect("plain characters");
    let refusal = lab.refusal(&["run", "--kernel", kernel, "--initrd", "/no/initrd"]);
    assert_refused(&refusal, ARTIFACT, &["/no/initrd"]);
    let refusal = lab.refusal(&["run", "--kernel", kernel, "--module", "/no/module text"]);
    assert_refused(&refusal, ARTIFACT, &["/no/module"]);
    lab.close();
}

#[test]
fn absurd_sizes() {
    let lab = Lab::empty();
    let kernel = lab.file("kernel", tiny::sleeper());
    let run = |arguments: &[&str]| {
        let kernel = kernel.to_str().expect("plain characters");
        lab.refusal(&[&["run", "--kernel", kernel], arguments].concat())
    };
    for memory in ["0", "1", "99999999999", "18446744073709551615T", "12Q", "lots", "-1"] {
        let memory = format!("--memory={memory}");
        assert_refused(&run(&[&memory]), CONFIGURATION, &["memory"]);
    }
    for cpus in ["0", "100000", "4294967296", "two", "-1"] {
        let cpus = format!("--cpus={cpus}");
        assert_refused(&run(&[&cpus]), CONFIGURATION, &[]);
    }
    // As much as a guest may have, which few hosts do.
    if host_memory_kib() < 1000 << 20 {
        assert_refused(&run(&["--memory", "1024G"]), HOST, &["does not fit", "--memory"]);
    } else {
        skipped("more memory than the host has", "this host has very much");
    }
    let name = "x".repeat(300);
    assert_refused(&run(&["--name", &name]), CONFIGURATION, &["name", "64"]);
    assert_refused(&run(&["--name", "../up"]), CONFIGURATION, &["../up"]);
    lab.close();
}

/// RAM and swap space (proc(5), `/proc/meminfo`).
fn host_memory_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let field = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    };
    field("MemTotal:") + field("SwapTotal:")
}

#[test]
fn disks_that_cannot_be_used() {
    let lab = Lab::empty();
    let kernel = lab.file("kernel", tiny::sleeper());
    let run = |disk: &str| {
        let kernel = kernel.to_str().expect("plain characters");
        lab.refusal(&["run", "--kernel", kernel, "--disk", disk])
    };
    assert_refused(&run("/no/such/disk"), ARTIFACT, &["/no/such/disk"]);
    assert_refused(&run("/"), CONFIGURATION, &["directory"]);
    let text = lab.file("text", "not a disk at all");
    assert_refused(
        &run(&format!("{},format=qcow2", text.display())),
        CONFIGURATION,
        &["text", "qcow2"],
    );
    let raw = lab.file("raw", [7; 8192]);
    let unwritable = format!("{},overlay={}/overlay", raw.display(), text.display());
    assert_refused(&run(&unwritable), HOST, &["text/overlay"]);
    if !has_tool("qemu-img") {
        return skipped("damaged qcow2 disks", "qemu-img is not installed");
    }
    let qcow2 = lab.path("disk.qcow2");
    let path = qcow2.to_str().expect("plain characters");
    assert!(tool("qemu-img", &["create", "-q", "-f", "qcow2", path, "16M"]).status.success());
    let whole = std::fs::read(&qcow2).expect("the disk");
    // In the middle of its tables.
    lab.file("disk.qcow2", &whole[..whole.len() / 2]);
    assert_refused(&run(path), ARTIFACT, &["disk.qcow2"]);
    lab.close();
}

#[test]
fn a_busy_disk_stays_with_the_guest_that_has_it() {
    let lab = Lab::empty();
    let kernel = lab.file("kernel", tiny::sleeper());
    let disk = lab.file("disk", [7; 8192]);
    let disk = format!("{},format=raw", disk.display());
    let arguments = ["run", "--kernel", kernel.to_str().expect("plain characters"), "--disk"];
    let log = lab.file("owner", "");
    let errors = File::options().write(true).open(&log).expect("a log");
    let mut owner = lab
        .lodge()
        .args(arguments)
        .args([&disk, "--name", "owner"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .expect("lodge starts");
    let deadline = Instant::now() + Duration::from_secs(120);
    let said = || std::fs::read_to_string(&log).expect("a log");
    while !said().contains("owner runs") {
        assert!(Instant::now() < deadline, "the first guest does not start: {}", said());
        thread::sleep(Duration::from_millis(10));
    }
    let refusal = lab.refusal(&[&arguments[..], &[&disk]].concat());
    assert_refused(&refusal, HOST, &["disk", "another"]);
    // Nor for reading, while it may change.
    let reader = format!("{disk},readonly");
    let refusal = lab.refusal(&[&arguments[..], &[&reader]].concat());
    assert_refused(&refusal, HOST, &["disk", "another"]);
    assert!(owner.try_wait().expect("our child").is_none(), "the first guest runs on: {}", said());
    let pid = rustix::process::Pid::from_child(&owner);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
    assert_eq!(owner.wait().expect("our child").code(), Some(128 + 15), "{}", said());
    lab.close();
}

#[test]
fn a_port_in_use() {
    let lab = Lab::empty();
    let kernel = lab.file("kernel", tiny::sleeper());
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let publish = format!("{port}:22");
    let kernel = kernel.to_str().expect("plain characters");
    let refusal = lab.refusal(&["run", "--kernel", kernel, "-p", &publish]);
    assert_refused(&refusal, HOST, &[&port.to_string(), "in use"]);
    let refusal = lab.refusal(&["run", "--kernel", kernel, "-p", "70000:22"]);
    assert_refused(&refusal, CONFIGURATION, &["70000", "65535"]);
    lab.close();
}

#[test]
fn unwritable_places() {
    let lab = Lab::empty();
    let kernel = lab.file("kernel", tiny::sleeper());
    let kernel = kernel.to_str().expect("plain characters");
    let file = lab.file("file", "no directory");
    // A file where a directory should be stops root, too.
    let home = file.join("home");
    let disk = lab.file("disk", [7; 8192]);
    let import = ["image", "import", "web", "--kernel", kernel, "--disk"];
    let import =
        |home: &Path| lab.refusal_of(lab.lodge().args(import).arg(&disk).env("LODGE_HOME", home));
    assert_refused(&import(&home), HOST, &["file/home"]);
    let log = format!("log:{}/log", file.display());
    assert_refused(
        &lab.refusal(&["run", "--kernel", kernel, "--serial", &log]),
        HOST,
        &["file/log"],
    );
    let socket = format!("socket:{}/socket", file.display());
    let refusal = lab.refusal(&["run", "--kernel", kernel, "--serial", &socket]);
    assert_refused(&refusal, HOST, &["file/socket"]);

    let closed = lab.path("closed");
    std::fs::create_dir(&closed).expect("a directory");
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o500)).expect("its mode");
    if File::create(closed.join("probe")).is_ok() {
        let _ = std::fs::remove_file(closed.join("probe"));
        skipped("directories without permission", "whoever runs this may write everywhere");
    } else {
        assert_refused(&import(&closed), HOST, &["closed", "LODGE_HOME"]);
    }
    lab.close();
}

#[test]
fn images_that_are_not_there() {
    let lab = Lab::empty();
    assert_refused(&lab.refusal(&["run", "web:9"]), CONFIGURATION, &["web:9", "lodge image ls"]);
    let refusal = lab.refusal(&["run", "debian:12"]);
    assert_refused(&refusal, CONFIGURATION, &["lodge image build debian:12"]);
    assert_refused(&lab.refusal(&["run"]), CONFIGURATION, &["--kernel", "lodge image build"]);
    lab.close();
}
