//! A guest that `lodge run` runs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::console::{Console, Missing};
use crate::shell::{Outcome, Shell};
use crate::{Lab, note};

/// The longest wait for a login prompt. The engine is slow, and the machine may be busy.
const BOOT_PATIENCE: Duration = Duration::from_secs(1200);
/// The longest wait for a command, and for a guest to switch itself off.
const PATIENCE: Duration = Duration::from_secs(600);

/// A guest to be started.
pub struct Launch<'a> {
    lab: &'a Lab,
    name: String,
    command: Command,
}

impl<'a> Launch<'a> {
    /// A fresh guest of the lab's image.
    pub(crate) fn new(lab: &'a Lab, name: &str) -> Launch<'a> {
        let mut command = lab.lodge();
        let cmdline = lab.image().patient_cmdline();
        command.args(["run", crate::image::NAME, "--name", name, "--cmdline", &cmdline]);
        Launch { lab, name: name.to_owned(), command }
    }

    /// With this many processors.
    #[must_use]
    pub fn cpus(mut self, count: u32) -> Self {
        self.command.args(["--cpus", &count.to_string()]);
        self
    }

    /// With this much memory, as `lodge` reads it.
    #[must_use]
    pub fn memory(mut self, size: &str) -> Self {
        self.command.args(["--memory", size]);
        self
    }

    /// With one more disk, found in the guest by its serial number; `options` as `lodge` reads
    /// them.
    #[must_use]
    pub fn disk(mut self, path: &Path, serial: &str, options: &str) -> Self {
        let disk = format!("{},serial={serial}{options}", path.display());
        self.command.args(["--disk", &disk]);
        self
    }

    /// With a port of the host that leads into the guest.
    #[must_use]
    pub fn publish(mut self, host: u16, guest: u16) -> Self {
        self.command.args(["-p", &format!("{host}:{guest}")]);
        self
    }

    /// With a debugger's port, which the host chooses.
    #[must_use]
    pub fn gdb(mut self) -> Self {
        self.command.args(["--gdb", "0"]);
        self
    }

    /// With something in the environment of `lodge`.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Starts it.
    #[must_use]
    pub fn start(mut self) -> Guest {
        Guest::over(self.lab, &self.name, &mut self.command, Shell::default())
    }

    /// Starts it in the background, and sits down at its console.
    #[must_use]
    pub fn start_in_background(mut self) -> Guest {
        let status = self.command.arg("--detach").stdout(Stdio::null()).status();
        assert!(status.expect("lodge starts").success(), "{} does not start", self.name);
        Guest::at_console(self.lab, &self.name, Shell::default())
    }
}

/// A command that was typed, and may not be done.
#[derive(Debug)]
#[must_use]
pub struct Begun {
    command: String,
    /// What stands behind its output.
    end: String,
}

/// A running guest, at whose console we sit. Dropped, it is ended by force.
pub struct Guest {
    name: String,
    child: Child,
    console: Console,
    errors_path: PathBuf,
    root_password: String,
    shell: Shell,
}

impl Guest {
    /// A guest that is in the background, at whose console we sit down. Its shell is as it was left.
    fn at_console(lab: &Lab, name: &str, shell: Shell) -> Guest {
        Guest::over(lab, name, lab.lodge().args(["console", name, "--tail", "0"]), shell)
    }

    /// Sits down at the console of a guest in the background again, which may go on under another
    /// name, from a moment at which its shell waited for a command.
    #[must_use]
    pub fn again(self, lab: &Lab, name: &str) -> Guest {
        let shell = self.shell.clone();
        drop(self);
        Guest::at_console(lab, name, shell)
    }

    /// A guest at whose console `command` is.
    fn over(lab: &Lab, name: &str, command: &mut Command, shell: Shell) -> Guest {
        let file = |end: &str| {
            let path = lab.path(&format!("{name}.{end}"));
            let file = File::options().create(true).append(true).open(&path);
            (path, file.expect("a file in the lab"))
        };
        let (_, transcript) = file("console");
        let (errors_path, errors) = file("stderr");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .expect("lodge starts");
        let keyboard = child.stdin.take().expect("its input is ours");
        let output = child.stdout.take().expect("its output is ours");
        Guest {
            name: name.to_owned(),
            child,
            console: Console::new(keyboard, output, transcript),
            errors_path,
            root_password: lab.image().root_password(),
            shell,
        }
    }

    /// Waits for the login prompt, logs in as root, and waits until the system is up.
    #[track_caller]
    pub fn log_in(&mut self) {
        let start = Instant::now();
        let waiting = self.wait_nudging("login: ", "\n", BOOT_PATIENCE);
        self.expect("a login prompt", waiting);
        note(&format!("{}: login prompt after {:.1} s", self.name, start.elapsed().as_secs_f32()));
        self.console.type_text("root\n");
        self.expect_text("Password: ");
        let password = self.root_password.clone();
        self.console.type_text(&format!("{password}\n"));
        self.expect_text("# ");
        self.console.type_text(Shell::ENTER);
        let ready = self.wait_nudging(Shell::READY, Shell::NUDGE, PATIENCE);
        self.expect("a shell", ready);
        self.run(Shell::SETTLE);
        note(&format!("{}: up after {:.1} s", self.name, start.elapsed().as_secs_f32()));
    }

    /// Runs a shell command as root. It has to succeed; what it prints, on either stream, comes
    /// back.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> String {
        let outcome = self.try_run(command);
        assert!(
            outcome.status == 0,
            "{}: `{command}` ended with status {}:\n{}",
            self.name,
            outcome.status,
            outcome.output
        );
        outcome.output
    }

    /// Runs a shell command as root that may fail.
    #[track_caller]
    pub fn try_run(&mut self, command: &str) -> Outcome {
        let begun = self.begin(command);
        self.finish(begun)
    }

    /// Types a shell command, the outcome of which is not waited for.
    pub fn begin(&mut self, command: &str) -> Begun {
        let (text, end) = self.shell.frame(command);
        self.console.type_text(&text);
        Begun { command: command.to_owned(), end }
    }

    /// Waits for the outcome of a command, all before which are finished.
    #[track_caller]
    pub fn finish(&mut self, begun: Begun) -> Outcome {
        let Begun { command, end } = begun;
        let output = self.console.wait_for(&end, PATIENCE);
        let output = self.expect(&command, output);
        let status = self.console.wait_for("@@\n", PATIENCE);
        let status = self.expect(&command, status);
        Outcome { output, status: status.trim().parse().expect("a status") }
    }

    /// Asserts that the guest's kernel has found nothing wrong so far.
    #[track_caller]
    pub fn assert_no_complaints(&mut self) {
        let complaints = self.try_run(
            "dmesg | grep -E 'BUG:|Oops|WARNING:|general protection|invalid opcode|soft lockup|\
             rcu.*stall|hung_task|blocked for more than|segfault|traps:|Call Trace|unchecked MSR|\
             I/O error|as unstable|alg: .* failed|ftrace.*(bug|failed)|jump_label: Fatal'",
        );
        assert_eq!(complaints.status, 1, "the guest's kernel complains:\n{}", complaints.output);
    }

    /// Has the guest restart, and logs in again.
    #[track_caller]
    pub fn reboot(&mut self) {
        self.console.type_text("reboot\n");
        self.shell = Shell::default();
        self.log_in();
    }

    /// Has the guest switch itself off, which ends `lodge` in good order.
    #[track_caller]
    pub fn power_off(mut self) -> String {
        self.console.type_text("poweroff\n");
        let status = self.wait_for_end();
        assert_eq!(status.code(), Some(0), "{}", self.story());
        self.errors()
    }

    /// Ends the guest's VMM as the kernel would for want of memory; the exit status of `lodge`
    /// and what it said.
    #[track_caller]
    pub fn kill_vmm(mut self) -> (Option<i32>, String) {
        let vmm = children(self.child.id()).into_iter().next().expect("a VMM");
        let pid = rustix::process::Pid::from_raw(vmm).expect("a process number");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("a kill");
        let status = self.wait_for_end();
        (status.code(), self.errors())
    }

    /// What `lodge` itself has said so far.
    #[must_use]
    pub fn errors(&self) -> String {
        std::fs::read_to_string(&self.errors_path).unwrap_or_default()
    }

    /// The process number of `lodge`, if it runs.
    pub fn lodge(&mut self) -> Option<u32> {
        self.child.try_wait().ok()?.is_none().then(|| self.child.id())
    }

    #[track_caller]
    fn wait_for_end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("lodge is our child") {
                return status;
            }
            assert!(Instant::now() < deadline, "lodge does not end\n{}", self.story());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for a text and types `nudge` now and then: a kernel's message can tear a prompt
    /// apart.
    fn wait_nudging(
        &mut self,
        text: &str,
        nudge: &str,
        patience: Duration,
    ) -> Result<String, Missing> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.console.wait_for(text, left.min(Duration::from_secs(60))) {
                Err(Missing::Late) if Instant::now() < deadline => self.console.type_text(nudge),
                result => return result,
            }
        }
    }

    #[track_caller]
    fn expect_text(&mut self, text: &str) {
        let result = self.console.wait_for(text, PATIENCE);
        self.expect(text, result);
    }

    #[track_caller]
    fn expect(&mut self, what: &str, result: Result<String, Missing>) -> String {
        match result {
            Ok(before) => before,
            Err(why) => {
                let why = match why {
                    Missing::Late => "did not come in time".to_owned(),
                    Missing::Closed => {
                        let status = self.wait_for_end();
                        format!("did not come before lodge ended with {status}")
                    }
                    Missing::Hopeless(end) => format!("will not come after {end:?}"),
                };
                let story = self.story();
                panic!("{}: {what:?} {why}\n{story}", self.name);
            }
        }
    }

    /// What can be told when something went wrong.
    fn story(&mut self) -> String {
        format!(
            "--- what lodge said:\n{}--- the end of the console:\n{}\n---",
            self.errors(),
            self.console.tail()
        )
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The children of a process (proc(5), `/proc/PID/stat`).
fn children(parent: u32) -> Vec<i32> {
    let is_child = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The program's name is in parentheses and may hold anything; then come state and parent.
        let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        rest.split(' ').nth(1).is_some_and(|ppid| ppid == parent.to_string())
    };
    crate::lab::processes().filter(is_child).collect()
}
