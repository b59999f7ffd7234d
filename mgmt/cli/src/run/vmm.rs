//! The `lodge-vmm` process of one guest.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use vmm_api::{ConsoleConfig, Failure, VmConfig};

use crate::sys::{self, Signals};

use super::console::{Console, End};
use super::terminal::{RawTerminal, notice};

/// How long a VMM may take to end after it was asked to, or after it closed its status.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running VMM. Dropped, it is ended.
pub struct Vmm {
    child: Child,
}

impl Vmm {
    /// Asks the VMM to have the guest switch itself off.
    pub fn power_off(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Asks the VMM to stop the guest at once.
    pub fn stop(&self) {
        self.signal(rustix::process::Signal::INT);
    }

    /// Ends the VMM by force.
    pub fn kill(&self) {
        self.signal(rustix::process::Signal::KILL);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // The child is not reaped before `wait`, so that the number is still its own.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Waits for the end of a VMM that has nothing more to do.
    fn wait(mut self) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(2));
        }
        self.kill();
        self.child.wait()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
            let _ = self.child.wait();
        }
    }
}

/// Starts a guest that can be asked things at `api`, is its console if `here`, and waits for its end.
/// The value is the exit status.
pub fn run_to_end(
    mut config: VmConfig,
    here: bool,
    api: Option<UnixListener>,
) -> Result<u8, Failure> {
    let program = find_program()?;
    let signals = Signals::block()
        .map_err(|error| Failure::host(format!("cannot receive signals: {error}")))?;
    let plumbing = |error: io::Error| Failure::host(format!("cannot start a guest: {error}"));

    let (config_reader, mut config_writer) = io::pipe().map_err(plumbing)?;
    let (status, vmm_status) = UnixStream::pair().map_err(plumbing)?;
    let (console, vmm_console) = UnixStream::pair().map_err(plumbing)?;
    let config_fd = inheritable(config_reader).map_err(plumbing)?;
    let status_fd = inheritable(vmm_status).map_err(plumbing)?;
    let console_fd = inheritable(vmm_console).map_err(plumbing)?;
    let api_fd = api.map(inheritable).transpose().map_err(plumbing)?;
    if here {
        config.serial = ConsoleConfig::Fd(console_fd.as_raw_fd());
    }
    let json = serde_json::to_vec(&config).map_err(Failure::internal)?;

    let mut command = Command::new(&program);
    command
        .args(["--config-fd", &config_fd.as_raw_fd().to_string()])
        .args(["--status-fd", &status_fd.as_raw_fd().to_string()])
        .stdin(Stdio::null())
        // Ctrl-C at a terminal that is not raw is for this program, which then stops the guest.
        .process_group(0);
    if let Some(api_fd) = &api_fd {
        command.args(["--api-fd", &api_fd.as_raw_fd().to_string()]);
    }
    sys::tie_to_this_process(&mut command);
    let child = command
        .spawn()
        .map_err(|error| Failure::host(format!("cannot start {}: {error}", program.display())))?;
    let vmm = Vmm { child };
    drop((config_fd, status_fd, console_fd, api_fd));
    // A VMM that does not read to the end says why on its status.
    let _ = config_writer.write_all(&json);
    drop(config_writer);

    let terminal = if here {
        RawTerminal::enter()
            .map_err(|error| Failure::host(format!("cannot use this terminal: {error}")))?
    } else {
        None
    };
    let raw = terminal.is_some();
    let end =
        Console::new(&vmm, &signals, status, here.then_some(console), raw, &config.name).run();
    drop(terminal);
    let status = vmm.wait().map_err(plumbing)?;
    conclude(end, status)
}

/// The exit status of `lodge`, from the last event and the VMM's exit status.
fn conclude(end: End, status: ExitStatus) -> Result<u8, Failure> {
    match end {
        End { signal: Some(signal), .. } => {
            Ok(u8::try_from(signal).map_or(u8::MAX, |number| 128 | number))
        }
        End { failure: Some(failure), .. } => Err(failure),
        End { reason: Some(reason), .. } => Ok(reason.exit_status()),
        End { stopping: true, .. } => {
            notice(false, "the guest did not stop in time and was ended by force");
            Ok(0)
        }
        _ => Err(Failure::internal(match status.signal() {
            Some(signal) => format!(
                "lodge-vmm was ended by signal {signal} (a mistake in Lodge, or too little memory \
                 on this host: see `dmesg`); the guest is gone, its disks are as it last flushed \
                 them"
            ),
            None => format!(
                "lodge-vmm ended with {status} without saying why; this is a mistake in Lodge, or \
                 its program does not belong to this lodge"
            ),
        })),
    }
}

/// `$LODGE_VMM`, else the `lodge-vmm` beside this program.
pub fn find_program() -> Result<PathBuf, Failure> {
    if let Some(program) = std::env::var_os("LODGE_VMM").filter(|value| !value.is_empty()) {
        return Ok(program.into());
    }
    let program = std::env::current_exe()
        .map_err(|error| Failure::host(format!("cannot find lodge's own program file: {error}")))?
        .with_file_name("lodge-vmm");
    if program.is_file() {
        return Ok(program);
    }
    Err(Failure::host(format!(
        "{} is missing: build it with `cargo build --release -p vmm`, install it beside lodge, or \
         name it in LODGE_VMM",
        program.display()
    )))
}

/// A duplicate that, unlike what Rust opens, is inherited by the next program.
fn inheritable(fd: impl Into<OwnedFd>) -> io::Result<OwnedFd> {
    Ok(rustix::io::dup(fd.into())?)
}
