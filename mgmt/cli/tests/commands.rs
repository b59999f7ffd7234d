//! The commands that start no guest, as a person types them.

mod common;

use std::fs;
use std::path::Path;

use common::{Home, outcome, text};

#[test]
fn help_teaches() {
    let home = Home::new();
    let help = |arguments: &[&str]| {
        let output = home.lodge(arguments).output().unwrap();
        assert!(output.status.success());
        text(&output.stdout)
    };
    let top = help(&["--help"]);
    for wanted in
        ["lodge image build debian:12", "lodge run debian:12", "Exit status", "LODGE_HOME"]
    {
        assert!(top.contains(wanted), "{wanted}");
    }
    let run = help(&["run", "--help"]);
    for wanted in ["-p 8080:80", "--keep", "Ctrl-] q", "overlay=PATH", "--debug-exit"] {
        assert!(run.contains(wanted), "{wanted}");
    }
    assert!(help(&["image", "import", "--help"]).contains("--cmdline"));
}

#[test]
fn a_wrong_command_line_has_status_2() {
    let home = Home::new();
    for wrong in [
        &["walk"][..],
        &["run", "debian:12", "--cpus", "many"],
        &["run", "debian:12", "--memory", "1X"],
        &["run", "debian:12", "-p", "22"],
        &["run", "debian:12", "--disk", "a,b=c"],
        &["image", "build", "Debian 12"],
    ] {
        let output = home.lodge(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn what_cannot_run_is_said_and_leaves_nothing() {
    let home = Home::new();
    for (arguments, status, wanted) in [
        (&["run"][..], 2, "lodge image build debian:12"),
        (&["run", "debian:12"], 2, "lodge image build debian:12"),
        (&["run", "web"], 2, "lodge image ls"),
        (&["run", "--kernel", "k", "--cpus", "0"], 2, "1 to 64"),
        (&["run", "--kernel", "k", "--cpus", "65"], 2, "1 to 64"),
        (&["run", "--kernel", "k", "--memory", "0"], 2, "MiB"),
        (&["run", "--kernel", "k", "--memory", "2T"], 2, "MiB"),
        (&["run", "--kernel", "k", "--name", "../x"], 2, "letters"),
        (&["run", "--kernel", "k", "--name", "x", "--keep"], 2, "--keep"),
        (&["run", "--kernel", "k", "--disk", "a", "--disk", "a"], 2, "twice"),
        (&["run", "--kernel", "k", "-p", "80:80", "-p", "80:81"], 2, "twice"),
        (&["run", "--config", "/nonexistent.toml"], 6, "/nonexistent.toml"),
        (&["image", "rm", "web"], 2, "no image web"),
        (&["image", "verify", "web"], 2, "no image web"),
        (&["image", "build", "debian:1"], 2, "debian:12"),
        (&["image", "import", "web", "--disk", "/nonexistent"], 6, "/nonexistent"),
        (&["rm", "web"], 2, "no guest web"),
    ] {
        let (code, message) = outcome(&home.lodge(arguments).output().unwrap());
        assert_eq!(code, Some(status), "{arguments:?}: {message}");
        assert!(message.contains(wanted), "{arguments:?}: {message}");
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "{arguments:?}");
    }
}

#[test]
fn an_image_from_import_to_removal() {
    let home = Home::new();
    home.import_web();
    let list = text(&home.lodge(&["image", "ls"]).output().unwrap().stdout);
    assert!(list.contains("web") && list.contains("4 KiB"), "{list}");

    let inspected = home.lodge(&["image", "inspect", "web"]).output().unwrap();
    let inspected: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    let disk = Path::new(inspected["paths"]["disk"].as_str().unwrap()).to_owned();
    assert_eq!(fs::read(&disk).unwrap(), [1; 4096]);
    assert_eq!(inspected["manifest"]["disk"]["bytes"], 4096);

    let (code, message) =
        outcome(&home.lodge(&["image", "import", "web", "--disk"]).arg(&disk).output().unwrap());
    assert_eq!(code, Some(2));
    assert!(message.contains("--force"), "{message}");

    assert!(home.lodge(&["image", "verify", "web"]).status().unwrap().success());
    fs::remove_file(&disk).unwrap();
    fs::write(&disk, [2; 4096]).unwrap();
    let (code, message) = outcome(&home.lodge(&["run", "web"]).output().unwrap());
    assert_eq!(code, Some(4), "{message}");
    assert!(message.contains("damaged") && message.contains("lodge image rm web"), "{message}");

    assert!(home.lodge(&["image", "rm", "web"]).status().unwrap().success());
    assert!(!disk.exists());
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let home = Home::new();
    let disk = home.file("disk.raw", [1; 512]);
    let output = home
        .lodge(&["image", "import", "web", "--disk"])
        .arg(&disk)
        .env("LODGE_HOME", "/proc/lodge")
        .output()
        .unwrap();
    let (code, message) = outcome(&output);
    assert_eq!(code, Some(6), "{message}");
    assert!(message.contains("/proc/lodge"), "{message}");
}

#[test]
fn without_a_builder_the_package_is_named() {
    let home = Home::new();
    // Nothing but the shell can be found. Where mmdebstrap is in a standard place it is found
    // nevertheless, and then this machine cannot show the message.
    if ["/usr/bin", "/usr/sbin", "/bin", "/usr/local/sbin"]
        .iter()
        .any(|directory| Path::new(directory).join("mmdebstrap").exists())
    {
        eprintln!("SKIPPED: mmdebstrap is installed here");
        return;
    }
    let (code, message) = outcome(&home.lodge(&["image", "build", "debian:12"]).output().unwrap());
    assert_eq!(code, Some(6), "{message}");
    assert!(message.contains("apt-get install mmdebstrap"), "{message}");
}

#[test]
fn the_configuration_can_be_seen_beforehand() {
    let home = Home::new();
    home.import_web();
    let output = home
        .lodge(&["run", "web", "--name", "w1", "--cpus", "2", "--memory", "512M", "-p", "2222:22"])
        .arg("--print-config")
        .output()
        .unwrap();
    let config: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(config["cpus"], 2);
    assert_eq!(config["memory_mib"], 512);
    assert_eq!(config["boot"]["cmdline"], "root=/dev/vda rw console=ttyS0");
    assert_eq!(config["nets"][0]["forwards"][0]["host_port"], 2222);
    let disk = &config["disks"][0];
    assert!(disk["path"].as_str().unwrap().ends_with("images/web/disk.raw"));
    assert!(disk["overlay"].as_str().unwrap().ends_with("guests/w1/disk.qcow2"));
    assert!(home.guests().is_empty(), "nothing was started");
}

/// `lodge check` where `lodge-vmm --probe` prints `probe`.
fn check(home: &Home, probe: &str, arguments: &[&str]) -> std::process::Output {
    let script = format!("#!/bin/sh\n[ \"$1\" = --probe ] && echo '{probe}'\n");
    let vmm = home.program("probing-vmm", &script);
    home.lodge(&["check"]).args(arguments).env("LODGE_VMM", vmm).output().unwrap()
}

const FAST_KVM: &str = r#"{"kvm":"works","speed":{"ring0_mips":5900.0,"native_mips":6000.0,
    "kernel_instruction_ns":60.0,"is_hardware":true},"accelerator":"kvm","reason":"it is fast",
    "engine":"transcoded"}"#;
const SLOW_KVM: &str = r#"{"kvm":"works","speed":{"ring0_mips":1.8,"native_mips":6000.0,
    "kernel_instruction_ns":900.0,"is_hardware":false},"accelerator":"soft","reason":"it is slow",
    "engine":"mirrored"}"#;
const NO_KVM: &str = r#"{"kvm":"missing","accelerator":"soft","reason":"it is missing",
    "engine":"interpreted"}"#;

#[test]
fn check_tells_programs_and_people_the_same() {
    let home = Home::new();
    for (probe, accelerator, status) in
        [(FAST_KVM, "kvm", 0), (SLOW_KVM, "soft", 6), (NO_KVM, "soft", 6)]
    {
        let output = check(&home, probe, &["--json"]);
        assert!(output.status.success());
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["guests_can_run"], true);
        assert_eq!(report["accelerator"], accelerator);
        let people = text(&check(&home, probe, &[]).stdout);
        for finding in report["findings"].as_array().unwrap() {
            assert!(people.contains(finding["detail"].as_str().unwrap()), "{finding}");
        }
        assert!(people.contains(report["reason"].as_str().unwrap()), "{people}");
        let required = check(&home, probe, &["--require", "kvm"]);
        assert_eq!(required.status.code(), Some(status));
    }
}

#[test]
fn check_needs_a_vmm_that_it_understands() {
    let home = Home::new();
    let output = check(&home, "hello", &[]);
    assert_eq!(output.status.code(), Some(6));
    assert!(text(&output.stderr).contains("another language"));
    let missing = home.lodge(&["check"]).env("LODGE_VMM", "/nonexistent/vmm").output().unwrap();
    assert_eq!(missing.status.code(), Some(6));
    assert!(text(&missing.stderr).contains("/nonexistent/vmm"));
}

#[test]
fn completions_and_manual_pages_are_made() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        let output = home.lodge(&["completion", shell]).output().unwrap();
        assert!(output.status.success() && text(&output.stdout).contains("lodge"), "{shell}");
    }
    assert!(text(&home.lodge(&["man"]).output().unwrap().stdout).contains(".TH lodge 1"));
    let pages = home.path().join("man");
    fs::create_dir(&pages).unwrap();
    assert!(home.lodge(&["man"]).arg(&pages).status().unwrap().success());
    for page in ["lodge.1", "lodge-run.1", "lodge-image-build.1"] {
        assert!(pages.join(page).is_file(), "{page}");
    }
}

#[test]
fn guests_names_are_completed() {
    let home = Home::new();
    let record = r#"{"image":"debian:12","disk_sha256":"00","keep":true}"#;
    for name in ["web", "worker"] {
        fs::create_dir_all(home.path().join("guests").join(name)).unwrap();
        fs::write(home.path().join("guests").join(name).join("guest.json"), record).unwrap();
    }
    let complete = |command: &str, word: &str| {
        let mut lodge = home.lodge(&["--", "lodge", command, word]);
        lodge.env("LODGE_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", "2").env("_CLAP_IFS", "\n");
        text(&lodge.output().unwrap().stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    for command in ["start", "stop", "rm", "logs", "console", "inspect", "stats", "events"] {
        assert_eq!(complete(command, "w"), ["web", "worker"], "{command}");
    }
    assert_eq!(complete("stop", "wo"), ["worker"]);
}

/// A file that begins as a program that needs no libraries does.
fn static_program(home: &Home) -> std::path::PathBuf {
    let mut header = [0; 64];
    header[..6].copy_from_slice(b"\x7fELF\x02\x01");
    header[18] = 62; // x86-64
    header[32] = 64;
    header[54] = 56;
    home.file("agent", header)
}

#[test]
fn a_pull_that_is_given_up_says_by_which_signal() {
    let home = Home::new();
    // It takes connections, and never says anything.
    let registry = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("docker://{}/app:1", registry.local_addr().unwrap());
    home.import_web();
    for arguments in [&["image", "pull", &name][..], &["run", &name]] {
        let mut child = home
            .lodge(arguments)
            .env("LODGE_AGENT", static_program(&home))
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let connection = registry.accept().unwrap();
        // The first gives it up; who still waits for the registry is ended by the next.
        let pid = child.id().to_string();
        while child.try_wait().unwrap().is_none() {
            std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let (code, errors) = outcome(&child.wait_with_output().unwrap());
        assert_eq!(code, Some(130), "{arguments:?}: {errors}");
        assert!(errors.contains("given up"), "{errors}");
        drop(connection);
    }
}

#[test]
fn an_agent_that_guests_cannot_run_is_refused() {
    let home = Home::new();
    let pull = |agent: &Path| {
        let mut command = home.lodge(&["image", "pull", "oci:/no/where"]);
        outcome(&command.env("LODGE_AGENT", agent).output().unwrap())
    };
    // Rust links dynamically unless it is told otherwise.
    let (code, errors) = pull(Path::new(env!("CARGO_BIN_EXE_lodge")));
    assert_eq!(code, Some(6), "{errors}");
    assert!(errors.contains("needs libraries") && errors.contains("make build"), "{errors}");
    let (code, errors) = pull(&home.file("text", "no program"));
    assert_eq!(code, Some(4), "{errors}");
    let (code, errors) = pull(&static_program(&home));
    assert!(code == Some(4) && errors.contains("/no/where"), "{errors}");
}
