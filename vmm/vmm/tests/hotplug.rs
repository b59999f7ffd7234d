//! Devices that come and go, in a guest of a few instructions and a VMM that has confined itself.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{CLINGS, LETS_GO, SLEEPS, Vmm, wait};
use serde_json::json;
use vmm_api::{
    AttachRequest, BlockConfig, DetachRequest, Device, Event, Failure, FailureKind, NetConfig,
    NetworkConfig,
};
use vmm_client::Error;

fn disk(path: &Path, readonly: bool) -> BlockConfig {
    BlockConfig { path: path.to_owned(), readonly, ..BlockConfig::default() }
}

/// An image of a MiB.
fn image(vmm: &Vmm, name: &str) -> PathBuf {
    let path = vmm.dir.path().join(name);
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    path
}

fn attach(vmm: &Vmm, disk: &BlockConfig) -> Result<Device, Error> {
    let file = File::options().read(true).write(!disk.readonly).open(&disk.path).unwrap();
    let descriptors = vec![disk.path.clone()];
    let request = AttachRequest { device: Device::Disk(disk.clone()), descriptors };
    vmm.client().attach(&request, &[file.as_fd()])
}

fn detach(vmm: &Vmm, id: &str, force: bool, timeout_s: u32) -> Result<(), Error> {
    vmm.client().detach(&DetachRequest { id: id.to_owned(), force, timeout_s })
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, why: &str) -> FailureKind {
    match result {
        Err(Error::Refused(Failure { kind, message })) => {
            assert!(message.contains(why), "{message}");
            kind
        }
        other => panic!("{other:?}"),
    }
}

fn events(vmm: &mut Vmm, count: usize) -> Vec<Event> {
    (0..count).map(|_| vmm.event().unwrap()).collect()
}

#[test]
fn a_disk_comes_and_goes() {
    let mut vmm = Vmm::start(LETS_GO, json!({}));
    vmm.wait_until_it_listens();
    let path = image(&vmm, "data");
    let attached = attach(&vmm, &disk(&path, false)).unwrap();
    assert_eq!(attached.id().as_deref(), Some("disk-24"));
    let Device::Disk(attached) = attached else { panic!("no disk") };
    assert_eq!(attached.serial.as_deref(), Some("disk-24"));
    let config = vmm.client().config().unwrap();
    assert_eq!(config.disks, [attached]);
    assert_eq!(vmm.client().statistics().unwrap().disks.len(), 1);

    // It is this guest's alone, and once.
    refused(attach(&vmm, &disk(&path, false)), "given twice");
    refused(attach(&vmm, &disk(&path, true)), "given twice");
    let link = vmm.dir.path().join("link");
    std::fs::hard_link(&path, &link).unwrap();
    refused(attach(&vmm, &disk(&link, true)), "another process uses it");

    detach(&vmm, path.to_str().unwrap(), false, 100).unwrap();
    assert_eq!(vmm.client().config().unwrap().disks, []);
    assert_eq!(vmm.client().statistics().unwrap().disks, []);
    let id = "disk-24".to_owned();
    let wanted = [Event::DeviceAttached { id: id.clone() }, Event::DeviceDetached { id }];
    assert_eq!(events(&mut vmm, 2), wanted);
    // Its locks are gone with it, and another slot is next.
    let attached = attach(&vmm, &disk(&link, false)).unwrap();
    assert_eq!(attached.id().as_deref(), Some("disk-25"));
}

/// Under KVM, the main thread has doorbells rung by the kernel, after it has confined itself.
#[test]
fn a_disk_comes_and_goes_under_kvm() {
    let probe = Command::new(env!("CARGO_BIN_EXE_lodge-vmm")).arg("--probe").output().unwrap();
    let report: vmm_api::HostReport = serde_json::from_slice(&probe.stdout).unwrap();
    if report.kvm != vmm_api::KvmState::Works {
        eprintln!("SKIPPED: hot plug under KVM: {:?}", report.kvm);
        return;
    }
    let vmm = Vmm::start(LETS_GO, json!({ "accelerator": "kvm" }));
    vmm.wait_until_it_listens();
    let path = image(&vmm, "data");
    for number in 24..34 {
        let id = attach(&vmm, &disk(&path, false)).unwrap().id().unwrap();
        assert_eq!(id, format!("disk-{}", 24 + number % 8));
        detach(&vmm, &id, false, 100).unwrap();
    }
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let vmm = Vmm::start(LETS_GO, json!({ "disks": [], "nets": [] }));
    vmm.wait_until_it_listens();
    let path = image(&vmm, "data");
    let good = disk(&path, true);
    let file = File::open(&path).unwrap();
    let request = |disk: &BlockConfig, descriptors: &[&Path]| AttachRequest {
        device: Device::Disk(disk.clone()),
        descriptors: descriptors.iter().map(|path| path.to_path_buf()).collect(),
    };
    let ask = |request: &AttachRequest, files: &[&File]| {
        let fds: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        vmm.client().attach(request, &fds)
    };
    refused(ask(&request(&good, &[]), &[]), "not handed over");
    refused(ask(&request(&good, &[&path]), &[]), "0 descriptors came");
    refused(ask(&request(&good, &[]), &[&file]), "1 descriptors came");
    refused(ask(&request(&good, &[Path::new("/other")]), &[&file]), "not handed over");
    let directory = File::open(vmm.dir.path()).unwrap();
    refused(ask(&request(&good, &[&path]), &[&directory]), "a directory");
    let overlay = BlockConfig { overlay: Some("/o".into()), readonly: false, ..good.clone() };
    refused(ask(&request(&overlay, &[&path]), &[&file]), "overlay");
    let slot = |slot| BlockConfig { slot: Some(slot), ..good.clone() };
    refused(ask(&request(&slot(3), &[&path]), &[&file]), "slot 3");
    let damaged = vmm.dir.path().join("damaged.qcow2");
    std::fs::write(&damaged, [b"QFI\xfb".as_slice(), &[0xff; 1000]].concat()).unwrap();
    let damaged = BlockConfig { path: damaged, ..good.clone() };
    assert_ne!(refused(attach(&vmm, &damaged), "damaged.qcow2"), FailureKind::Internal);

    // This guest has no network, and its VMM makes no connections.
    let card = |network| AttachRequest {
        device: Device::Net(NetConfig { network, ..NetConfig::default() }),
        descriptors: Vec::new(),
    };
    refused(ask(&card(NetworkConfig::User), &[]), "sandbox");
    refused(ask(&card(NetworkConfig::Tap("t".into())), &[]), "its tap");

    refused(detach(&vmm, "disk-24", false, 1), "no device disk-24");
    vmm.client().pause().unwrap();
    refused(attach(&vmm, &good), "paused");
    refused(detach(&vmm, "disk-24", true, 1), "paused");
    vmm.client().resume().unwrap();

    for number in 24..32 {
        let id = attach(&vmm, &good).unwrap().id().unwrap();
        assert_eq!(id, format!("disk-{number}"));
    }
    refused(attach(&vmm, &good), "all 8 slots");
    detach(&vmm, "disk-24", true, 100).unwrap();
    detach(&vmm, "disk-28", false, 100).unwrap();
    let names: Vec<_> = vmm.client().config().unwrap().devices().map(|it| it.slot()).collect();
    assert_eq!(names, [25, 26, 27, 29, 30, 31].map(Some));
}

#[test]
fn a_guest_that_clings_to_its_device_loses_it_by_force() {
    let mut vmm = Vmm::start(CLINGS, json!({ "disks": [] }));
    vmm.wait_until_it_listens();
    let first = image(&vmm, "first");
    attach(&vmm, &disk(&first, false)).unwrap();
    let second = image(&vmm, "second");
    attach(&vmm, &disk(&second, false)).unwrap();
    refused(detach(&vmm, "disk-25", false, 0), "has not done so yet");
    // A snapshot would change with the disk.
    let snapshot = vmm_api::SnapshotRequest { name: "one".into() };
    refused(vmm.client().make_snapshot(&snapshot), "itself");
    // After a reset it is there as before, and who waits is told.
    let mut waits = vmm.connect();
    let body = r#"{"id":"disk-25","timeout_s":1000}"#;
    let head = format!("POST /v1/detach HTTP/1.1\r\nHost: x\r\nContent-Length: {}", body.len());
    waits.write_all(format!("{head}\r\nConnection: close\r\n\r\n{body}").as_bytes()).unwrap();
    // Who comes later is answered later.
    vmm.client().instance().unwrap();
    vmm.client().reset().unwrap();
    let mut answer = String::new();
    waits.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("409") && answer.contains("was reset meanwhile"), "{answer}");
    wait("the reset", || vmm.client().instance().unwrap().resets == 1);
    assert_eq!(vmm.client().config().unwrap().disks.len(), 2);
    assert_eq!(vmm.client().statistics().unwrap().disks.len(), 2);
    detach(&vmm, "disk-25", true, 0).unwrap();
    let gone = Event::DeviceDetached { id: "disk-25".into() };
    let events: Vec<_> = std::iter::from_fn(|| vmm.event().filter(|it| *it != gone)).collect();
    assert!(events.contains(&Event::Reset), "{events:?}");
    assert_eq!(vmm.client().config().unwrap().disks.len(), 1);
}

#[test]
fn a_guest_that_does_not_listen_gets_nothing() {
    let vmm = Vmm::start(SLEEPS, json!({}));
    let path = image(&vmm, "data");
    refused(attach(&vmm, &disk(&path, false)), "notices no devices");
    // What has a slot from the beginning can still be taken away.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let config = json!({ "disks": [
        { "path": path, "readonly": true }, { "path": path, "readonly": true, "slot": 30 },
    ] });
    let vmm = Vmm::start(SLEEPS, config);
    refused(detach(&vmm, "disk-30", false, 1), "does not notice");
    refused(detach(&vmm, path.to_str().unwrap(), true, 1), "for as long as the guest runs");
    detach(&vmm, "disk-30", true, 100).unwrap();
    assert_eq!(vmm.client().config().unwrap().disks.len(), 1);

    // The disk that a guest likely runs from.
    drop(vmm);
    let config = json!({ "disks": [{ "path": path, "slot": 31 }] });
    let vmm = Vmm::start(LETS_GO, config);
    vmm.wait_until_it_listens();
    refused(detach(&vmm, "disk-31", false, 1), "first disk");
    detach(&vmm, "disk-31", true, 100).unwrap();
    attach(&vmm, &disk(&path, false)).unwrap();
    detach(&vmm, "disk-24", false, 100).unwrap();
}
