//! Boots a stock Debian and looks at it from inside, by its console, and from outside.
//!
//! `make boot-test` runs these on the release build, with the image `debian:12` of the user's
//! store. Otherwise they are ignored, and counted so. LODGE_UNDER_TEST names the `lodge` to use.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// The longest wait for anything: an engine under test on a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(600);

/// A guest at whose console we sit.
struct Guest {
    lodge: Child,
    keyboard: ChildStdin,
    screen: Receiver<Vec<u8>>,
    /// What appeared and was not waited for yet.
    unseen: String,
}

/// `lodge run debian:12` with further arguments.
fn start(arguments: &[&str]) -> Guest {
    let lodge = std::env::var_os("LODGE_UNDER_TEST").expect("`make boot-test` sets it");
    let mut lodge = Command::new(lodge)
        .args(["run", "debian:12"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("lodge starts");
    let keyboard = lodge.stdin.take().expect("its input is ours");
    let mut output = lodge.stdout.take().expect("its output is ours");
    let (sender, screen) = channel();
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut bytes) {
            if sender.send(bytes[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    Guest { lodge, keyboard, screen, unseen: String::new() }
}

impl Guest {
    /// Waits until `text` appears; returns what appeared before it.
    fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.unseen.find(text) {
                let rest = self.unseen.split_off(at + text.len());
                let mut before = std::mem::replace(&mut self.unseen, rest);
                before.truncate(at);
                return before;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.unseen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{text:?} did not appear in time; the screen shows:\n{}", self.unseen)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the guest ended before {text:?} appeared:\n{}", self.unseen)
                }
            }
        }
    }

    fn type_line(&mut self, line: &str) {
        self.keyboard.write_all(format!("{line}\n").as_bytes()).expect("the guest runs");
    }

    /// Waits for the login prompt and logs in as root.
    fn log_in(&mut self) {
        self.wait_for("login: ");
        self.type_line("root");
        self.wait_for("Password: ");
        self.type_line("lodge");
        self.wait_for("# ");
        // A plain prompt and no echo: what appears is what commands print.
        self.type_line("stty -echo; bind 'set enable-bracketed-paste off'; PS1=; echo quiet''ly");
        self.wait_for("quietly\r\n");
    }

    /// Runs a command in the guest's shell; it has to succeed. Returns what it prints.
    fn run(&mut self, command: &str) -> String {
        self.type_line(&format!("{command}; echo \"status=$?.\""));
        let output = self.wait_for("status=").replace('\r', "");
        let status = self.wait_for(".\r\n");
        assert_eq!(status, "0", "{command}:\n{output}");
        output
    }

    /// Waits for the end of `lodge`.
    fn wait(mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.lodge.try_wait().expect("lodge is our child") {
                return status;
            }
            assert!(Instant::now() < deadline, "lodge does not end:\n{}", self.unseen);
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Politely, so that the guest's disk goes with it.
        let _ =
            Command::new("kill").arg(self.lodge.id().to_string()).stderr(Stdio::null()).status();
        let _ = self.lodge.wait();
    }
}

#[test]
#[ignore = "boots a guest: make boot-test"]
fn one_processor_boots_to_a_login_and_powers_off() {
    let mut guest = start(&["--cpus", "1", "--memory", "512M"]);
    guest.log_in();
    assert_eq!(guest.run("nproc"), "1\n");
    assert_eq!(guest.run("systemctl --failed --no-legend --plain | cat"), "");
    guest.type_line("poweroff");
    assert_eq!(guest.wait().code(), Some(0));
}

#[test]
#[ignore = "boots a guest: make boot-test"]
fn two_processors_a_network_and_a_reboot() {
    let mut guest = start(&["--cpus", "2", "--memory", "1G"]);
    guest.log_in();
    let lscpu = guest.run("lscpu");
    let count = lscpu.lines().find_map(|line| line.strip_prefix("CPU(s):")).map(str::trim);
    assert_eq!(count, Some("2"), "{lscpu}");
    // Nothing in the boot waits for the network.
    guest.run("/lib/systemd/systemd-networkd-wait-online --any --timeout=60");
    let addresses = guest.run("ip -4 -brief address show scope global");
    assert!(addresses.contains(" UP "), "no address from DHCP:\n{addresses}");
    guest.type_line("reboot");
    guest.log_in();
    assert_eq!(guest.run("nproc"), "2\n");
    guest.type_line("poweroff");
    assert_eq!(guest.wait().code(), Some(0));
}
