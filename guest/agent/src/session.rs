//! One connection: a request, and what it leads to.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use agent_protocol::data::{DataReader, DataWriter};
use agent_protocol::frame::{FrameReader, FrameWriter, Type};
use agent_protocol::{Kind, Reply, Request, Task, VERSION, archive};

use crate::{exec, forward, renew};

/// The exit status of `lodge` for what has none of its own.
const FAILED: u8 = 125;

/// Serves a connection to its end.
pub fn serve(connection: OwnedFd) {
    // read(2) and write(2) are all that a stream needs.
    let stream = File::from(connection);
    let mut frames = FrameReader::default();
    if let Err(error) = answer(&stream, &mut frames) {
        // Whoever is gone does not read it.
        let _ = reply(&stream, &Reply::Failed { status: FAILED, message: error.to_string() });
    }
}

fn answer(mut stream: &File, frames: &mut FrameReader) -> io::Result<()> {
    let Some(request) = frames.wait(&mut stream)? else { return Ok(()) };
    if request.kind != Type::Request {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let task = match request.json::<Request>() {
        Ok(Request { version: VERSION, task }) => task,
        _ => {
            return Err(io::Error::other(format!(
                "the agent in the guest ({}) and this lodge do not understand each other: make \
                 the guest anew from an image that is built by this lodge",
                env!("CARGO_PKG_VERSION")
            )));
        }
    };
    match task {
        Task::Ping => reply(stream, &Reply::Done),
        Task::Exec(exec) => exec::run(stream, frames, &exec),
        Task::Stat { path } => reply(stream, &Reply::Stat(kind(Path::new(&path))?)),
        Task::CopyOut { path, name } => {
            // What cannot be read at all is said before anything else.
            fs::symlink_metadata(&path).map_err(|e| about(&path, e))?;
            reply(stream, &Reply::Started)?;
            archive::pack(Path::new(&path), &name, DataWriter::new(stream, Type::Output))?;
            reply(stream, &Reply::Done)
        }
        Task::CopyIn { directory } => {
            if kind(Path::new(&directory))? != Kind::Directory {
                return Err(io::Error::other(format!("{directory}: there is no such directory")));
            }
            reply(stream, &Reply::Started)?;
            let mut data = DataReader::new(stream, frames, Type::Input);
            if let Err(error) = archive::unpack(&mut data, Path::new(&directory), None) {
                let message = error.to_string();
                reply(stream, &Reply::Failed { status: FAILED, message })?;
                // What is on its way is taken, so that the answer is read.
                let _ = data.finish();
                return Ok(());
            }
            data.finish()?;
            reply(stream, &Reply::Done)
        }
        Task::Renew(renewal) => {
            renew::renew(&renewal)?;
            reply(stream, &Reply::Done)
        }
        Task::Connect { port } => forward::run(stream, std::mem::take(frames).into_rest(), port),
    }
}

fn kind(path: &Path) -> io::Result<Kind> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(Kind::Directory),
        Ok(_) => Ok(Kind::File),
        // A symbolic link that leads nowhere is there.
        Err(_) if fs::symlink_metadata(path).is_ok() => Ok(Kind::File),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kind::Missing),
        Err(error) => Err(about(&path.display().to_string(), error)),
    }
}

fn about(path: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{path}: {error}"))
}

/// Sends a reply.
pub fn reply(mut stream: &File, reply: &Reply) -> io::Result<()> {
    let mut frames = FrameWriter::default();
    frames.push_json(Type::Reply, reply)?;
    frames.flush(&mut stream)
}

#[cfg(test)]
mod tests;
