//! Guests in the background, as a person keeps them: started, looked at, stopped, and never lost or
//! doubled by what is done to them at once, or by a kill.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::{Lab, tiny};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long a guest may take to get somewhere on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long Debian may take to boot, and to switch itself off.
const DEBIAN_PATIENCE: Duration = Duration::from_secs(1200);

fn lodge(lab: &Lab, arguments: &[&str]) -> Output {
    lab.lodge().args(arguments).output().expect("lodge starts")
}

#[track_caller]
fn json(lab: &Lab, arguments: &[&str]) -> Value {
    serde_json::from_str(&lab.say(arguments)).expect("JSON")
}

/// What a guest is doing, as `lodge ps` has it; "gone" if it is not there.
#[track_caller]
fn state(lab: &Lab, name: &str) -> String {
    let all = json(lab, &["ps", "--all", "--json"]);
    let guest = all.as_array().expect("guests").iter().find(|guest| guest["name"] == name);
    guest.map_or("gone", |guest| guest["state"].as_str().expect("a state")).to_owned()
}

#[track_caller]
fn wait(what: &str, patience: Duration, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} does not come");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Starts a tiny guest in the background that writes `ready` and echoes.
#[track_caller]
fn run_echo(lab: &Lab, name: &str, more: &[&str]) {
    let kernel = lab.file("echo", tiny::echo()).display().to_string();
    let first =
        ["run", "-d", "--name", name, "--kernel", &kernel, "--memory", "32M", "--net", "none"];
    assert_eq!(lab.say(&[&first, more].concat()), format!("{name}\n"));
    wait("a word of the guest", PATIENCE, || lab.say(&["logs", name]).ends_with("ready\n"));
}

/// A command that is ended when the test ends in whatever way.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(command: &mut Command) -> Running {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    Running(command.spawn().expect("lodge starts"))
}

#[test]
fn a_guest_in_the_background_from_start_to_end() {
    let lab = Lab::empty();
    run_echo(&lab, "web", &["--cpus", "2"]);
    assert_eq!(state(&lab, "web"), "running");
    assert_eq!(lab.say(&["ps", "--quiet"]), "web\n");
    assert_eq!(lab.say(&["ps", "--quiet", "--filter", "state=paused"]), "");
    let refusal = lab.refusal(&["run", "-d", "--name", "web", "--kernel", "/dev/null"]);
    assert_eq!(refusal.status, Some(2), "{}", refusal.message);

    let mut follower = start(lab.lodge().args(["logs", "--follow", "web"]));
    let mut followed = BufReader::new(follower.0.stdout.take().expect("piped"));
    let mut line = String::new();
    followed.read_line(&mut line).expect("the log");
    assert_eq!(line, "ready\n");
    let mut console = start(lab.lodge().args(["console", "web", "--tail", "0"]));
    let mut keyboard = console.0.stdin.take().expect("piped");
    keyboard.write_all(b"hello\n").expect("a console");
    let mut screen = BufReader::new(console.0.stdout.take().expect("piped"));
    for reader in [&mut screen as &mut dyn BufRead, &mut followed] {
        let mut line = String::new();
        reader.read_line(&mut line).expect("an echo");
        assert_eq!(line, "hello\n");
    }
    // A console that goes leaves the guest as it is.
    kill_process(Pid::from_child(&console.0), Signal::KILL).expect("a signal");
    assert_eq!(lab.say(&["logs", "web"]), "ready\nhello\n");
    assert_eq!(lab.say(&["logs", "-n", "1", "web"]), "hello\n");

    lab.say(&["pause", "web"]);
    assert_eq!(state(&lab, "web"), "paused");
    lab.say(&["resume", "web"]);
    let inspected = json(&lab, &["inspect", "web"]);
    assert_eq!(inspected[0]["config"]["cpus"], 2);
    assert_eq!(inspected[0]["definition"]["cpus"], 2);
    assert_eq!(inspected[0]["instance"]["state"], "running");
    let stats = json(&lab, &["stats", "--once", "--json", "--interval", "0.1"]);
    assert_eq!(stats[0]["name"], "web");
    assert!(stats[0]["resident_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{stats}");

    let pid = inspected[0]["pid"].as_u64();
    lab.say(&["restart", "web"]);
    assert_eq!(state(&lab, "web"), "running");
    assert_ne!(json(&lab, &["inspect", "web"])[0]["pid"].as_u64(), pid);
    let mut rest = String::new();
    followed.read_to_string(&mut rest).expect("the end of the log");
    wait("a word of the guest", PATIENCE, || lab.say(&["logs", "web"]).ends_with("o\nready\n"));

    lab.say(&["stop", "web"]);
    assert_eq!(state(&lab, "web"), "stopped");
    lab.say(&["stop", "web"]);
    assert_eq!(lab.refusal(&["kill", "web"]).status, Some(2));
    assert_eq!(lab.refusal(&["console", "web"]).status, Some(2));
    assert_eq!(lab.say(&["ps", "--quiet"]), "");
    assert_eq!(lab.say(&["logs", "-n", "1", "web"]), "ready\n");
    lab.say(&["start", "web"]);
    assert_eq!(lab.refusal(&["rm", "web"]).status, Some(2));
    assert_eq!(lab.refusal(&["rename", "web", "www"]).status, Some(2));
    lab.say(&["kill", "web"]);
    let kinds = lab.say(&["events", "--once", "--json", "web"]);
    let kinds: Vec<String> = kinds
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["event"].to_string())
        .collect();
    let wanted =
        ["started", "paused", "resumed", "stopped", "started", "stopped", "started", "stopped"];
    assert_eq!(kinds, wanted.map(|kind| format!("{kind:?}")));
    lab.say(&["rename", "web", "www"]);
    assert_eq!((state(&lab, "web"), state(&lab, "www")), ("gone".into(), "stopped".into()));
    lab.say(&["start", "www"]);
    assert_eq!(json(&lab, &["inspect", "www"])[0]["instance"]["name"], "www");
    lab.say(&["rm", "--force", "www"]);
    assert_eq!(state(&lab, "www"), "gone");
    lab.close();
}

#[test]
fn what_is_made_is_started_later() {
    let lab = Lab::empty();
    let kernel = lab.file("echo", tiny::echo()).display().to_string();
    let create = ["create", "--name", "later", "--kernel", &kernel, "--memory", "32M"];
    assert_eq!(lab.say(&create), "later\n");
    assert_eq!(state(&lab, "later"), "created");
    assert_eq!(lab.refusal(&create).status, Some(2));
    // A person edits what it is made of.
    let file = lab.path("home/guests/later/guest.toml");
    let text = std::fs::read_to_string(&file).expect("a definition");
    assert!(text.contains("memory_mib = 32") && text.contains("mac = \"52:54:00:"), "{text}");
    std::fs::write(&file, text.replace("memory_mib = 32", "memory_mib = 48")).expect("a file");
    lab.say(&["start", "later"]);
    let inspected = json(&lab, &["inspect", "later"]);
    assert_eq!(inspected[0]["instance"]["memory_mib"], 48);
    let mac = inspected[0]["config"]["nets"][0]["mac"].clone();
    lab.say(&["stop", "later"]);
    lab.say(&["rename", "later", "latest"]);
    lab.say(&["start", "latest"]);
    assert_eq!(json(&lab, &["inspect", "latest"])[0]["config"]["nets"][0]["mac"], mac);
    // A mistake in it is told, and nothing is lost.
    lab.say(&["kill", "latest"]);
    let file = lab.path("home/guests/latest/guest.toml");
    let text = std::fs::read_to_string(&file).expect("a definition");
    std::fs::write(&file, text.replace("cpus = 1", "cpus = 'two'")).expect("a file");
    let refusal = lab.refusal(&["start", "latest"]);
    assert_eq!(refusal.status, Some(2), "{}", refusal.message);
    assert!(refusal.message.contains("guest.toml"), "{}", refusal.message);
    assert_eq!(state(&lab, "latest"), "stopped");
    lab.say(&["rm", "latest"]);
    lab.close();
}

#[test]
fn a_killed_vmm_is_told_as_it_is() {
    let lab = Lab::empty();
    run_echo(&lab, "kept", &[]);
    run_echo(&lab, "passing", &["--rm"]);
    for name in ["kept", "passing"] {
        let pid = json(&lab, &["inspect", name])[0]["pid"].as_i64().expect("a process number");
        let pid = Pid::from_raw(i32::try_from(pid).expect("a number")).expect("a process");
        kill_process(pid, Signal::KILL).expect("a signal");
    }
    wait("the end of one", PATIENCE, || state(&lab, "kept") == "crashed");
    wait("the end of the other", PATIENCE, || state(&lab, "passing") == "gone");
    for stale in ["api.sock", "vmm.pid"] {
        assert!(!lab.path("home/guests/kept").join(stale).exists(), "{stale} stays");
    }
    assert_eq!(lab.say(&["logs", "kept"]), "ready\n");
    lab.say(&["stop", "kept"]);
    lab.say(&["start", "kept"]);
    assert_eq!(state(&lab, "kept"), "running");

    // One that answers no more is ended by force.
    let pid = json(&lab, &["inspect", "kept"])[0]["pid"].as_i64().expect("a process number");
    let pid = Pid::from_raw(i32::try_from(pid).expect("a number")).expect("a process");
    kill_process(pid, Signal::STOP).expect("a signal");
    wait("silence", PATIENCE, || state(&lab, "kept") == "unresponsive");
    lab.say(&["kill", "kept"]);
    assert_eq!(state(&lab, "kept"), "crashed");
    lab.say(&["rm", "kept"]);
    lab.close();
}

#[test]
fn commands_at_once_corrupt_nothing() {
    let lab = Lab::empty();
    let kernel = lab.file("sleeper", tiny::sleeper()).display().to_string();
    let names = ["a", "b"];
    thread::scope(|scope| {
        for number in 0..4usize {
            let (lab, kernel) = (&lab, &kernel);
            scope.spawn(move || {
                for round in 0..8 {
                    let name = names[(number + round) % 2];
                    let other = names[(number + round + 1) % 2];
                    let run = ["run", "-d", "--name", name, "--kernel", kernel, "--memory", "16M"];
                    let arguments = match (number + round) % 8 {
                        0 => run.to_vec(),
                        1 => vec!["kill", name],
                        2 => vec!["start", name],
                        3 => vec!["rename", name, other],
                        4 => run.to_vec(),
                        5 => vec!["pause", name],
                        6 => vec!["rm", "--force", name],
                        _ => vec!["restart", name],
                    };
                    let output = lodge(lab, &arguments);
                    let errors = String::from_utf8_lossy(&output.stderr);
                    let code = output.status.code();
                    // Each may come too late or too early, and says so.
                    assert!(matches!(code, Some(0 | 2 | 6)), "{arguments:?}: {code:?} {errors}");
                    assert!(!errors.contains("damaged"), "{arguments:?}: {errors}");
                    let list = json(lab, &["ps", "--all", "--json"]);
                    assert!(list.as_array().is_some_and(|list| list.len() <= 2), "{list}");
                }
            });
        }
    });
    for name in lab.say(&["ps", "--all", "--quiet"]).lines() {
        lab.say(&["rm", "--force", name]);
    }
    assert_eq!(lab.say(&["ps", "--all", "--quiet"]), "");
    lab.close();
}

#[test]
fn debian_is_stopped_by_its_power_button() {
    let Some(lab) = Lab::debian() else { return };
    let cmdline = lab.image().patient_cmdline();
    lab.say(&["run", "-d", "debian:12", "--name", "server", "--cmdline", &cmdline]);
    wait("a login prompt", DEBIAN_PATIENCE, || {
        assert_eq!(state(&lab, "server"), "running");
        lab.say(&["logs", "server"]).contains("login: ")
    });
    let patience = DEBIAN_PATIENCE.as_secs().to_string();
    lab.say(&["stop", "--timeout", &patience, "server"]);
    let last = json(&lab, &["inspect", "server"])[0]["last_event"].clone();
    assert_eq!(last["event"], "stopped", "{last}");
    let log = lab.say(&["logs", "server"]);
    assert!(log.contains("Power down") || log.contains("Powering off"), "{log}");
    assert_eq!(lab.say(&["ps", "--quiet"]), "");
    lab.say(&["rm", "server"]);
    lab.close();
}
