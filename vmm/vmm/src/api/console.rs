//! Clients that become one of the guest's consoles.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc};
use vmm_api::CONSOLE_PROTOCOL;

use super::body::{Answer, mistake};
use super::streams::MISSED;
use super::upgrade::{self, Stream};
use crate::hub::Hub;

/// Answers a client that wants to attach, and becomes its console.
pub fn attach(
    request: Request<Incoming>,
    hub: &Hub,
    tail: u64,
    seat: Arc<OwnedSemaphorePermit>,
) -> Answer {
    if let Err(answer) = upgrade::asked_for(&request, CONSOLE_PROTOCOL) {
        return *answer;
    }
    let (past, output) = match hub.follow(tail) {
        Ok(following) => following,
        Err(e) => return mistake(StatusCode::SERVICE_UNAVAILABLE, e),
    };
    let keyboard = hub.keyboard();
    upgrade::switch(request, CONSOLE_PROTOCOL, seat, move |stream| {
        relay(stream, past, output, keyboard)
    })
}

/// Moves bytes until either end is closed.
async fn relay(
    stream: Stream,
    past: Vec<u8>,
    output: Option<broadcast::Receiver<Bytes>>,
    keyboard: mpsc::Sender<Bytes>,
) {
    let (keys, mut screen) = tokio::io::split(stream);
    let show = async {
        screen.write_all(&past).await?;
        let Some(mut output) = output else { return Ok(()) };
        loop {
            match output.recv().await {
                Ok(piece) => screen.write_all(&piece).await?,
                Err(RecvError::Lagged(_)) => screen.write_all(MISSED).await?,
                Err(RecvError::Closed) => return screen.shutdown().await,
            }
        }
    };
    let result = tokio::select! {
        result = show => result,
        () = type_in(keys, keyboard) => Ok(()),
    };
    if let Err(e) = result {
        tracing::debug!("a console is gone: {e}");
    }
}

async fn type_in(mut keys: ReadHalf<Stream>, keyboard: mpsc::Sender<Bytes>) {
    let mut buffer = vec![0; 1024];
    while let Ok(count @ 1..) = keys.read(&mut buffer).await {
        let bytes = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
        if keyboard.send(bytes).await.is_err() {
            // The guest takes no more; it may still have something to say.
            std::future::pending::<()>().await;
        }
    }
}
