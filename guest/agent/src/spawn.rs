//! Starts commands: with pipes or a terminal, as a user, in a session of their own.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use agent_protocol::{Exec, Reply, Size};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::users::{self, User};

/// Where programs are looked for, unless the request says otherwise.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command that runs.
#[derive(Debug)]
pub struct Spawned {
    /// The process.
    pub child: Child,
    /// Where its input goes. `None`: it has none.
    pub input: Option<OwnedFd>,
    /// Where its output comes from; with a terminal, all of it.
    pub output: Option<OwnedFd>,
    /// Where its errors come from.
    pub errors: Option<OwnedFd>,
}

/// Starts a command. The error is the reply.
pub fn spawn(exec: &Exec) -> Result<Spawned, Reply> {
    let etc = Path::new("/etc");
    let user =
        users::find(exec.user.as_deref().unwrap_or("root"), etc).map_err(|e| failed(126, e))?;
    let (program, arguments) =
        exec.command.split_first().ok_or_else(|| failed(126, "there is no command"))?;
    let home = if Path::new(&user.home).is_dir() { user.home.as_str() } else { "/" };
    let directory = exec.directory.as_deref().unwrap_or(home);
    if !Path::new(directory).is_dir() {
        return Err(failed(126, format!("{directory}: there is no such directory in the guest")));
    }

    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory).env_clear();
    command.env("PATH", PATH).env("HOME", home);
    if !user.name.is_empty() {
        command.env("USER", &user.name).env("LOGNAME", &user.name).env("SHELL", &user.shell);
    }
    command.envs(exec.environment.iter().map(|(name, value)| (name, value)));

    let plumbing = |e: io::Error| failed(125, e);
    let mut terminal = None;
    if let Some(size) = exec.terminal {
        let (near, far) = open_terminal(size, &user).map_err(plumbing)?;
        let far = || far.try_clone().map_err(plumbing);
        command.stdin(far()?).stdout(far()?).stderr(far()?);
        terminal = Some(near);
    } else {
        command.stdin(if exec.input { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    become_user(&mut command, user, exec.terminal.is_some());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => failed(127, format!("{program}: command not found")),
        _ => failed(126, format!("{program}: {error}")),
    })?;
    // The command's ends of the terminal go with the value that has them.
    drop(command);
    if let Some(terminal) = terminal {
        let input = terminal.try_clone().map_err(plumbing)?;
        return Ok(Spawned { child, input: Some(input), output: Some(terminal), errors: None });
    }
    let input = child.stdin.take().map(OwnedFd::from);
    let output = child.stdout.take().map(OwnedFd::from);
    let errors = child.stderr.take().map(OwnedFd::from);
    Ok(Spawned { child, input, output, errors })
}

fn failed(status: u8, message: impl ToString) -> Reply {
    Reply::Failed { status, message: message.to_string() }
}

/// Both ends of a new terminal, which is the user's.
fn open_terminal(size: Size, user: &User) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let near = openpt(flags)?;
    grantpt(&near)?;
    unlockpt(&near)?;
    let far = ioctl_tiocgptpeer(&near, flags)?;
    resize(&near, size)?;
    // An agent that is not root runs commands as itself, and has it already.
    let _ = rustix::fs::fchown(&far, Some(rustix::fs::Uid::from_raw(user.uid)), None);
    Ok((near, far))
}

/// Gives a terminal another size.
pub fn resize(terminal: &OwnedFd, size: Size) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}

/// Makes a command start in a session of its own, of which the terminal is its standard input, and
/// as this user.
pub fn become_user(command: &mut Command, user: User, has_terminal: bool) {
    let User { uid, gid, groups, .. } = user;
    // SAFETY: the closure runs in the child between fork and exec, where only calls that are safe
    // in a signal handler are allowed (signal-safety(7)): it makes system calls on values it owns,
    // `groups` among them, and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            let check = |result: i32| match result {
                0.. => Ok(()),
                _ => Err(io::Error::last_os_error()),
            };
            // An agent that was started in the background of a shell's script ignores some.
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
                libc::signal(signal, libc::SIG_DFL);
            }
            check(libc::setsid())?;
            if has_terminal {
                check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            }
            // An agent that is not root runs commands as itself.
            if libc::geteuid() != 0 && libc::geteuid() == uid {
                return Ok(());
            }
            check(libc::setgroups(groups.len(), groups.as_ptr()))?;
            check(libc::setgid(gid))?;
            check(libc::setuid(uid))
        });
    }
}
