//! The first program of a guest that is made of an OCI image. It gets the machine ready, runs the
//! image's program on the console, waits for its end, and ends the machine with its exit status.
//!
//! It runs from an initial RAM disk that holds it, the modules that it loads and what the image says
//! about its program ([`agent_protocol::program`]). All else that it sees is the image's: a path may
//! be missing there, or lead elsewhere in the guest, which harms nobody but the guest.

mod console;
mod files;
mod folders;
mod network;
mod power;
mod root;

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use agent_protocol::program::{INIT_FAILED, PROGRAM_FILE, Program, Start};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process, wait, waitid,
};

use crate::spawn::{PATH, become_user};
use crate::users;
use console::Console;

/// What its exit status says of a command that is there and cannot be run.
const CANNOT_RUN: u8 = 126;
/// And of one that is not there.
const NOT_FOUND: u8 = 127;

/// Runs the guest to its end, and does not come back.
pub fn run() -> ! {
    let status = match root::prepare() {
        Ok(()) => {
            let status = boot().unwrap_or_else(|(status, message)| {
                console::complain(&message);
                status
            });
            power::end_others();
            root::close();
            status
        }
        Err(error) => {
            console::complain(&error.to_string());
            INIT_FAILED
        }
    };
    power::end(status)
}

/// Why the program did not run, and the exit status that says so.
type Failed = (u8, String);

fn failed(status: u8) -> impl Fn(io::Error) -> Failed {
    move |error| (status, error.to_string())
}

/// From the mounted root file system to the program's end.
fn boot() -> Result<u8, Failed> {
    let broken = failed(INIT_FAILED);
    let text = fs::read(PROGRAM_FILE).map_err(files::about(PROGRAM_FILE)).map_err(&broken)?;
    let program: Program = serde_json::from_slice(&text)
        .map_err(|error| (INIT_FAILED, format!("{PROGRAM_FILE}: {error}")))?;
    let cmdline = fs::read_to_string("/proc/cmdline").map_err(&broken)?;
    let start = Start::from_cmdline(&cmdline);

    root::enter().map_err(&broken)?;
    folders::mount_all(&cmdline).map_err(&broken)?;
    let hostname = start.hostname.as_deref().unwrap_or("guest");
    files::name_machine(hostname);
    network::start();
    start_agent();

    let running = Running::default();
    let stop_signal = program.stop_signal.as_deref().and_then(signal).unwrap_or(Signal::TERM);
    thread::spawn({
        let running = running.clone();
        move || power::watch_button(move || running.signal(stop_signal))
    });
    let console = Console::open(&start).map_err(&broken)?;
    let pid = spawn(&program, &start, hostname, &console)?;
    running.set(pid);
    let status = running.wait();
    console.drain();
    Ok(status)
}

/// Starts the agent, which is this program again, as a process that is not the first.
fn start_agent() {
    let started = Command::new("/proc/self/exe")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    if let Err(error) = started {
        console::complain(&format!("`lodge exec` will not work: {error}"));
    }
}

/// Starts the image's program on the console.
fn spawn(
    program: &Program,
    start: &Start,
    hostname: &str,
    console: &Console,
) -> Result<Pid, Failed> {
    let words = program.words(start);
    let Some((name, arguments)) = words.split_first() else {
        return Err((NOT_FOUND, "the image names no program, and neither did you".to_owned()));
    };
    let who = start.user.as_deref().or(program.user.as_deref()).filter(|who| !who.is_empty());
    let user = users::find(who.unwrap_or("root"), Path::new("/etc")).map_err(failed(CANNOT_RUN))?;
    let directory = start.directory.as_deref().or(program.directory.as_deref());
    let directory = directory.filter(|path| !path.is_empty()).unwrap_or("/");
    // Made where it is missing, as docker does.
    if let Err(error) = fs::create_dir_all(directory) {
        return Err((CANNOT_RUN, format!("the working directory {directory}: {error}")));
    }

    let mut command = Command::new(name);
    command.args(arguments).current_dir(directory).env_clear();
    command.env("PATH", PATH).env("HOSTNAME", hostname);
    command.env("HOME", if user.home.is_empty() { "/" } else { &user.home });
    if !start.plain {
        command.env("TERM", start.terminal.as_deref().unwrap_or("xterm"));
    }
    for setting in program.environment.iter().chain(&start.environment) {
        if let Some((name, value)) = setting.split_once('=').filter(|(name, _)| !name.is_empty()) {
            command.env(name, value);
        }
    }
    let [input, output, errors] = console.for_program(&user).map_err(failed(INIT_FAILED))?;
    command.stdin(input).stdout(output).stderr(errors);
    become_user(&mut command, user, true);
    console.begin();
    let child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => (NOT_FOUND, format!("{name}: command not found")),
        _ => (CANNOT_RUN, format!("{name}: {error}")),
    })?;
    Ok(Pid::from_child(&child))
}

/// The program, while it runs.
#[derive(Clone, Default)]
struct Running(Arc<Mutex<Option<Pid>>>);

impl Running {
    fn set(&self, pid: Pid) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(pid);
    }

    /// Sends it a signal. It has not been waited for, so that its number is still its own.
    fn signal(&self, signal: Signal) {
        if let Some(pid) = *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits for its end, and for that of every other process which nobody else waits for. The exit
    /// status, or 128 and the number of the signal that ended it.
    fn wait(&self) -> u8 {
        loop {
            let ended = match waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Ok(_) => self.reap(),
                Err(Errno::INTR) => None,
                // It cannot be that there is no child before the program has ended.
                Err(_) => return INIT_FAILED,
            };
            if let Some(status) = ended {
                return status;
            }
        }
    }

    /// Takes what has ended; the program's status, if it was that.
    fn reap(&self) -> Option<u8> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if *running != Some(pid) {
                continue;
            }
            *running = None;
            let signal = status.terminating_signal().map(|signal| 128 + signal);
            let status = status.exit_status().or(signal).unwrap_or(INIT_FAILED.into());
            return Some(u8::try_from(status).unwrap_or(u8::MAX));
        }
        None
    }
}

/// A signal by its name or number, as images name it (OCI image-spec, config.md: `SIGKILL`,
/// `SIGRTMIN+3`).
fn signal(name: &str) -> Option<Signal> {
    if let Ok(number) = name.parse() {
        return real_signal(number);
    }
    let name = name.strip_prefix("SIG").unwrap_or(name);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let offset: i32 = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse().ok()? };
        // What C libraries keep for themselves is counted off, as programs expect it.
        return real_signal(libc::SIGRTMIN().checked_add(offset)?);
    }
    Some(match name {
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "QUIT" => Signal::QUIT,
        "KILL" => Signal::KILL,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "TERM" => Signal::TERM,
        "WINCH" => Signal::WINCH,
        "PWR" => Signal::POWER,
        _ => return None,
    })
}

fn real_signal(number: i32) -> Option<Signal> {
    let is_real_time = (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number);
    // SAFETY: the number is one of a signal that the C library leaves to programs.
    let real_time = is_real_time.then(|| unsafe { Signal::from_raw_unchecked(number) });
    Signal::from_named_raw(number).or(real_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        assert_eq!(signal("SIGTERM"), Some(Signal::TERM));
        assert_eq!(signal("QUIT"), Some(Signal::QUIT));
        assert_eq!(signal("9"), Some(Signal::KILL));
        let real_time = signal("SIGRTMIN+3").unwrap();
        assert_eq!(real_time.as_raw(), libc::SIGRTMIN() + 3);
        for bad in ["", "SIG", "SIGNONE", "0", "-1", "99", "SIGRTMIN+99", "RTMIN-1"] {
            assert_eq!(signal(bad), None, "{bad}");
        }
    }
}
