//! Where the guest's processors run on the host.

mod common;

use std::collections::BTreeMap;
use std::fs;

use common::{SLEEPS, Vmm, wait};
use serde_json::json;
use vmm_api::{Event, FailureKind};

/// A field of a thread's `status` (proc(5)), by the thread's name.
fn allowed(pid: u32) -> BTreeMap<String, String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("status")).ok()?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        Some((field("Name:")?.trim().to_owned(), field("Cpus_allowed_list:")?.trim().to_owned()))
    };
    tasks.filter_map(|task| of(task.unwrap())).collect()
}

#[test]
fn processors_run_where_they_are_to() {
    let all = allowed(std::process::id()).into_values().next().unwrap();
    // The last one that this process may run on.
    let last: u32 = all.rsplit([',', '-']).next().unwrap().parse().unwrap();
    let limits = json!({ "affinity": [[], [last]] });
    let vmm = Vmm::start(SLEEPS, json!({ "accelerator": "soft", "limits": limits }));
    let pid = vmm.child.id();
    // Threads that have just been made have their names yet to come.
    wait("a processor in its place", || allowed(pid).get("vcpu1") == Some(&last.to_string()));
    wait("the other one where it may be", || allowed(pid).get("vcpu0") == Some(&all));
    assert_eq!(allowed(pid).get("lodge-vmm"), Some(&all));
    assert_eq!(vmm.client().config().unwrap().limits.affinity, [vec![], vec![last]]);
}

#[test]
fn processors_that_are_not_there_are_refused() {
    let limits = json!({ "affinity": [[8191]] });
    let dir = tempfile::tempdir().unwrap();
    let mut vmm = Vmm::start_in(dir, SLEEPS, json!({ "accelerator": "soft", "limits": limits }));
    match vmm.event() {
        Some(Event::Error(failure)) => {
            assert_eq!(failure.kind, FailureKind::Configuration);
            assert!(failure.message.contains("--cpu-affinity"), "{failure}");
        }
        other => panic!("{other:?}"),
    }
}
