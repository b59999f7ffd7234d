//! The `lodge-vmm` process of one guest.

use std::fs;
use std::io::{self, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use vmm_api::{ConsoleConfig, Event, Failure, VmConfig};

use crate::failure;
use crate::guests::{Guest, VMM_LOG};
use crate::sys::{self, Signals};

use super::cgroup::Group;
use super::console::{Console, End};
use super::terminal::{RawTerminal, notice};

/// How long a VMM may take to end after it was asked to, or after it closed its status.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running VMM. Dropped, it is ended.
pub struct Vmm {
    /// `None` once it is left alone.
    child: Option<Child>,
}

impl Vmm {
    /// Its process number.
    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Has it go on without this program.
    fn leave_alone(mut self) {
        self.child = None;
    }

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
        let pid = i32::try_from(self.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // The child is not reaped before `wait`, so that the number is still its own.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Waits for the end of a VMM that has nothing more to do.
    fn wait(mut self) -> io::Result<ExitStatus> {
        let Some(mut child) = self.child.take() else {
            return Err(io::Error::other("it was left alone"));
        };
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(2));
        }
        child.kill()?;
        child.wait()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child
            && matches!(child.try_wait(), Ok(None))
        {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How a VMM is started.
pub struct Launch<'a> {
    /// What the guest is made of.
    pub config: &'a VmConfig,
    /// The guest's directory, unless it has none.
    pub guest: Option<&'a Guest>,
    /// Where it listens.
    pub api: Option<UnixListener>,
    /// It goes on when this program ends.
    pub detached: bool,
    /// The directory of a snapshot from which the guest goes on.
    pub snapshot: Option<&'a Path>,
}

/// A VMM that was started.
pub struct Launched {
    /// The process.
    pub vmm: Vmm,
    /// Where its events come.
    pub status: UnixStream,
}

impl Launch<'_> {
    /// Starts the VMM. `console`: the guest's first serial port leads there.
    pub fn start(self, console: Option<OwnedFd>) -> Result<Launched, Failure> {
        let program = find_program()?;
        let Launch { config, guest, api, detached, snapshot } = self;
        let plumbing = |error: io::Error| Failure::host(format!("cannot start a guest: {error}"));

        let (config_reader, mut config_writer) = io::pipe().map_err(plumbing)?;
        let (status, vmm_status) = UnixStream::pair().map_err(plumbing)?;
        let config_fd = inheritable(config_reader).map_err(plumbing)?;
        let status_fd = inheritable(vmm_status).map_err(plumbing)?;
        let console_fd = console.map(inheritable).transpose().map_err(plumbing)?;
        let api_fd = api.map(inheritable).transpose().map_err(plumbing)?;
        let mut config = config.clone();
        if let Some(console_fd) = &console_fd {
            config.serial = ConsoleConfig::Fd(console_fd.as_raw_fd());
        }
        let json = serde_json::to_vec(&config).map_err(Failure::internal)?;

        let mut command = Command::new(&program);
        let number = |fd: &OwnedFd| fd.as_raw_fd().to_string();
        command
            .args(["--config-fd", &number(&config_fd)])
            .args(["--status-fd", &number(&status_fd)])
            .stdin(Stdio::null());
        if let Some(api_fd) = &api_fd {
            command.args(["--api-fd", &number(api_fd)]);
        }
        let mut held = Vec::new();
        if let Some(guest) = guest {
            let directory = fs::File::open(guest.directory()).map_err(plumbing)?;
            let lock = guest.lock().try_clone().map_err(plumbing)?;
            for (option, fd) in [("--directory-fd", directory), ("--lock-fd", lock)] {
                let fd = inheritable(fd).map_err(plumbing)?;
                command.args([option, &number(&fd)]);
                held.push(fd);
            }
        }
        if let Some(snapshot) = snapshot {
            let directory = fs::File::open(snapshot).map_err(failure::io("open", snapshot))?;
            let fd = inheritable(directory).map_err(plumbing)?;
            command.args(["--restore-fd", &number(&fd)]);
            held.push(fd);
        }
        if detached {
            command.arg("--detached").stdout(Stdio::null());
            if let Some(guest) = guest {
                command.stderr(log(&guest.directory().join(VMM_LOG)).map_err(plumbing)?);
            }
            sys::detach(&mut command);
        } else {
            // Ctrl-C at a terminal that is not raw is for this program, which then stops the guest.
            command.process_group(0);
            sys::tie_to_this_process(&mut command);
        }
        let group = match guest {
            Some(guest) => Group::make(&config.limits, &config.name, guest.directory()),
            None => Ok(None),
        };
        let child = command.spawn().map_err(|error| {
            Failure::host(format!("cannot start {}: {error}", program.display()))
        })?;
        let vmm = Vmm { child: Some(child) };
        drop((config_fd, status_fd, console_fd, api_fd, held));
        if let Some(guest) = guest {
            guest.set_pid(vmm.id())?;
        }
        let limited = group.and_then(|group| {
            let added = group.map_or(Ok(()), |group| group.add(vmm.id()));
            added.map_err(|error| format!("its process cannot be put in a control group: {error}"))
        });
        if let Err(why) = limited {
            notice(
                false,
                &format!("the guest runs without limits on processors and memory: {why}"),
            );
        }
        // Limits hold before it reads this. A VMM that does not read to the end says why on its status.
        let _ = config_writer.write_all(&json);
        Ok(Launched { vmm, status })
    }
}

/// A file for what a VMM says besides, which is begun anew when it has become long.
fn log(path: &Path) -> io::Result<fs::File> {
    const LONG: u64 = 1 << 20;
    let is_long = fs::metadata(path).is_ok_and(|file| file.len() > LONG);
    let mut options = fs::File::options();
    options.create(true).mode(0o600);
    if is_long {
        options.write(true).truncate(true)
    } else {
        options.append(true)
    };
    options.open(path)
}

/// Starts a guest, is its console if `here`, and waits for its end. `plain`: its program has no
/// terminal. The value is the exit status.
pub fn run_to_end(launch: Launch<'_>, here: bool, plain: bool) -> Result<u8, Failure> {
    let signals = Signals::block()
        .map_err(|error| Failure::host(format!("cannot receive signals: {error}")))?;
    let plumbing = |error: io::Error| Failure::host(format!("cannot start a guest: {error}"));
    let name = launch.config.name.clone();
    let (console, vmm_console) = UnixStream::pair().map_err(plumbing)?;
    let Launched { vmm, status } = launch.start(here.then(|| vmm_console.into()))?;

    let terminal = if here && !plain {
        RawTerminal::enter()
            .map_err(|error| Failure::host(format!("cannot use this terminal: {error}")))?
    } else {
        None
    };
    let raw = terminal.is_some();
    let console = Console::new(&vmm, &signals, status, here.then_some(console), raw, &name);
    let end = if plain { console.for_plain_program().run() } else { console.run() };
    drop(terminal);
    let status = vmm.wait().map_err(plumbing)?;
    conclude(end, status)
}

/// Starts a guest and returns once it runs.
pub fn start_detached(launch: Launch<'_>) -> Result<(), Failure> {
    let Launched { vmm, status } = launch.start(None)?;
    let mut status = BufReader::new(status);
    loop {
        match Event::read_line(&mut status) {
            Ok(Some(Event::Started { gdb, .. })) => {
                if let Some(place) = gdb {
                    notice(false, &format!("GDB can connect: target remote {place}"));
                }
                vmm.leave_alone();
                return Ok(());
            }
            Ok(Some(Event::Warning { message })) => notice(false, &message),
            Ok(Some(Event::Error(failure))) => return Err(failure),
            Ok(Some(_)) => {}
            Ok(None) => {
                let status = vmm.wait().map_err(|error| {
                    Failure::host(format!("cannot wait for lodge-vmm: {error}"))
                })?;
                return conclude(End::default(), status).map(drop);
            }
            Err(error) => {
                return Err(Failure::host(format!(
                    "lodge-vmm speaks another language than this lodge ({error})"
                )));
            }
        }
    }
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
        _ if status.signal() == Some(libc::SIGSYS) => Err(Failure::internal(format!(
            "lodge-vmm asked this host for something that its sandbox does not let it have, and was \
             ended: its last message says what (of a guest in the background, {VMM_LOG} in the guest's \
             directory has it). The guest is gone, its disks are as it last flushed them"
        ))),
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
