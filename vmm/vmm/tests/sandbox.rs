//! A VMM that runs a guest is confined, with all of its threads.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use common::{ECHOES, SLEEPS, Vmm, wait};
use serde_json::json;
use vmm_api::Event;

/// What the kernel says of a thread (proc(5), status).
fn status(task: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(task.join("status")).unwrap();
    let field = |line: &str| {
        line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
    };
    text.lines().filter_map(field).collect()
}

fn threads(vmm: &Vmm) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{}/task", vmm.child.id())).unwrap();
    tasks.map(|task| status(&task.unwrap().path())).collect()
}

fn is_confined(thread: &BTreeMap<String, String>) -> bool {
    let is = |name: &str, value: &str| thread.get(name).is_some_and(|it| it == value);
    // 2 is SECCOMP_MODE_FILTER.
    is("Seccomp", "2") && is("NoNewPrivs", "1") && is("CapEff", "0000000000000000")
}

#[test]
fn every_thread_of_a_vmm_is_confined() {
    let net = json!({
        "accelerator": "soft", "nets": [{}], "virtio_console": "null", "serial": "api",
        "folders": [{ "path": "/usr", "guest": "/usr/host", "readonly": true }],
    });
    let mut vmm = Vmm::start(SLEEPS, net);
    for round in 0..2 {
        // A thread that has just been made has its name yet to come.
        wait("all threads", || {
            let threads = threads(&vmm);
            let names: Vec<_> = threads.iter().filter_map(|thread| thread.get("Name")).collect();
            ["lodge-vmm", "vcpu0", "vcpu1", "timers", "api", "console", "user-network"]
                .iter()
                .all(|name| names.iter().any(|known| known == name))
        });
        for thread in &threads(&vmm) {
            assert!(is_confined(thread), "{thread:#?}");
        }
        let limits = fs::read_to_string(format!("/proc/{}/limits", vmm.child.id())).unwrap();
        let core: Vec<_> = limits.lines().filter(|it| it.starts_with("Max core")).collect();
        assert!(core[0].split_whitespace().filter(|word| *word == "0").count() == 2, "{core:?}");
        assert!(vmm.client().statistics().unwrap().memory.resident_bytes > 0);
        if round == 0 {
            // All is built anew from what is open.
            fs::remove_file(vmm.dir.path().join("kernel")).unwrap();
            vmm.client().reset().unwrap();
            assert_eq!(vmm.event(), Some(Event::Reset));
        }
    }
}

#[test]
fn a_vmm_is_not_confined_if_nobody_wants_it() {
    let vmm = Vmm::start(SLEEPS, json!({ "sandbox": { "mode": "off" } }));
    assert!(threads(&vmm).iter().all(|thread| !is_confined(thread)));
}

/// mov dx, 0x3f9; mov al, 1; out dx, al; mov dx, 0x3fc; mov al, 8; out dx, al: the serial port interrupts
/// when it has received something.
const LISTENS: &[u8] =
    &[0x66, 0xba, 0xf9, 0x03, 0xb0, 0x01, 0xee, 0x66, 0xba, 0xfc, 0x03, 0xb0, 0x08, 0xee];

/// KVM's interrupt lines are raised by system calls, by whatever thread has something for the guest.
#[test]
fn a_console_interrupts_its_guest() {
    for accelerator in ["soft", "kvm"] {
        let dir = tempfile::tempdir().unwrap();
        let code = [LISTENS, ECHOES].concat();
        let mut vmm = Vmm::start_in(dir, &code, json!({ "accelerator": accelerator }));
        match vmm.event() {
            Some(Event::Started { .. }) => {}
            Some(Event::Error(failure)) if accelerator == "kvm" => {
                eprintln!("SKIPPED: KVM does not work here: {failure}");
                continue;
            }
            event => panic!("{event:?}"),
        }
        let (mut console, _) = vmm.client().console(0).unwrap();
        for byte in *b"ab" {
            console.write_all(&[byte]).unwrap();
            let mut echo = [0];
            console.read_exact(&mut echo).unwrap();
            assert_eq!(echo, [byte]);
        }
        assert_eq!(vmm.child.try_wait().unwrap(), None);
    }
}

/// fninit; fld dword ptr [0xd0000000]: a load from no device, which KVM's emulator has no code for.
const NEEDS_HELP: &[u8] = &[0xdb, 0xe3, 0xd9, 0x05, 0, 0, 0, 0xd0];

/// Lodge's interpreter executes what KVM gives up on, for which it needs system calls of its own.
#[test]
fn kvm_is_helped_out() {
    let dir = tempfile::tempdir().unwrap();
    let code = [NEEDS_HELP, LISTENS, ECHOES].concat();
    let mut vmm = Vmm::start_in(dir, &code, json!({ "accelerator": "kvm" }));
    match vmm.event() {
        Some(Event::Started { .. }) => {}
        Some(Event::Error(failure)) => {
            eprintln!("SKIPPED: KVM does not work here: {failure}");
            return;
        }
        event => panic!("{event:?}"),
    }
    let (mut console, _) = vmm.client().console(0).unwrap();
    console.write_all(b"a").unwrap();
    let mut echo = [0];
    console.read_exact(&mut echo).unwrap();
    assert_eq!(echo, *b"a");
    let statistics = vmm.client().statistics().unwrap();
    assert!(statistics.processors[0].counts["exits_assisted"] > 0, "{statistics:?}");
}
