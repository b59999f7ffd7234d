//! Guests that go on from snapshots: in the same state, more than once, or not at all and why.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{COUNTS, Vmm, wait};
use serde_json::{Value, json};
use vmm_api::{Event, Failure, FailureKind, SnapshotRequest};

const SOFT: &str = "soft";

/// A guest that counts, on an accelerator, and its console.
fn counting(accelerator: &str) -> (Vmm, UnixStream) {
    let vmm = Vmm::start(COUNTS, json!({ "accelerator": accelerator }));
    let console = console_of(&vmm);
    (vmm, console)
}

fn console_of(vmm: &Vmm) -> UnixStream {
    let console = vmm.client().console(0).unwrap().0;
    console.set_read_timeout(Some(common::PATIENCE)).unwrap();
    console
}

/// Has the guest count once more: its counts in a register and in memory.
fn count(console: &mut UnixStream) -> [u8; 2] {
    console.write_all(b"x").unwrap();
    let mut counts = [0; 2];
    console.read_exact(&mut counts).unwrap();
    counts
}

fn snapshot(vmm: &Vmm, name: &str) {
    vmm.client().make_snapshot(&SnapshotRequest { name: name.to_owned() }).unwrap();
}

fn place(vmm: &Vmm, name: &str) -> PathBuf {
    vmm.dir.path().join("snapshots").join(name)
}

/// Another guest, in a directory of its own, that goes on from a snapshot.
fn restored(snapshot: &Path, change: Value) -> Vmm {
    Vmm::start_from(tempfile::tempdir().unwrap(), COUNTS, change, Some(snapshot))
}

/// Why a snapshot is refused.
fn refusal(snapshot: &Path, change: Value) -> Failure {
    let mut vmm = restored(snapshot, change.clone());
    match vmm.event() {
        Some(Event::Error(failure)) => failure,
        other => panic!("{change}: {other:?}"),
    }
}

fn goes_on_twice(accelerator: &str) {
    let (vmm, mut console) = counting(accelerator);
    for n in 1..=3 {
        assert_eq!(count(&mut console), [n, n]);
    }
    snapshot(&vmm, "three");
    // It went on itself.
    assert_eq!(count(&mut console), [4, 4]);
    vmm.client().pause().unwrap();
    snapshot(&vmm, "paused");
    assert_eq!(vmm.client().instance().unwrap().state, vmm_api::RunState::Paused);
    vmm.client().resume().unwrap();
    assert_eq!(count(&mut console), [5, 5]);
    let names: Vec<String> =
        vmm.client().snapshots().unwrap().into_iter().map(|it| it.name).collect();
    assert_eq!(names, ["three", "paused"]);

    for (name, first) in [("three", 4), ("three", 4), ("paused", 5)] {
        let mut again = restored(&place(&vmm, name), json!({ "accelerator": accelerator }));
        let event = again.event();
        assert!(matches!(event, Some(Event::Started { .. })), "{event:?}");
        let mut console = console_of(&again);
        for n in first..first + 3 {
            assert_eq!(count(&mut console), [n, n]);
        }
        // One that was restored is kept as well.
        snapshot(&again, "later");
        let mut third = restored(&place(&again, "later"), json!({ "accelerator": accelerator }));
        assert!(matches!(third.event(), Some(Event::Started { .. })));
        let mut console = third.client().console(0).unwrap().0;
        assert_eq!(count(&mut console), [first + 3, first + 3]);
        // A reset leads to the kernel.
        third.client().reset().unwrap();
        wait("the reset", || third.client().instance().unwrap().resets == 1);
        assert_eq!(count(&mut console), [1, 1]);
    }
}

#[test]
fn a_guest_goes_on_from_a_snapshot_as_often_as_one_likes() {
    goes_on_twice(SOFT);
}

/// Whether there is a KVM to test; says so if not.
fn has_kvm() -> bool {
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm");
    kvm.inspect_err(|error| eprintln!("SKIPPED: snapshots on KVM: /dev/kvm: {error}")).is_ok()
}

#[test]
fn so_it_does_on_kvm() {
    if has_kvm() {
        goes_on_twice("kvm");
    }
}

/// A guest with a processor model that both have, and one with all that the host has.
#[test]
fn a_guest_goes_on_under_another_accelerator_or_is_refused() {
    if !has_kvm() {
        return;
    }
    let ways = [("kvm", SOFT), (SOFT, "kvm")];
    let models = ["x86-64", "x86-64-v2"];
    for ((from, to), model) in ways.iter().flat_map(|way| models.map(|model| (*way, model))) {
        let with = |accelerator| json!({ "accelerator": accelerator, "cpu_model": model });
        let vmm = Vmm::start(COUNTS, with(from));
        let mut before = console_of(&vmm);
        for n in 1..=3 {
            assert_eq!(count(&mut before), [n, n]);
        }
        snapshot(&vmm, "three");
        let mut after = restored(&place(&vmm, "three"), with(to));
        match after.event() {
            Some(Event::Started { .. }) => {
                let mut console = console_of(&after);
                for n in 4..=6 {
                    assert_eq!(count(&mut console), [n, n]);
                }
            }
            // Not every KVM offers all of the model, but for the baseline.
            Some(Event::Error(failure))
                if model != "x86-64" && failure.message.contains("CPUID leaf") =>
            {
                eprintln!("SKIPPED: {model} from {from} to {to}: {failure}");
            }
            other => panic!("{model} from {from} to {to}: {other:?}"),
        }
        // Where it comes from, it goes on as well.
        let mut same = restored(&place(&vmm, "three"), with(from));
        assert!(matches!(same.event(), Some(Event::Started { .. })), "{model} on {from}");
        assert_eq!(count(&mut console_of(&same)), [4, 4]);
    }
    // All of the host includes what KVM alone has for guests.
    let (vmm, mut console) = counting("kvm");
    count(&mut console);
    snapshot(&vmm, "one");
    let failure = refusal(&place(&vmm, "one"), json!({ "accelerator": SOFT }));
    assert_eq!(failure.kind, FailureKind::Configuration);
    assert!(failure.message.contains("CPUID leaf"), "{failure}");
}

#[test]
fn guests_with_enlightenments_go_on_with_them() {
    if !has_kvm() {
        return;
    }
    let with = |hyperv| json!({ "accelerator": "kvm", "hyperv": hyperv });
    let mut vmm = Vmm::start_in(tempfile::tempdir().unwrap(), COUNTS, with(true));
    match vmm.event() {
        Some(Event::Started { .. }) => {}
        Some(Event::Error(failure)) if failure.message.contains("--hyperv") => {
            eprintln!("SKIPPED: {failure}");
            return;
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(count(&mut console_of(&vmm)), [1, 1]);
    snapshot(&vmm, "one");
    let one = place(&vmm, "one");
    let mut again = restored(&one, with(true));
    let event = again.event();
    assert!(matches!(event, Some(Event::Started { .. })), "{event:?}");
    assert_eq!(count(&mut console_of(&again)), [2, 2]);
    let failure = refusal(&one, with(false));
    assert!(failure.message.contains("with --hyperv"), "{failure}");
}

#[test]
fn other_machines_are_refused() {
    let (vmm, mut console) = counting(SOFT);
    count(&mut console);
    snapshot(&vmm, "one");
    let one = place(&vmm, "one");
    for (change, named) in [
        (json!({ "memory_mib": 32 }), "amount of memory"),
        (json!({ "cpu_model": "x86-64-v2" }), "CPUID leaf"),
        (json!({ "debug": {} }), "isa-debug-exit"),
        (json!({ "nets": [{}] }), "pci/"),
        (json!({ "cpus": 1 }), "2 processors"),
        (json!({ "cpus": 3 }), "2 processors"),
    ] {
        let failure = refusal(&one, change.clone());
        assert!(failure.message.contains(named), "{change}: {failure}");
        let kinds = [FailureKind::Configuration, FailureKind::Artifact];
        assert!(kinds.contains(&failure.kind), "{failure:?}");
    }
}

/// Changes one byte of a file for a moment.
fn with_damage(path: &Path, at: usize, act: impl FnOnce()) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let whole = fs::read(path).unwrap();
    let mut damaged = whole.clone();
    damaged[at] ^= 0x10;
    fs::write(path, &damaged).unwrap();
    act();
    fs::write(path, &whole).unwrap();
}

#[test]
fn damage_is_told_with_its_place() {
    let (vmm, mut console) = counting(SOFT);
    count(&mut console);
    snapshot(&vmm, "one");
    let one = place(&vmm, "one");
    let state = fs::read(one.join("state")).unwrap();
    let device = state.windows(11).position(|bytes| bytes == b"device/COM1").unwrap() + 40;
    with_damage(&one.join("state"), device, || {
        let failure = refusal(&one, json!({ "accelerator": SOFT }));
        assert_eq!(failure.kind, FailureKind::Artifact);
        assert!(failure.message.contains("\"device/COM1\""), "{failure}");
        assert!(failure.message.contains("at byte"), "{failure}");
    });
    with_damage(&one.join("memory"), 0x20_0000 - 0x2_0000, || {
        let failure = refusal(&one, json!({ "accelerator": SOFT }));
        assert_eq!(failure.kind, FailureKind::Artifact);
        assert!(failure.message.contains("of the memory file"), "{failure}");
    });
    let memory = fs::OpenOptions::new().write(true).open(one.join("memory")).unwrap();
    memory.set_len(1 << 20).unwrap();
    assert!(refusal(&one, json!({})).message.contains("another length"));
    fs::remove_file(one.join("memory")).unwrap();
    assert_eq!(refusal(&one, json!({})).kind, FailureKind::Artifact);
}

/// The memory files of a snapshot, by their names, and how much room each takes.
fn memory_files(snapshot: &Path) -> BTreeMap<String, u64> {
    let entries = fs::read_dir(snapshot).unwrap().map(Result::unwrap);
    let files = entries.map(|entry| {
        (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().blocks() * 512)
    });
    files.filter(|(name, _)| name.starts_with("memory")).collect()
}

fn changes_alone_are_kept(accelerator: &str) {
    let (vmm, mut console) = counting(accelerator);
    let names = ["one", "two", "three"];
    for (n, name) in (1..).zip(names) {
        assert_eq!(count(&mut console), [n, n]);
        snapshot(&vmm, name);
    }
    let files = names.map(|name| memory_files(&place(&vmm, name)));
    let names_of = |n: usize| files[n].keys().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(names_of(0), ["memory"]);
    assert_eq!(names_of(1), ["memory", "memory.1"]);
    // What the second has alone has changed again: the third needs nothing of it.
    assert_eq!(names_of(2), ["memory", "memory.1"]);
    assert!(files[1]["memory"] < files[0]["memory"] / 2, "{files:?}");

    // One that goes on from the middle, and what is made of that.
    let mut second = restored(&place(&vmm, "two"), json!({ "accelerator": accelerator }));
    assert!(matches!(second.event(), Some(Event::Started { .. })));
    assert_eq!(count(&mut console_of(&second)), [3, 3]);
    drop(second);
    // Without those in between, each is as whole as before.
    fs::remove_dir_all(place(&vmm, "one")).unwrap();
    fs::remove_dir_all(place(&vmm, "two")).unwrap();
    let mut third = restored(&place(&vmm, "three"), json!({ "accelerator": accelerator }));
    assert!(matches!(third.event(), Some(Event::Started { .. })));
    assert_eq!(count(&mut console_of(&third)), [4, 4]);

    // The snapshots before are gone: the next stands alone.
    fs::remove_dir_all(place(&vmm, "three")).unwrap();
    assert_eq!(count(&mut console), [4, 4]);
    snapshot(&vmm, "four");
    assert_eq!(memory_files(&place(&vmm, "four")).keys().collect::<Vec<_>>(), ["memory"]);
    // Of those that are left, it stands on the last.
    snapshot(&vmm, "passing");
    fs::remove_dir_all(place(&vmm, "passing")).unwrap();
    assert_eq!(count(&mut console), [5, 5]);
    snapshot(&vmm, "last");
    let files = memory_files(&place(&vmm, "last"));
    assert_eq!(files.keys().collect::<Vec<_>>(), ["memory", "memory.1"]);
    // After a reset it stands alone.
    vmm.client().reset().unwrap();
    wait("the reset", || vmm.client().instance().unwrap().resets == 1);
    assert_eq!(count(&mut console), [1, 1]);
    snapshot(&vmm, "five");
    let mut fifth = restored(&place(&vmm, "five"), json!({ "accelerator": accelerator }));
    assert!(matches!(fifth.event(), Some(Event::Started { .. })));
    assert_eq!(count(&mut console_of(&fifth)), [2, 2]);
}

#[test]
fn only_what_has_changed_is_kept() {
    changes_alone_are_kept(SOFT);
}

#[test]
fn so_it_is_on_kvm() {
    if has_kvm() {
        changes_alone_are_kept("kvm");
    }
}

/// A guest goes on in the directory that its snapshots are in, as `lodge snapshot restore` has it.
#[test]
fn a_guest_that_was_restored_keeps_what_it_changes() {
    let (mut vmm, mut console) = counting(SOFT);
    for n in 1..=2 {
        assert_eq!(count(&mut console), [n, n]);
    }
    snapshot(&vmm, "one");
    vmm.child.kill().unwrap();
    vmm.child.wait().unwrap();
    let (dir, one) = (std::mem::replace(&mut vmm.dir, tempfile::tempdir().unwrap()), "one");
    let from = dir.path().join("snapshots").join(one);
    let mut again = Vmm::start_from(dir, COUNTS, json!({ "accelerator": SOFT }), Some(&from));
    assert!(matches!(again.event(), Some(Event::Started { .. })));
    let mut console = console_of(&again);
    for n in 3..6u8 {
        assert_eq!(count(&mut console), [n, n]);
        snapshot(&again, &format!("at{n}"));
        let files = memory_files(&place(&again, &format!("at{n}")));
        assert!(files.len() > 1 && files["memory"] < files["memory.1"] / 2, "{files:?}");
        let mut third = restored(&place(&again, &format!("at{n}")), json!({ "accelerator": SOFT }));
        assert!(matches!(third.event(), Some(Event::Started { .. })));
        assert_eq!(count(&mut console_of(&third)), [n + 1, n + 1]);
    }
    // Damage in a file that others have as well is noticed by all, and its place is told.
    with_damage(&place(&again, "at3").join("memory.1"), 0x20_0000 - 0x2_0000, || {
        let failure = refusal(&place(&again, "at5"), json!({ "accelerator": SOFT }));
        assert_eq!(failure.kind, FailureKind::Artifact);
        assert!(failure.message.contains("of the memory file memory.1"), "{failure}");
    });
    fs::remove_file(place(&again, "at5").join("memory.1")).unwrap();
    let failure = refusal(&place(&again, "at5"), json!({ "accelerator": SOFT }));
    assert!(failure.message.contains("memory.1"), "{failure}");
}

#[test]
fn a_vmm_that_is_killed_leaves_no_half_of_a_snapshot() {
    for round in 0..12u64 {
        let (mut vmm, mut console) = counting(SOFT);
        assert_eq!(count(&mut console), [1, 1]);
        snapshot(&vmm, "whole");
        let mut client = vmm.client();
        let maker = std::thread::spawn(move || {
            let _ = client.make_snapshot(&SnapshotRequest { name: "killed".to_owned() });
        });
        std::thread::sleep(Duration::from_micros(400 * round * round));
        vmm.child.kill().unwrap();
        vmm.child.wait().unwrap();
        maker.join().unwrap();
        // What has a name is whole, and goes on.
        for name in ["whole", "killed"] {
            let snapshot = place(&vmm, name);
            if name == "killed" && !snapshot.exists() {
                continue;
            }
            let mut again = restored(&snapshot, json!({ "accelerator": SOFT }));
            assert!(matches!(again.event(), Some(Event::Started { .. })), "{name}, round {round}");
            let mut console = again.client().console(0).unwrap().0;
            assert_eq!(count(&mut console), [2, 2]);
        }
    }
}
