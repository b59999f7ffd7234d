//! `lodge run` with a VMM that is played by a script: what is told to it, what is made of its
//! events, and that the terminal and the files are left as they were.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Home, outcome, text};

const KERNEL: &[&str] = &["run", "--kernel", "/k"];

fn run(script: &str) -> (Option<i32>, String, String) {
    let home = Home::new();
    let output = home.lodge_with_vmm(script, KERNEL).output().unwrap();
    let (code, errors) = outcome(&output);
    (code, text(&output.stdout), errors)
}

#[test]
fn the_guests_output_is_shown_to_the_last_byte() {
    // The last output comes after the last event, as from a VMM that is quick to end.
    let script = r#"
        event "$started"
        echo hello >&$console
        event "$power_off"
        head -c 200000 /dev/zero | tr '\0' x >&$console
        echo bye >&$console"#;
    let (code, output, errors) = run(script);
    assert_eq!(code, Some(0), "{errors}");
    assert!(output.starts_with("hello\n") && output.ends_with("xbye\n"));
    assert_eq!(output.len(), 200_010);
    assert!(errors.contains("Lodge's own engine"), "{errors}");
    assert!(!errors.contains("Ctrl-]"), "keys are of no use without a terminal: {errors}");
}

#[test]
fn what_a_script_types_reaches_the_guest_as_it_is() {
    let home = Home::new();
    let script = r#"event "$started"; head -c 6 <&$console >&$console; event "$power_off""#;
    let mut child = home
        .lodge_with_vmm(script, KERNEL)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"a\x1dq\x03\x00\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"a\x1dq\x03\x00\n");
    assert!(output.status.success());
}

#[test]
fn exit_statuses_tell_the_end() {
    for (script, status, wanted) in [
        (r#"event "$power_off""#, 0, ""),
        (r#"event '{"event":"stopped","reason":"debug-exit","status":33}'; exit 33"#, 33, ""),
        (
            r#"event '{"event":"error","kind":"host","message":"port 80 is in use"}'"#,
            6,
            "port 80 is in use",
        ),
        (r#"event '{"event":"error","kind":"artifact","message":"no kernel"}'"#, 4, "no kernel"),
        (r#"event '{"event":"error","kind":"configuration","message":"too big"}'"#, 2, "too big"),
        (r#"event "$started"; event '{"event":"reset"}'; event "$power_off""#, 0, "restarts"),
        (r#"event '{"event":"warning","message":"slow"}'; event "$power_off""#, 0, "slow"),
        (r#"event "$started"; kill -SEGV $$"#, 8, "signal 11"),
        ("exit 7", 8, "without saying why"),
        ("event nonsense; exec sleep 100", 6, "another language"),
    ] {
        let (code, _, errors) = run(script);
        assert_eq!(code, Some(status), "{script}: {errors}");
        assert!(errors.contains(wanted), "{script}: {errors}");
    }
}

#[test]
fn a_new_guest_that_does_not_start_leaves_nothing() {
    let home = Home::new();
    home.import_web();
    let refusal = r#"event '{"event":"error","kind":"host","message":"no tap"}'"#;
    let run = |script: &str| {
        home.lodge_with_vmm(script, &["run", "-d", "web", "--name", "w"]).output().unwrap()
    };
    let (code, errors) = outcome(&run(refusal));
    assert_eq!(code, Some(6), "{errors}");
    assert!(errors.contains("no tap") && home.guests().is_empty(), "{errors}");
    // What was there before stays, whatever becomes of it.
    let started = r#"event "$started"; event "$power_off""#;
    let (code, errors) = outcome(&run(started));
    assert_eq!(code, Some(0), "{errors}");
    let (code, errors) = outcome(&run(refusal));
    assert_eq!(code, Some(6), "{errors}");
    assert_eq!(home.guests(), ["w"]);
}

#[test]
fn a_missing_vmm_is_named() {
    let home = Home::new();
    let output = home.lodge(KERNEL).env("LODGE_VMM", "/nonexistent/vmm").output().unwrap();
    let (code, errors) = outcome(&output);
    assert_eq!(code, Some(6));
    assert!(errors.contains("/nonexistent/vmm"), "{errors}");
}

#[test]
fn a_pseudo_terminal_is_told() {
    let home = Home::new();
    let script = r#"
        [[ $config == *'"serial":"pty"'* ]]
        event '{"event":"started","accelerator":"kvm","serial_pty":"/dev/pts/9"}'
        event "$power_off""#;
    let output = home
        .lodge_with_vmm(script, &["run", "--kernel", "/k", "--serial", "pty"])
        .output()
        .unwrap();
    let (code, errors) = outcome(&output);
    assert_eq!(code, Some(0), "{errors}");
    assert!(errors.contains("/dev/pts/9") && errors.contains("KVM"), "{errors}");
}

/// Starts `command` and waits until its standard output says "ready".
fn start_and_wait_ready(command: &mut Command) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (child, output)
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_signal_stops_the_guest_and_is_told() {
    let home = Home::new();
    home.import_web();
    let script = r#"
        trap 'event "$requested"; exit 0' TERM
        event "$started"; echo ready >&$console
        while :; do sleep 0.05; done"#;
    for (name, status) in [("-TERM", 143), ("-INT", 130), ("-HUP", 129)] {
        let (child, _output) =
            start_and_wait_ready(&mut home.lodge_with_vmm(script, &["run", "web"]));
        assert_eq!(home.guests().len(), 1);
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{}", text(&output.stderr));
        assert!(home.guests().is_empty(), "the guest's disk is gone");
    }
}

#[test]
fn a_guest_that_does_not_stop_is_ended_when_asked_twice() {
    let home = Home::new();
    let script = r#"
        trap 'echo asked >&$console' TERM
        trap 'echo told >&$console; event "$requested"; exit 0' INT
        event "$started"; echo ready >&$console
        while :; do sleep 0.05; done"#;
    let (mut child, mut output) = start_and_wait_ready(&mut home.lodge_with_vmm(script, KERNEL));
    for answer in ["asked\n", "told\n"] {
        signal(&child, "-TERM");
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, answer);
    }
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn a_vmm_that_does_not_end_is_killed_when_asked_thrice() {
    let home = Home::new();
    let script = r#"
        trap 'echo asked >&$console' TERM INT
        event "$started"; echo ready >&$console
        while :; do sleep 0.05; done"#;
    let (mut child, mut output) = start_and_wait_ready(&mut home.lodge_with_vmm(script, KERNEL));
    for _ in 0..2 {
        signal(&child, "-TERM");
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "asked\n");
    }
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn the_vmm_does_not_outlive_a_killed_lodge_and_its_files_are_swept() {
    let home = Home::new();
    home.import_web();
    let script =
        r#"event "$started"; echo ready >&$console; echo $$ > "${0%/*}/pid"; exec sleep 100"#;
    let (mut child, _output) =
        start_and_wait_ready(&mut home.lodge_with_vmm(script, &["run", "web"]));
    let pid_file = home.path().join("pid");
    let deadline = Instant::now() + Duration::from_secs(120);
    while fs::read_to_string(&pid_file).map_or(true, |pid| pid.is_empty()) {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = fs::read_to_string(&pid_file).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let alive = || {
        fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
            .is_ok_and(|stat| !stat.contains(") Z "))
    };
    while alive() {
        assert!(Instant::now() < deadline, "the VMM lives on");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(home.guests().len(), 1, "nobody could clean up");
    let again = home.lodge_with_vmm(r#"event "$power_off""#, &["run", "web"]).output().unwrap();
    assert!(again.status.success());
    assert!(home.guests().is_empty());
}

#[test]
fn a_kept_guest_goes_on_where_it_stopped() {
    let home = Home::new();
    home.import_web();
    // Plays the VMM's part for the overlay: appends to it.
    let script = r#"
        disk=$(sed -n 's/.*"overlay":"\([^"]*\)".*/\1/p' <<< "$config")
        echo run >> "$disk"; cat "$disk" >&$console
        event "$power_off""#;
    let run = |arguments: &[&str]| {
        let output = home.lodge_with_vmm(script, arguments).output().unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    assert_eq!(run(&["run", "web"]).1, "run\n");
    assert_eq!(run(&["run", "web", "--name", "w"]).1, "run\n", "a fresh disk each time");
    assert!(home.guests().is_empty());

    assert_eq!(run(&["run", "web", "--name", "w", "--keep"]).1, "run\n");
    assert_eq!(home.guests(), ["w"]);
    let list = text(&home.lodge(&["ls"]).output().unwrap().stdout);
    assert!(list.contains("created") && list.contains("web"), "{list}");
    let (code, output, errors) = run(&["run", "--name", "w"]);
    assert_eq!((code, output.as_str()), (Some(0), "run\nrun\n"), "{errors}");
    assert!(errors.contains("goes on"), "{errors}");

    let (code, message) = outcome(&home.lodge(&["image", "rm", "web"]).output().unwrap());
    assert_eq!(code, Some(2));
    assert!(message.contains("kept as w"), "{message}");
    // Another image under the same name is noticed even if it was forced in.
    fs::write(home.path().join("disk.raw"), [9; 4096]).unwrap();
    assert!(home.lodge(&["image", "rm", "--force", "web"]).status().unwrap().success());
    home.file("disk.raw", [9; 4096]);
    let kernel = home.path().join("kernel");
    let import = home
        .lodge(&["image", "import", "web", "--disk"])
        .arg(home.path().join("disk.raw"))
        .arg("--kernel")
        .arg(kernel)
        .status()
        .unwrap();
    assert!(import.success());
    let (code, _, errors) = run(&["run", "web", "--name", "w"]);
    assert_eq!(code, Some(4), "{errors}");
    assert!(errors.contains("built anew"), "{errors}");
    assert_eq!(home.guests(), ["w"], "nothing of it is lost");

    assert!(home.lodge(&["rm", "w"]).status().unwrap().success());
    assert!(home.guests().is_empty());
}

#[test]
fn two_guests_of_one_name_cannot_run() {
    let home = Home::new();
    home.import_web();
    let script = r#"
        trap 'event "$requested"; exit 0' TERM
        event "$started"; echo ready >&$console
        while :; do sleep 0.05; done"#;
    let arguments = ["run", "web", "--name", "w"];
    let (child, _output) = start_and_wait_ready(&mut home.lodge_with_vmm(script, &arguments));
    let (code, message) = outcome(&home.lodge(&arguments).output().unwrap());
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("running already"), "{message}");
    let (code, message) = outcome(&home.lodge(&["rm", "w"]).output().unwrap());
    assert_eq!(code, Some(2), "{message}");
    let list = text(&home.lodge(&["ls"]).output().unwrap().stdout);
    assert!(list.contains("unresponsive"), "a VMM that is played serves no API: {list}");
    signal(&child, "-TERM");
    child.wait_with_output().unwrap();
}

#[test]
fn output_that_nobody_reads_stops_the_guest() {
    let home = Home::new();
    let script = r#"
        trap 'event "$requested"; exit 0' TERM
        event "$started"; echo ready >&$console
        while :; do echo more >&$console; sleep 0.01; done"#;
    let (child, output) = start_and_wait_ready(&mut home.lodge_with_vmm(script, KERNEL));
    drop(output);
    let output = child.wait_with_output().unwrap();
    let (code, message) = outcome(&output);
    assert_eq!(code, Some(6), "{message}");
    assert!(message.contains("standard output"), "{message}");
}

/// Runs `script` in a shell on a terminal of its own, typing `keys` when "ready" has appeared, and
/// returns all that appeared.
fn on_a_terminal(home: &Home, vmm: &str, shell: &str, keys: &[u8]) -> String {
    let mut command = home.lodge_with_vmm(vmm, &[]);
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", shell, "/dev/null"]);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    script.env("LODGE", command.get_program()).env("SHELL", "/bin/bash");
    command.stdin(Stdio::null());
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script(1)");
    let mut keyboard = child.stdin.take().unwrap();
    let mut screen = child.stdout.take().unwrap();
    let mut seen = Vec::new();
    let mut bytes = [0; 1024];
    let mut typed = false;
    loop {
        let count = screen.read(&mut bytes).unwrap();
        if count == 0 {
            break;
        }
        seen.extend_from_slice(&bytes[..count]);
        if !typed && seen.windows(5).any(|window| window == b"ready") {
            keyboard.write_all(keys).unwrap();
            typed = true;
        }
    }
    child.wait().unwrap();
    text(&seen)
}

#[test]
fn the_terminal_is_raw_for_the_guest_and_as_before_afterwards() {
    let home = Home::new();
    let shell = r#"a=$(stty -g); $LODGE run --kernel /k; s=$?; b=$(stty -g)
        [ "$a" = "$b" ] && echo same; echo "status $s""#;

    // Ctrl-C and a carriage return reach the guest as bytes; two escape keys become one.
    let echo = r#"
        event "$started"; echo ready >&$console
        head -c 4 <&$console | od -An -tx1 >&$console
        event "$power_off""#;
    let seen = on_a_terminal(&home, echo, shell, b"\x03\r\x1d\x1dx");
    assert!(seen.contains("Ctrl-] then q"), "{seen}");
    assert!(seen.contains("03 0d 1d 78"), "{seen}");
    assert!(seen.contains("same") && seen.contains("status 0"), "{seen}");

    let wait = r#"
        trap 'event "$requested"; exit 0' TERM
        event "$started"; echo ready >&$console
        while :; do sleep 0.05; done"#;
    let seen = on_a_terminal(&home, wait, shell, b"\x1dq");
    assert!(seen.contains("same") && seen.contains("status 0"), "{seen}");

    let crash = r#"event "$started"; echo ready >&$console; read -rn1 <&$console; kill -SEGV $$"#;
    let seen = on_a_terminal(&home, crash, shell, b"x");
    assert!(seen.contains("same") && seen.contains("status 8"), "{seen}");
}
