//! Runs the programs that do the work of a build: watched line by line, ended when the build is
//! given up.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::{Cancel, Error};

/// How many lines of output are kept to explain a failure.
const KEPT_LINES: usize = 400;

/// How a program ended, and what it said last on standard error.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    lines: VecDeque<String>,
}

/// Runs a program to its end, showing each line of its standard error to `line`.
///
/// The program is the leader of its own process group, so that it and its children can be ended
/// together, and Ctrl-C at the terminal reaches it by way of `cancel` only.
pub(crate) fn run(
    command: &mut Command,
    cancel: &Cancel,
    mut line: impl FnMut(&str),
) -> Result<Ended, Error> {
    cancel.check()?;
    let program = command.get_program().to_owned();
    let mut child = command
        .process_group(0)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io("start", program.as_ref()))?;
    let _watchman = match Watchman::over(&child) {
        Ok(watchman) => watchman,
        Err(error) => {
            end(&mut child);
            return Err(Error::io("start", "sh".as_ref())(error));
        }
    };
    let (sender, receiver) = channel();
    if let Some(stderr) = child.stderr.take() {
        thread::spawn(move || forward_lines(BufReader::new(stderr), &sender));
    }
    let mut lines = VecDeque::new();
    loop {
        match receiver.recv_timeout(Duration::from_millis(100)) {
            Ok(text) => {
                line(&text);
                if lines.len() == KEPT_LINES {
                    lines.pop_front();
                }
                lines.push_back(text);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if cancel.is_cancelled() {
            end(&mut child);
            return Err(Error::Cancelled);
        }
    }
    let status = child.wait().map_err(Error::io("wait for", program.as_ref()))?;
    Ok(Ended { status, lines })
}

/// A process that ends a program's process group when this process is killed and can no longer do
/// so: it notices that the pipe to it is closed.
struct Watchman {
    shell: Child,
}

impl Watchman {
    fn over(child: &Child) -> io::Result<Watchman> {
        let shell = super::host_command("sh")
            .args(["-c", "cat > /dev/null; kill -KILL \"-$1\"", "sh", &child.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Watchman { shell })
    }
}

impl Drop for Watchman {
    fn drop(&mut self) {
        // Before the pipe is closed: there is nothing to end any longer.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

impl Ended {
    /// What to show of a failed program: its own errors if it printed any, else its last lines.
    pub(crate) fn complaint(&self) -> String {
        let errors: Vec<&str> = self
            .lines
            .iter()
            .map(String::as_str)
            .filter(|line| {
                ["E: ", "Err:", "error:", "mke2fs: ", "tar: "].iter().any(|p| line.starts_with(p))
            })
            .collect();
        let shown: Vec<&str> = if errors.is_empty() {
            self.lines.iter().map(String::as_str).collect()
        } else {
            errors
        };
        let tail = shown.get(shown.len().saturating_sub(12)..).unwrap_or_default().join("\n");
        match (tail.is_empty(), self.status.signal()) {
            (true, Some(signal)) => format!("it was ended by signal {signal}"),
            (true, None) => format!("it ended with {}", self.status),
            (false, _) => tail,
        }
    }
}

fn forward_lines(mut reader: impl BufRead, sender: &Sender<String>) {
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match reader.read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&bytes);
        // A progress line overwrites itself with carriage returns: its last state counts.
        let text = text.trim_end().rsplit('\r').next().unwrap_or_default();
        if sender.send(text.to_owned()).is_err() {
            return;
        }
    }
}

/// Ends a program and everything it started: politely, so that it unmounts and removes what it
/// made, and after a while by force.
fn end(child: &mut Child) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let signal = |signal| group.map(|group| kill_process_group(group, signal));
    let _ = signal(Signal::TERM);
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    let _ = signal(Signal::KILL);
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_are_shown_and_the_end_is_told() {
        let mut seen = Vec::new();
        let ended = run(
            &mut shell("echo one >&2; printf 'x\\rtwo\\n' >&2; exit 3"),
            &Cancel::default(),
            |l| {
                seen.push(l.to_owned());
            },
        )
        .unwrap();
        assert_eq!(seen, ["one", "two"]);
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(ended.complaint(), "one\ntwo");
    }

    #[test]
    fn a_complaint_is_the_programs_own_error() {
        let script = "echo noise >&2; echo 'E: no such suite' >&2; echo noise >&2; exit 1";
        let ended = run(&mut shell(script), &Cancel::default(), |_| ()).unwrap();
        assert_eq!(ended.complaint(), "E: no such suite");
        let ended = run(&mut shell("kill -9 $$"), &Cancel::default(), |_| ()).unwrap();
        assert_eq!(ended.complaint(), "it was ended by signal 9");
    }

    #[test]
    fn giving_up_ends_the_program_and_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!("sleep 100 & echo $! > {}; echo up >&2; wait", pid_file.display());
        let cancel = Cancel::default();
        let begun = Instant::now();
        let result = run(&mut shell(&script), &cancel, |line| {
            assert_eq!(line, "up");
            cancel.cancel();
        });
        assert!(matches!(result, Err(Error::Cancelled)));
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        // Ended: gone, or a zombie that nobody has reaped yet. The kernel may take a moment.
        let has_ended = || {
            std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
                .map_or(true, |text| text.contains(") Z "))
        };
        while !has_ended() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the child is still there");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn the_watchman_ends_what_a_killed_process_left() {
        let mut child = shell("sleep 100 & wait").process_group(0).spawn().unwrap();
        let mut watchman = Watchman::over(&child).unwrap();
        // As the system does for a process that is killed.
        drop(watchman.shell.stdin.take());
        assert_eq!(child.wait().unwrap().signal(), Some(9));

        let mut child = shell("read line").stdin(Stdio::piped()).process_group(0).spawn().unwrap();
        drop(Watchman::over(&child).unwrap());
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().signal(), None, "its work done, it ends nothing");
    }
}
