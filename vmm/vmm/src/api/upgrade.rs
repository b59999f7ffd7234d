//! Connections that go on in another protocol than HTTP (RFC 9110, 7.8).

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::OwnedSemaphorePermit;

use super::body::{Answer, empty, mistake};

/// A connection in the other protocol.
pub type Stream = TokioIo<hyper::upgrade::Upgraded>;

/// Whether a client asks for `protocol`. The error is the answer to one that does not.
pub fn asked_for(request: &Request<Incoming>, protocol: &'static str) -> Result<(), Box<Answer>> {
    if request.headers().get(UPGRADE).is_some_and(|it| it == protocol) {
        return Ok(());
    }
    let message = format!("ask with the headers Connection: Upgrade and Upgrade: {protocol}");
    let answer = mistake(StatusCode::UPGRADE_REQUIRED, message);
    Err(Box::new(with_headers(answer, protocol)))
}

/// Answers that the connection goes on in `protocol`, and has `speak` do so. It keeps its seat.
pub fn switch<F: Future<Output = ()> + Send>(
    request: Request<Incoming>,
    protocol: &'static str,
    seat: Arc<OwnedSemaphorePermit>,
    speak: impl FnOnce(Stream) -> F + Send + 'static,
) -> Answer {
    tokio::spawn(async move {
        let _seat = seat;
        match hyper::upgrade::on(request).await {
            Ok(stream) => speak(TokioIo::new(stream)).await,
            Err(e) => tracing::debug!("a client does not switch to {protocol}: {e}"),
        }
    });
    with_headers(empty(StatusCode::SWITCHING_PROTOCOLS), protocol)
}

fn with_headers(mut answer: Answer, protocol: &'static str) -> Answer {
    let headers = answer.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static(protocol));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    answer
}
