//! What a running guest counts is told to whoever asks, and goes on being counted.

use std::fs::File;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::{Lab, tiny};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long a guest may take to get somewhere on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// A guest, ended when the test ends in whatever way.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(lab: &Lab, name: &str, kernel: &[u8], cpus: &str) -> Running {
    let kernel = lab.file(&format!("{name}.kernel"), kernel);
    let errors = lab.path(&format!("{name}.stderr"));
    let child = lab
        .lodge()
        .args(["run", "--name", name, "--cpus", cpus, "--memory", "64M", "--net", "none"])
        .arg("--kernel")
        .arg(kernel)
        .stdout(Stdio::null())
        .stderr(File::create(&errors).expect("a file in the lab"))
        .spawn()
        .expect("lodge starts");
    let running = Running(child);
    let begun = Instant::now();
    loop {
        let said = std::fs::read_to_string(&errors).expect("a file in the lab");
        if said.contains(" runs on ") {
            return running;
        }
        assert!(begun.elapsed() < PATIENCE, "{name} does not start: {said}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn stop(running: &mut Running) {
    kill_process(Pid::from_child(&running.0), Signal::TERM).expect("a signal");
    running.0.wait().expect("our child");
}

fn stats(lab: &Lab, arguments: &[&str]) -> Output {
    let mut command: Command = lab.lodge();
    command.arg("stats").args(arguments).output().expect("lodge starts")
}

/// Looks at a guest, all of whose processors are to answer. On a busy machine they may need more
/// time than `lodge stats` gives them.
fn look(lab: &Lab, name: &str) -> Value {
    let begun = Instant::now();
    loop {
        let output = stats(lab, &[name, "--json"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let look: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let processors = look["processors"].as_array().expect("processors");
        if processors.iter().all(|processor| processor["current"] == true) {
            return look;
        }
        assert!(begun.elapsed() < PATIENCE, "not all processors answer: {look:#}");
    }
}

fn count(look: &Value, processor: usize, name: &str) -> u64 {
    let count = &look["processors"][processor]["counts"][name];
    count.as_u64().unwrap_or_else(|| panic!("no count {name}: {look:#}"))
}

/// Looks until these counts of the first processor have all grown since the first look.
fn wait_for_growth(lab: &Lab, name: &str, counts: &[&str]) {
    let first = look(lab, name);
    let begun = Instant::now();
    loop {
        let now = look(lab, name);
        if counts.iter().all(|&c| count(&now, 0, c) > count(&first, 0, c)) {
            assert!(now["running_ns"].as_u64() > first["running_ns"].as_u64());
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "not all of {counts:?} grow: {first:#} {now:#}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_busy_guest_is_looked_at() {
    let lab = Lab::empty();
    let mut guest = start(&lab, "busy", &tiny::busy64(), "1");
    let begun = Instant::now();
    let first = loop {
        let first = look(&lab, "busy");
        if count(&first, 0, "translations") > 0 {
            break first;
        }
        assert!(begun.elapsed() < PATIENCE, "nothing is translated: {first:#}");
        thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(first["name"], "busy");
    assert_eq!(first["accelerator"], "soft");
    assert_eq!(first["resets"], 0);
    assert_eq!(first["processors"].as_array().expect("processors").len(), 1);
    assert_eq!(count(&first, 0, "translations_refused"), 0, "{first:#}");
    let level = |name: &str| first["processors"][0]["levels"][name].as_u64().expect("a level");
    assert!(level("code_blocks") > 0);
    assert!(0 < level("code_bytes") && level("code_bytes") < level("code_bytes_capacity"));
    assert!(level("code_exits") < level("code_exits_capacity"));
    wait_for_growth(
        &lab,
        "busy",
        &["entries", "exits_interpret", "interpreted_instructions", "processor_time_ns"],
    );
    // What a person sees, and that the help explains each number that a guest counts.
    let table = stats(&lab, &["busy", "--interval", "0.1"]);
    let table = String::from_utf8(table.stdout).expect("text");
    let help = stats(&lab, &["--help"]);
    let help = String::from_utf8(help.stdout).expect("text");
    for (name, _) in first["processors"][0]["counts"].as_object().expect("counts") {
        assert!(table.contains(&format!("\n  {name} ")), "{name} is not in\n{table}");
        assert!(help.contains(&format!("  {name}\n")), "{name} is not in\n{help}");
    }
    assert!(!table.contains("Others"), "{table}");
    stop(&mut guest);
    lab.close();
}

#[test]
fn processors_that_sleep_answer_too() {
    let lab = Lab::empty();
    let mut guest = start(&lab, "sleepy", &tiny::sleeper(), "2");
    for _ in 0..20 {
        let look = look(&lab, "sleepy");
        assert_eq!(look["processors"].as_array().expect("processors").len(), 2);
    }
    wait_for_growth(&lab, "sleepy", &["processor_time_ns"]);
    stop(&mut guest);
    lab.close();
}

#[test]
fn guests_that_do_not_run() {
    let lab = Lab::empty();
    let refusal = lab.refusal(&["stats", "nobody"]);
    assert_eq!(refusal.status, Some(2), "{}", refusal.message);
    assert!(refusal.message.contains("no guest nobody"), "{}", refusal.message);
    assert!(refusal.message.contains("lodge ls"), "{}", refusal.message);
    let mut guest = start(&lab, "short", &tiny::sleeper(), "1");
    look(&lab, "short");
    stop(&mut guest);
    let refusal = lab.refusal(&["stats", "short"]);
    assert_eq!(refusal.status, Some(2), "{}", refusal.message);
    lab.close();
}
