//! The whole program, as whoever starts it sees it, with guests of a few instructions.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmm_api::{Event, FailureKind, StopReason};

/// cmp eax, 0x2badb002; jne fail; "OK\n" to COM1; 0x10 to the debug exit port; fail: 0x11.
const SAYS_OK: &[u8] = &[
    0x3d, 0x02, 0xb0, 0xad, 0x2b, 0x75, 0x15, 0xba, 0xf8, 0x03, 0x00, 0x00, 0xb0, b'O', 0xee, 0xb0,
    b'K', 0xee, 0xb0, b'\n', 0xee, 0xb0, 0x10, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd, 0xb0, 0x11, 0xe6,
    0xf4, 0xf4, 0xeb, 0xfd,
];
/// hlt; jmp back
const SLEEPS: &[u8] = &[0xf4, 0xeb, 0xfd];
/// ud2, and no interrupt descriptor table
const FAULTS: &[u8] = &[0x0f, 0x0b];
/// mov dx, 0x604; mov ax, 0x3400; out dx, ax; hlt
const SWITCHES_OFF: &[u8] =
    &[0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x34, 0x66, 0xef, 0xf4, 0xeb, 0xfd];
/// A generator of random numbers (x = x * 1664525 + 1013904223) that writes them to random ports:
/// mov esi, 1; again: imul esi, esi, 1664525; add esi, 1013904223; mov edx, esi; shr edx, 20;
/// mov eax, esi; out dx, al; out dx, ax; out dx, eax; in eax, dx; jmp again
const WRITES_NONSENSE: &[u8] = &[
    0xbe, 0x01, 0x00, 0x00, 0x00, 0x69, 0xf6, 0x0d, 0x66, 0x19, 0x00, 0x81, 0xc6, 0x5f, 0xf3, 0x6e,
    0x3c, 0x89, 0xf2, 0xc1, 0xea, 0x14, 0x89, 0xf0, 0xee, 0x66, 0xef, 0xef, 0xed, 0xeb, 0xe6,
];

struct Guest {
    child: Child,
    events: BufReader<ChildStdout>,
    dir: TempDir,
}

impl Guest {
    /// Starts a guest whose kernel is `code`, as a flat multiboot kernel. `change` is JSON that
    /// replaces fields of the configuration.
    fn start(code: &[u8], change: serde_json::Value) -> Self {
        Self::start_by("", code, change)
    }

    /// The same by a shell's command that executes another with its arguments, as in `nice -n 5`.
    fn start_by(by: &str, code: &[u8], change: serde_json::Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let header = [0x1bad_b002u32, 0x1_0000, 0xe451_4ffe, 0x10_0000, 0x10_0000, 0, 0, 0x10_0020];
        let kernel = dir.path().join("kernel");
        let header = header.map(u32::to_le_bytes);
        std::fs::write(&kernel, [header.as_flattened(), code].concat()).unwrap();
        let mut config = serde_json::json!({
            "name": "test", "cpus": 1, "memory_mib": 16,
            "boot": { "kernel": kernel },
            "serial": { "log": dir.path().join("serial") },
            "debug": { "debug_exit": true },
        });
        if let (Some(config), Some(change)) = (config.as_object_mut(), change.as_object()) {
            config.extend(change.clone());
        }
        let path = dir.path().join("config");
        std::fs::write(&path, config.to_string()).unwrap();
        let mut child = Command::new("sh")
            .args([
                "-c",
                &format!("exec {by} \"$0\" --config-fd 3 --status-fd 4 3<\"$1\" 4>&1 1>&2"),
            ])
            .arg(env!("CARGO_BIN_EXE_lodge-vmm"))
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let events = BufReader::new(child.stdout.take().unwrap());
        Self { child, events, dir }
    }

    fn event(&mut self) -> Option<Event> {
        Event::read_line(&mut self.events).unwrap()
    }

    #[track_caller]
    fn expect_started(&mut self) {
        let event = self.event();
        assert!(matches!(event, Some(Event::Started { .. })), "{event:?}");
    }

    /// Waits for the end, for at most two minutes; the exit status.
    fn end(&mut self) -> i32 {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().expect("ended by a signal");
            }
            assert!(Instant::now() < deadline, "the VMM does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn none() -> serde_json::Value {
    serde_json::Value::Null
}

#[test]
fn a_kernel_speaks_and_ends_the_vmm() {
    let mut guest = Guest::start(SAYS_OK, none());
    guest.expect_started();
    let reason = StopReason::DebugExit { status: 0x21 };
    assert_eq!(guest.event(), Some(Event::Stopped { reason }));
    assert_eq!(guest.event(), None);
    assert_eq!(guest.end(), 0x21);
    let text = std::fs::read_to_string(guest.dir.path().join("serial")).unwrap();
    assert_eq!(text, "OK\n");
}

/// What `lodge-vmm --probe` says.
fn probe() -> vmm_api::HostReport {
    let output = Command::new(env!("CARGO_BIN_EXE_lodge-vmm")).arg("--probe").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn kvm_runs_the_same_guests_where_it_works() {
    let kvm = || serde_json::json!({ "accelerator": "kvm", "cpus": 2 });
    if probe().kvm != vmm_api::KvmState::Works {
        // A host's problem is told as one.
        let mut guest = Guest::start(SAYS_OK, kvm());
        let Some(Event::Error(failure)) = guest.event() else { panic!("it started") };
        assert_eq!(failure.kind, FailureKind::Host);
        assert_eq!(guest.end(), 6);
        eprintln!("SKIPPED: KVM does not work here: {failure}");
        return;
    }
    let mut guest = Guest::start(SAYS_OK, kvm());
    let event = guest.event();
    assert!(
        matches!(event, Some(Event::Started { accelerator: vmm_api::Accelerator::Kvm, .. })),
        "{event:?}"
    );
    let reason = StopReason::DebugExit { status: 0x21 };
    assert_eq!(guest.event(), Some(Event::Stopped { reason }));
    assert_eq!(guest.end(), 0x21);
    let text = std::fs::read_to_string(guest.dir.path().join("serial")).unwrap();
    assert_eq!(text, "OK\n");

    let mut guest = Guest::start(SWITCHES_OFF, kvm());
    guest.expect_started();
    assert_eq!(guest.event(), Some(Event::Stopped { reason: StopReason::PowerOff }));
    let mut guest = Guest::start(SLEEPS, kvm());
    guest.expect_started();
    guest.signal("TERM");
    assert_eq!(guest.event(), Some(Event::Stopped { reason: StopReason::Requested }));
    let mut guest = Guest::start(FAULTS, kvm());
    guest.expect_started();
    assert_eq!(guest.event(), Some(Event::Reset));
}

#[test]
fn auto_does_what_the_probe_says_and_gives_the_reason() {
    let report = probe();
    let mut guest = Guest::start(SAYS_OK, serde_json::json!({ "accelerator": "auto" }));
    let Some(Event::Started { accelerator, accelerator_reason, .. }) = guest.event() else {
        panic!("it did not start")
    };
    assert_eq!(accelerator, report.accelerator);
    assert!(!accelerator_reason.is_empty() && !accelerator_reason.contains('\n'));
    let mut guest = Guest::start(SAYS_OK, serde_json::json!({ "accelerator": "soft" }));
    let Some(Event::Started { accelerator_reason, .. }) = guest.event() else {
        panic!("it did not start")
    };
    assert_eq!(accelerator_reason, "", "it was asked for");
}

/// Nobody may open /dev/kvm but root: who is not gets an error that names the group, or Lodge's own
/// engine with the reason.
#[test]
fn without_permission_kvm_is_refused_and_auto_goes_on() {
    use std::os::unix::fs::MetadataExt;
    let mode = std::fs::metadata("/dev/kvm").map(|m| m.mode());
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0);
    const NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    let works = is_root
        && mode.is_ok_and(|mode| mode & 0o006 == 0)
        && Command::new("sh")
            .args(["-c", &format!("exec {NOBODY} \"$0\" --version")])
            .arg(env!("CARGO_BIN_EXE_lodge-vmm"))
            .output()
            .is_ok_and(|output| output.status.success());
    if !works {
        eprintln!("SKIPPED: needs root, setpriv, and a /dev/kvm that is not open to all");
        return;
    }
    // A serial port that needs no file, since nobody could make one.
    let kvm = serde_json::json!({ "accelerator": "kvm", "serial": "null" });
    let mut guest = Guest::start_by(NOBODY, SAYS_OK, kvm);
    let Some(Event::Error(failure)) = guest.event() else { panic!("it started") };
    assert_eq!(failure.kind, FailureKind::Host);
    assert!(failure.message.contains("group"), "{failure}");
    assert_eq!(guest.end(), 6);

    let output = Command::new("sh")
        .args(["-c", &format!("exec {NOBODY} \"$0\" --probe")])
        .arg(env!("CARGO_BIN_EXE_lodge-vmm"))
        .output()
        .unwrap();
    let report: vmm_api::HostReport = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report.kvm, vmm_api::KvmState::Forbidden);
    assert_eq!(report.accelerator, vmm_api::Accelerator::Soft);
    assert!(report.reason.contains("Permission denied"), "{}", report.reason);
}

/// A machine without the device, which is told as such; "auto" goes on without it.
#[test]
fn without_a_device_kvm_is_refused_and_auto_goes_on() {
    // A /dev of its own, with what every program needs.
    const BARE: &str = "unshare --mount sh -c 'for name in null urandom; do touch /tmp/$$.$name && \
                        mount --bind /dev/$name /tmp/$$.$name || exit 99; done; \
                        mount -t tmpfs none /dev && for name in null urandom; do touch /dev/$name && \
                        mount --move /tmp/$$.$name /dev/$name && rm /tmp/$$.$name || exit 99; done; \
                        exec \"$@\"' sh";
    let works = Command::new("sh")
        .args(["-c", &format!("exec {BARE} \"$0\" --version")])
        .arg(env!("CARGO_BIN_EXE_lodge-vmm"))
        .output()
        .is_ok_and(|output| output.status.success());
    if !works {
        eprintln!("SKIPPED: needs unshare, and to be allowed to mount");
        return;
    }
    let kvm = || serde_json::json!({ "accelerator": "kvm" });
    fails(Guest::start_by(BARE, SAYS_OK, kvm()), FailureKind::Host, "modprobe");
    let mut guest = Guest::start_by(BARE, SLEEPS, serde_json::json!({ "accelerator": "auto" }));
    let Some(Event::Started { accelerator, accelerator_reason, .. }) = guest.event() else {
        panic!("it did not start")
    };
    assert_eq!(accelerator, vmm_api::Accelerator::Soft);
    assert!(accelerator_reason.contains("/dev/kvm"), "{accelerator_reason}");
}

/// What the host has not got to give, and what only KVM does, is refused with what to do.
#[test]
fn memory_and_features_that_cannot_be_had_are_refused() {
    let soft = |change: serde_json::Value| {
        let mut config = serde_json::json!({ "accelerator": "soft" });
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        config
    };
    let little = Guest::start_by(
        "prlimit --as=1000000000",
        SLEEPS,
        soft(serde_json::json!({ "memory_mib": 2048 })),
    );
    fails(little, FailureKind::Host, "--memory");
    let much = Guest::start(SLEEPS, soft(serde_json::json!({ "memory_mib": 1 << 19 })));
    fails(much, FailureKind::Host, "--memory");
    let huge = Guest::start(SLEEPS, soft(serde_json::json!({ "hugepages": true })));
    fails(huge, FailureKind::Configuration, "--hugepages");
    let hyperv = Guest::start(SLEEPS, soft(serde_json::json!({ "hyperv": true })));
    fails(hyperv, FailureKind::Configuration, "--hyperv");
}

#[test]
fn power_off_ends_with_success() {
    let mut guest = Guest::start(SWITCHES_OFF, none());
    guest.expect_started();
    assert_eq!(guest.event(), Some(Event::Stopped { reason: StopReason::PowerOff }));
    assert_eq!(guest.end(), 0);
}

#[test]
fn signals_end_a_sleeping_guest() {
    for signal in ["TERM", "INT", "HUP"] {
        let mut guest = Guest::start(SLEEPS, serde_json::json!({ "cpus": 3 }));
        guest.expect_started();
        guest.signal(signal);
        assert_eq!(guest.event(), Some(Event::Stopped { reason: StopReason::Requested }));
        assert_eq!(guest.end(), 0);
    }
}

#[test]
fn the_launchers_end_ends_the_guest() {
    let mut guest = Guest::start(SLEEPS, none());
    guest.expect_started();
    let (reader, _writer) = std::io::pipe().unwrap();
    guest.child.stdout = None;
    drop(std::mem::replace(
        &mut guest.events,
        BufReader::new(ChildStdout::from(std::os::fd::OwnedFd::from(reader))),
    ));
    assert_eq!(guest.end(), 0);
}

#[test]
fn a_triple_fault_resets() {
    let mut guest = Guest::start(FAULTS, none());
    guest.expect_started();
    // Sooner or later it is slowed down, and still resets.
    while !matches!(guest.event(), Some(Event::Warning { .. })) {}
    assert_eq!(guest.event(), Some(Event::Reset));
    guest.signal("INT");
    assert_eq!(guest.end(), 0);
}

#[test]
fn nonsense_at_the_ports_harms_only_the_guest() {
    let change = serde_json::json!({ "nets": [{}], "debug": { "testdev": true } });
    let mut guest = Guest::start(WRITES_NONSENSE, change);
    guest.expect_started();
    std::thread::sleep(Duration::from_secs(3));
    guest.signal("INT");
    assert_eq!(guest.end(), 0);
    // It may well have reset itself, or switched itself off.
    let mut last = None;
    while let Some(event) = guest.event() {
        last = Some(event);
    }
    assert!(matches!(last, Some(Event::Stopped { .. })), "{last:?}");
}

#[track_caller]
fn fails(mut guest: Guest, kind: FailureKind, part: &str) {
    let event = guest.event();
    let Some(Event::Error(failure)) = event else { panic!("{event:?}") };
    assert_eq!(failure.kind, kind, "{failure}");
    assert!(failure.message.contains(part), "{failure}");
    assert_eq!(guest.end(), i32::from(kind.exit_status()));
}

#[test]
fn failures_are_told_with_their_kind() {
    let start = |change| Guest::start(SLEEPS, change);
    let boot = |path: PathBuf| serde_json::json!({ "boot": { "kernel": path } });
    fails(start(boot("/nonexistent/k".into())), FailureKind::Artifact, "/nonexistent/k");
    fails(start(boot("/bin/sh".into())), FailureKind::Artifact, "/bin/sh");
    fails(start(serde_json::json!({ "cpus": 0 })), FailureKind::Configuration, "processors");
    fails(start(serde_json::json!({ "cpu": 0 })), FailureKind::Configuration, "`cpu`");
    let console = serde_json::json!({ "serial": { "fd": 77 } });
    fails(start(console), FailureKind::Host, "77");
    let disk = serde_json::json!({ "disks": [{ "path": "/nonexistent/d" }] });
    fails(start(disk), FailureKind::Artifact, "/nonexistent/d");
}

#[test]
fn a_person_gets_plain_text() {
    let output = Command::new(env!("CARGO_BIN_EXE_lodge-vmm"))
        .args(["--config", "/nonexistent/config"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(FailureKind::Configuration.exit_status().into()));
    let line = output.stderr.lines().next().unwrap().unwrap();
    assert!(line.starts_with("lodge-vmm: cannot read the configuration"), "{line}");
}

#[test]
fn nobody_need_read_the_plain_text() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = Command::new(env!("CARGO_BIN_EXE_lodge-vmm"))
        .args(["--config", "/nonexistent/config"])
        .stderr(writer)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(FailureKind::Configuration.exit_status().into()));
}

#[test]
fn a_console_is_an_inherited_descriptor_and_none_of_its_own() {
    let guest = Guest::start(SWITCHES_OFF, serde_json::json!({ "serial": { "fd": 3 } }));
    let config = guest.dir.path().join("config");
    // Without descriptors beyond the standard ones, 3 is the first that the program opens.
    let output = Command::new(env!("CARGO_BIN_EXE_lodge-vmm"))
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(FailureKind::Host.exit_status().into()));
    let line = output.stderr.lines().next().unwrap().unwrap();
    assert!(line.starts_with("lodge-vmm: cannot use descriptor 3"), "{line}");
}

/// A signal that interrupts a processor's thread would be handled in the midst of guest code.
#[test]
fn processors_are_left_alone_by_signals() {
    let mut guest = Guest::start(SLEEPS, serde_json::json!({ "cpus": 2 }));
    guest.expect_started();
    // All from 1 to 31 but KILL and STOP, and those of faults: ILL, TRAP, BUS, FPE, SEGV, SYS.
    let bit = |signal: u32| 1u64 << (signal - 1);
    let others = [9, 19, 4, 5, 7, 8, 11, 31].map(bit).iter().sum::<u64>();
    let wanted = 0x7fff_ffff & !others;
    let blocked = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", guest.child.id())).unwrap();
        let status = tasks
            .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok());
        let field = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        status
            .filter(|text| field(text, "Name:").starts_with("vcpu"))
            .map(|text| u64::from_str_radix(&field(&text, "SigBlk:"), 16).unwrap())
            .collect::<Vec<_>>()
    };
    let deadline = Instant::now() + Duration::from_secs(120);
    while blocked().iter().filter(|&mask| mask & wanted == wanted).count() != 2 {
        assert!(Instant::now() < deadline, "{:x?}", blocked());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(blocked().iter().all(|mask| mask & others == 0));
    guest.signal("INT");
    assert_eq!(guest.end(), 0);
}
