//! Clients that connect to a port in the guest.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hybrid_vsock::Vsock;
use hyper::Request;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, copy_bidirectional_with_sizes};
use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use vmm_api::{Failure, RunState, VSOCK_PROTOCOL};

use super::Shared;
use super::body::{Answer, mistake, refused};
use super::upgrade;

/// How long a guest may take to answer: it is an interrupt handler of its kernel that does so.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest line that [`Vsock::connect`]'s stream begins with.
const MAX_LINE: usize = 32;
/// Bytes move in pieces of at most this many.
const PIECE: usize = 64 << 10;

/// Answers a client that wants to connect, and connects it.
pub async fn connect(
    request: Request<Incoming>,
    shared: &Shared,
    port: Option<u32>,
    seat: Arc<OwnedSemaphorePermit>,
) -> Answer {
    let Some(port) = port else {
        return mistake(hyper::StatusCode::BAD_REQUEST, "the parameter port is missing");
    };
    if let Err(answer) = upgrade::asked_for(&request, VSOCK_PROTOCOL) {
        return *answer;
    }
    if shared.shown().state == RunState::Paused {
        return refused(&Failure::configuration("the guest is paused: resume it first"));
    }
    let Some(vsock) = shared.vsock.as_deref().filter(|vsock| vsock.is_live()) else {
        return refused(&Failure::configuration(
            "the guest has no driver for its virtio socket device, or not yet",
        ));
    };
    match timeout(PATIENCE, reach(vsock, port)).await {
        Ok(Ok(Some(mut guest))) => {
            upgrade::switch(request, VSOCK_PROTOCOL, seat, async move |mut client| {
                let result =
                    copy_bidirectional_with_sizes(&mut client, &mut guest, PIECE, PIECE).await;
                if let Err(e) = result {
                    tracing::debug!("a connection to the guest is gone: {e}");
                }
            })
        }
        Ok(Ok(None)) => refused(&Failure::configuration(format!(
            "nobody listens at the virtio socket port {port} of the guest"
        ))),
        Ok(Err(e)) => refused(&Failure::host(format!("cannot connect to the guest: {e}"))),
        Err(_) => refused(&Failure::host(
            "the guest does not answer: it hangs, or this host is very busy; try again",
        )),
    }
}

/// A stream to a port in the guest; `None`: nobody listens there.
async fn reach(vsock: &Vsock, port: u32) -> io::Result<Option<UnixStream>> {
    let stream = vsock.connect(port)?;
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    // A byte at a time: what follows the line is the guest's.
    for _ in 0..MAX_LINE {
        match stream.read_u8().await {
            Ok(b'\n') => return Ok(Some(stream)),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::other("its answer makes no sense"))
}
