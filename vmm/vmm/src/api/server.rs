//! The thread that serves the API's clients.

use std::convert::Infallible;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Builder;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::{Shared, endpoints};
use crate::hub::{self, Ends, Hub};

/// How many may be connected at once; others are turned away. The socket is the user's own.
const MAX_CLIENTS: usize = 32;
/// How long a client may take for the head of its next request. One that asks for nothing for so
/// long is disconnected.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);
/// How much may wait of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// How long the last events and the last output may take to be read when the guest has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\
    Connection: close\r\nRetry-After: 1\r\n\r\n";

/// Serves clients and relays the console until `closing` says so.
pub fn serve(
    listener: StdListener,
    shared: Arc<Shared>,
    console: Option<(Arc<Hub>, Ends)>,
    closing: watch::Receiver<bool>,
) {
    // Blocking work is the wait for processors that are asked for their statistics.
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
    match runtime {
        Ok(runtime) => {
            runtime.block_on(run(listener, shared, console, closing));
            runtime.shutdown_background();
        }
        Err(e) => tracing::warn!("the API cannot be served: {e}"),
    }
}

async fn run(
    listener: StdListener,
    shared: Arc<Shared>,
    console: Option<(Arc<Hub>, Ends)>,
    closing: watch::Receiver<bool>,
) {
    let relay = console.map(|(hub, ends)| tokio::spawn(hub::relay(hub, ends)));
    let seats = Arc::new(Semaphore::new(MAX_CLIENTS));
    let listener = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
    match listener {
        Ok(listener) => tokio::select! {
            () = accept(&listener, &shared, &seats, &closing) => {}
            () = closed(closing.clone()) => {}
        },
        Err(e) => {
            tracing::warn!("the API's descriptor is no listening socket: {e}");
            closed(closing).await;
        }
    }
    let all_done = async {
        if let Some(relay) = relay {
            let _ = relay.await;
        }
        let _ = seats.acquire_many(MAX_CLIENTS as u32).await;
    };
    let _ = timeout(LAST_WORDS, all_done).await;
}

/// Waits until the guest has ended.
async fn closed(mut closing: watch::Receiver<bool>) {
    // The sender's end means the same.
    let _ = closing.wait_for(|closing| *closing).await;
}

/// Accepts clients for ever, unless the descriptor is no listening socket.
async fn accept(
    listener: &UnixListener,
    shared: &Arc<Shared>,
    seats: &Arc<Semaphore>,
    closing: &watch::Receiver<bool>,
) {
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => {
                tracing::warn!("the API's descriptor is no listening socket: {e}");
                return std::future::pending().await;
            }
            // Out of descriptors, perhaps.
            Err(e) => {
                tracing::debug!("the API cannot accept: {e}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match seats.clone().try_acquire_owned() {
            Ok(seat) => drop(tokio::spawn(converse(client, shared.clone(), seat, closing.clone()))),
            Err(_) => {
                tracing::warn!("more than {MAX_CLIENTS} clients of the API: one is turned away");
                // A fresh socket has room for this.
                let _ = client.try_write(BUSY);
            }
        }
    }
}

/// Answers one client until it closes the connection or makes no sense.
async fn converse(
    client: UnixStream,
    shared: Arc<Shared>,
    seat: OwnedSemaphorePermit,
    closing: watch::Receiver<bool>,
) {
    // An upgraded connection keeps its seat.
    let seat = Arc::new(seat);
    let service = service_fn(move |request| {
        let answer = endpoints::answer(request, shared.clone(), seat.clone());
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(client), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = closed(closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = result {
        tracing::debug!("a client of the API is gone: {e}");
    }
}
