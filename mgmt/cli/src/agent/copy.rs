//! `lodge cp`.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use agent_protocol::data::{DataReader, DataWriter};
use agent_protocol::frame::{FrameWriter, Type};
use agent_protocol::{Kind, Reply, Task, archive};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_api::Failure;

use super::Agent;
use crate::args::agent::{CopyArgs, Place};
use crate::run::{notice, write_stdout};

/// Copies; the value is the exit status.
pub fn run(args: &CopyArgs) -> Result<u8, Failure> {
    match (&args.source, &args.target) {
        (Place::Here(source), Place::Guest { name, path }) => copy_in(source, name, path)?,
        (Place::Guest { name, path }, Place::Here(target)) => copy_out(name, path, target)?,
        (Place::Stream, Place::Guest { name, path }) => {
            let mut agent = Agent::ask(name, Task::CopyIn { directory: path.clone() })?;
            send(&mut agent, |data| io::copy(&mut io::stdin(), data).map(drop))?;
        }
        (Place::Guest { name, path }, Place::Stream) => {
            let called = Path::new(path).file_name().and_then(|called| called.to_str());
            let called = called.unwrap_or_default().to_owned();
            let mut agent = Agent::ask(name, Task::CopyOut { path: path.clone(), name: called })?;
            receive(&mut agent, |data| {
                let mut piece = vec![0; 64 << 10];
                loop {
                    match data.read(&mut piece)? {
                        0 => return Ok(()),
                        count => write_stdout(piece.get(..count).unwrap_or_default())?,
                    }
                }
            })?;
        }
        (Place::Guest { .. }, Place::Guest { .. }) => {
            return Err(Failure::configuration(
                "both places are in guests: copy to this machine first, or pipe one `lodge cp` \
                 into another by way of -",
            ));
        }
        _ => {
            return Err(Failure::configuration(
                "neither place is in a guest: write NAME:PATH for one that is",
            ));
        }
    }
    Ok(0)
}

fn copy_in(source: &str, guest: &str, target: &str) -> Result<(), Failure> {
    let cannot = |e: io::Error| Failure::host(format!("{source}: {e}"));
    let is_directory = fs::symlink_metadata(source).map_err(cannot)?.is_dir();
    let source_kind = if is_directory { Kind::Directory } else { Kind::File };
    let path = Path::new(source);
    // `.` and `..` have names, too.
    let called = match path.file_name() {
        Some(called) => called.to_owned(),
        None => fs::canonicalize(path).map_err(cannot)?.file_name().unwrap_or_default().to_owned(),
    };
    let called = called.to_str().ok_or_else(|| {
        Failure::configuration(format!("the name of {source} is not UTF-8: pack it with tar"))
    })?;
    let plan = Plan::new(source, source_kind, called, target, stat(guest, target)?)?;
    let directory = plan.directory.display().to_string();
    let mut agent = Agent::ask(guest, Task::CopyIn { directory })?;
    let mut left_out = 0;
    send(&mut agent, |data| {
        left_out = archive::pack(path, &plan.name, data)?;
        Ok(())
    })?;
    if left_out > 0 {
        notice(false, &format!("{left_out} sockets, pipes or devices were left out"));
    }
    Ok(())
}

fn copy_out(guest: &str, source: &str, target: &str) -> Result<(), Failure> {
    let source_kind = stat(guest, source)?;
    if source_kind == Kind::Missing {
        return Err(Failure::configuration(format!("the guest {guest} has no {source}")));
    }
    let target_kind = match fs::metadata(target) {
        Ok(target) if target.is_dir() => Kind::Directory,
        Ok(_) => Kind::File,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Kind::Missing,
        Err(error) => return Err(Failure::host(format!("{target}: {error}"))),
    };
    let called = Path::new(source).file_name().and_then(|called| called.to_str());
    let plan = Plan::new(source, source_kind, called.unwrap_or_default(), target, target_kind)?;
    let task = Task::CopyOut { path: source.to_owned(), name: plan.name.clone() };
    let mut agent = Agent::ask(guest, task)?;
    let wanted = Some(plan.name.as_str()).filter(|name| !name.is_empty());
    receive(&mut agent, |data| archive::unpack(data, &plan.directory, wanted))
}

fn stat(guest: &str, path: &str) -> Result<Kind, Failure> {
    let mut agent = Agent::ask(guest, Task::Stat { path: path.to_owned() })?;
    match agent.reply()? {
        Reply::Stat(kind) => Ok(kind),
        _ => Err(agent.lost("its answer makes no sense")),
    }
}

/// Where things go: as with docker's cp, and nearly with cp(1).
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// The directory, which is there.
    directory: PathBuf,
    /// What the source is called in it. Empty: all that is in the source goes there.
    name: String,
}

impl Plan {
    fn new(
        source: &str,
        source_kind: Kind,
        called: &str,
        target: &str,
        target_kind: Kind,
    ) -> Result<Plan, Failure> {
        let is_directory = source_kind == Kind::Directory;
        // As a path, a/. is a.
        let contents =
            is_directory && (source == "." || source.ends_with("/.") || called.is_empty());
        match target_kind {
            Kind::Directory => {
                let name = if contents { String::new() } else { called.to_owned() };
                Ok(Plan { directory: target.into(), name })
            }
            Kind::File if is_directory => Err(Failure::configuration(format!(
                "{target} is no directory, and {source} is one"
            ))),
            Kind::Missing if !is_directory && target.ends_with('/') => {
                Err(Failure::configuration(format!("there is no directory {target}")))
            }
            Kind::File | Kind::Missing => {
                let path = Path::new(target);
                let name = path.file_name().and_then(|name| name.to_str());
                let name = name.ok_or_else(|| {
                    Failure::configuration(format!("nothing can be called {target}"))
                })?;
                let parent = path.parent().filter(|parent| *parent != Path::new(""));
                let directory = parent.unwrap_or(Path::new(".")).to_owned();
                Ok(Plan { directory, name: name.to_owned() })
            }
        }
    }
}

/// Sends an archive to an agent that has been asked to unpack it.
fn send(
    agent: &mut Agent,
    pack: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), Failure> {
    agent.reply()?;
    let mut data = DataWriter::new(Heedful(&agent.stream), Type::Input);
    if let Err(error) = pack(&mut data).and_then(|()| data.flush()) {
        // If the agent has something to say, that is why.
        return Err(match is_readable(&agent.stream) {
            true => agent.reply().err().unwrap_or_else(|| agent.lost(error)),
            false => Failure::host(format!("cannot copy: {error}")),
        });
    }
    let mut end = FrameWriter::default();
    end.push(Type::Input, b"");
    end.flush(&mut agent.stream).map_err(|error| agent.lost(error))?;
    agent.reply().map(drop)
}

/// Receives an archive from an agent that has been asked for it.
fn receive(
    agent: &mut Agent,
    unpack: impl FnOnce(&mut dyn Read) -> io::Result<()>,
) -> Result<(), Failure> {
    agent.reply()?;
    let mut data = DataReader::new(&agent.stream, &mut agent.frames, Type::Output);
    let result = unpack(&mut data);
    match (result, data.finish_if_at_end()) {
        (_, Some(Reply::Failed { message, .. })) => Err(agent.failed(&message)),
        (Err(error), _) => Err(Failure::host(format!("cannot copy: {error}"))),
        (Ok(()), Some(_)) => Ok(()),
        (Ok(()), None) => Err(agent.lost("its end is missing")),
    }
}

/// A stream that is written to until the agent has something to say.
struct Heedful<'a>(&'a UnixStream);

impl Write for Heedful<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if is_readable(self.0) {
            return Err(io::Error::other("the agent has given up"));
        }
        (&mut &*self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_readable(stream: &UnixStream) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_go_where_docker_puts_them() {
        use Kind::{Directory, File, Missing};
        let plan = |source: &str, kind, target: &str, target_kind| {
            let called = Path::new(source).file_name().and_then(|n| n.to_str()).unwrap_or_default();
            Plan::new(source, kind, called, target, target_kind)
                .map(|plan| (plan.directory.display().to_string(), plan.name))
                .ok()
        };
        let to = |directory: &str, name: &str| Some((directory.to_owned(), name.to_owned()));
        assert_eq!(plan("a", File, "/x", Directory), to("/x", "a"));
        assert_eq!(plan("a", File, "/x", Missing), to("/", "x"));
        assert_eq!(plan("a", File, "x", File), to(".", "x"));
        assert_eq!(plan("a", File, "/x/", Missing), None);
        assert_eq!(plan("a", File, "/", Missing), None);
        assert_eq!(plan("d", Directory, "/x", Directory), to("/x", "d"));
        assert_eq!(plan("d/", Directory, "/x", Directory), to("/x", "d"));
        assert_eq!(plan("d/.", Directory, "/x", Directory), to("/x", ""));
        assert_eq!(plan(".", Directory, "/x", Directory), to("/x", ""));
        assert_eq!(plan("/", Directory, "x", Directory), to("x", ""));
        assert_eq!(plan("d", Directory, "/y/x/", Missing), to("/y", "x"));
        assert_eq!(plan("d/.", Directory, "/y/x", Missing), to("/y", "x"));
        assert_eq!(plan("d", Directory, "/x", File), None);
    }
}
