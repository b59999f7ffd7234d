//! Answers, whole or as streams.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;
use vmm_api::{Failure, FailureKind};

/// The body of an answer.
pub enum Content {
    /// All of it.
    Whole(Option<Bytes>),
    /// As it comes, until the sender is dropped.
    Stream(mpsc::Receiver<Bytes>),
}

/// An answer.
pub type Answer = Response<Content>;

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = |bytes: Option<Bytes>| bytes.map(|bytes| Ok(Frame::data(bytes)));
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(frame(bytes.take())),
            Self::Stream(receiver) => receiver.poll_recv(cx).map(frame),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// An answer without a body.
pub fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Content::Whole(None));
    *answer.status_mut() = status;
    answer
}

/// An answer that is JSON.
pub fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(text) => content(status, "application/json", Content::Whole(Some(text.into()))),
        Err(error) => {
            tracing::error!("an answer of the API cannot be written: {error}");
            empty(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

/// An answer of this type.
pub fn content(status: StatusCode, media_type: &'static str, content: Content) -> Answer {
    let mut answer = Response::new(content);
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    answer
}

/// The client has made a mistake.
pub fn mistake(status: StatusCode, message: impl std::fmt::Display) -> Answer {
    json(status, &Failure::configuration(message))
}

/// What was asked for cannot be done: not in the guest's present state, or not on this host.
pub fn refused(failure: &Failure) -> Answer {
    let status = match failure.kind {
        FailureKind::Configuration => StatusCode::CONFLICT,
        FailureKind::Host | FailureKind::Artifact => StatusCode::SERVICE_UNAVAILABLE,
        FailureKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    };
    json(status, failure)
}
