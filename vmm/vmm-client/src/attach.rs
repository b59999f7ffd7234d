//! Giving the guest a device, with the descriptors that its VMM cannot open.

use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vmm_api::{ATTACH_PROTOCOL, AttachAnswer, AttachRequest, Device, Failure};

use crate::{Client, Error};

/// The most descriptors: an image, and as many as it may stand on.
const MAX_DESCRIPTORS: usize = 65;
/// A longer answer is none.
const MAX_ANSWER: u64 = 64 << 10;

impl Client {
    /// Gives the guest a device: what it then has. `descriptors` are those that the request names.
    ///
    /// # Errors
    ///
    /// See [`Error`]; the guest is as before then.
    pub fn attach(
        self,
        request: &AttachRequest,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Device, Error> {
        let patience = self.patience;
        let (mut stream, mut begin) = self.upgrade("/v1/attach", ATTACH_PROTOCOL)?;
        stream.set_read_timeout(Some(patience))?;
        let mut line = serde_json::to_vec(request).map_err(Failure::internal)?;
        line.push(b'\n');
        if begin.is_empty() {
            begin.push(0);
            stream.read_exact(&mut begin).map_err(late)?;
        }
        // From then on, descriptors arrive.
        if begin != b"\n" {
            return Err(Error::Language("it does not wait for descriptors".to_owned()));
        }
        send(&mut stream, &line, descriptors)?;
        let mut answer = Vec::new();
        let mut reader = BufReader::new(stream.take(MAX_ANSWER));
        reader.read_until(b'\n', &mut answer).map_err(late)?;
        match serde_json::from_slice(&answer) {
            Ok(AttachAnswer::Attached(device)) => Ok(device),
            Ok(AttachAnswer::Refused(failure)) => Err(Error::Refused(failure)),
            Err(_) if answer.is_empty() => Err(Error::Gone),
            Err(error) => Err(Error::Language(error.to_string())),
        }
    }
}

fn send(stream: &mut UnixStream, line: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        let message = format!("a disk of more than {MAX_DESCRIPTORS} files cannot be attached");
        return Err(Failure::configuration(message).into());
    }
    let flags = SendFlags::NOSIGNAL;
    let sent =
        sendmsg(&*stream, &[IoSlice::new(line)], &mut control, flags).map_err(io::Error::from)?;
    Ok(stream.write_all(line.get(sent..).unwrap_or_default())?)
}

fn late(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => Error::Late,
        io::ErrorKind::UnexpectedEof => Error::Gone,
        _ => error.into(),
    }
}
