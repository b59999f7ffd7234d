//! Clients that give the guest a device, with the descriptors that it needs.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use vmm_api::{ATTACH_PROTOCOL, AttachAnswer, AttachRequest, Device, Failure};

use super::Shared;
use super::body::Answer;
use super::upgrade::{self, Stream};
use crate::control::Command;
use crate::hotplug::Attachment;

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest request that makes sense.
const MAX_REQUEST: usize = 64 << 10;
/// The most descriptors: an image, and as many as it may stand on.
const MAX_DESCRIPTORS: usize = 65;

/// Answers a client that wants the guest to have a device.
pub fn attach(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    seat: Arc<OwnedSemaphorePermit>,
) -> Answer {
    if let Err(answer) = upgrade::asked_for(&request, ATTACH_PROTOCOL) {
        return *answer;
    }
    upgrade::switch(request, ATTACH_PROTOCOL, seat, async move |stream| {
        if let Err(e) = serve(stream, &shared).await {
            tracing::debug!("a client that wanted to attach a device is gone: {e}");
        }
    })
}

async fn serve(stream: Stream, shared: &Shared) -> io::Result<()> {
    let parts = stream
        .into_inner()
        .downcast::<TokioIo<UnixStream>>()
        .map_err(|_| io::Error::other("the connection is no socket"))?;
    let mut socket = parts.io.into_inner();
    // Who sends descriptors earlier loses them to the reader of HTTP.
    socket.write_all(b"\n").await?;
    let answer = match timeout(PATIENCE, receive(&socket)).await {
        Ok(request) => attached(request?, shared).await,
        Err(_) => Err(Failure::configuration("the request does not come")),
    };
    let answer = answer.map_or_else(AttachAnswer::Refused, AttachAnswer::Attached);
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    socket.write_all(&line).await
}

async fn attached(
    (text, descriptors): (Vec<u8>, Vec<OwnedFd>),
    shared: &Shared,
) -> Result<Device, Failure> {
    let request: AttachRequest = serde_json::from_slice(&text)
        .map_err(|e| Failure::configuration(format!("the request is not understood: {e}")))?;
    let command = Command::Attach(Attachment::new(request, descriptors));
    let outcome = shared.orders.give(command);
    let outcome =
        outcome.ok_or_else(|| Failure::host("too many requests wait already; try again"))?;
    match outcome.await {
        Ok(Ok(Some(device))) => Ok(device),
        Ok(Ok(None)) => Err(Failure::internal("the guest has no new device")),
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(Failure::configuration("the guest has just ended")),
    }
}

/// A line, without its end, and the descriptors that came with it.
async fn receive(socket: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut text, mut descriptors) = (Vec::new(), Vec::new());
    loop {
        let more = socket.async_io(Interest::READABLE, || read(socket, &mut descriptors)).await?;
        if more.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        text.extend(more);
        if let Some(end) = text.iter().position(|&byte| byte == b'\n') {
            text.truncate(end);
            return Ok((text, descriptors));
        }
        if text.len() > MAX_REQUEST || descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::Error::other("the request is too long"));
        }
    }
}

fn read(socket: &UnixStream, descriptors: &mut Vec<OwnedFd>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = part {
            descriptors.extend(fds);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("too many descriptors came, or none can be had any more"));
    }
    bytes.truncate(message.bytes);
    Ok(bytes)
}
