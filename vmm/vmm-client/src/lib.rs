//! Speaks with a VMM by its API, for programs that wait for each answer.
//!
//! ```no_run
//! # use std::os::unix::net::UnixStream;
//! let mut client = vmm_client::Client::new(UnixStream::connect("api.sock")?)?;
//! println!("{:?}", client.instance()?);
//! # Ok::<(), vmm_client::Error>(())
//! ```

#![forbid(unsafe_code)]

mod attach;
mod error;
mod stream;

use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use vmm_api::{
    BalloonRequest, BalloonState, CONSOLE_PROTOCOL, DetachRequest, Failure, Instance, Snapshot,
    SnapshotRequest, Statistics, StopRequest, VSOCK_PROTOCOL, VmConfig,
};

pub use error::Error;
pub use stream::{Events, Log};

/// How long a VMM may take to answer. It does not wait as long itself for anything.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer that makes sense, but for streams.
const MAX_ANSWER: usize = 8 << 20;

/// A connection to a VMM.
pub struct Client {
    runtime: Runtime,
    requests: SendRequest<Full<Bytes>>,
    patience: Duration,
}

impl Client {
    /// Speaks over a stream that is connected to a VMM's API socket.
    ///
    /// # Errors
    ///
    /// The system's, for want of descriptors.
    pub fn new(stream: UnixStream) -> Result<Client, Error> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        stream.set_nonblocking(true)?;
        let requests = runtime.block_on(async {
            let stream = TokioIo::new(tokio::net::UnixStream::from_std(stream)?);
            let (requests, connection) = http1::handshake(stream).await?;
            // Its end shows in what is asked.
            tokio::spawn(connection.with_upgrades());
            Ok::<_, Error>(requests)
        })?;
        Ok(Client { runtime, requests, patience: PATIENCE })
    }

    /// Waits no longer than this for each answer.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Client {
        Client { patience, ..self }
    }

    /// What runs there.
    ///
    /// # Errors
    ///
    /// See [`Error`]; so with all that follow.
    pub fn instance(&mut self) -> Result<Instance, Error> {
        self.get("/v1/instance")
    }

    /// What the guest is made of.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn config(&mut self) -> Result<VmConfig, Error> {
        self.get("/v1/config")
    }

    /// What was counted until now.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn statistics(&mut self) -> Result<Statistics, Error> {
        self.get("/v1/statistics")
    }

    /// Has the guest stand still.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn pause(&mut self) -> Result<(), Error> {
        self.order("/v1/pause", Bytes::new())
    }

    /// Has the guest go on.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn resume(&mut self) -> Result<(), Error> {
        self.order("/v1/resume", Bytes::new())
    }

    /// Presses the guest's power button.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn press_power_button(&mut self) -> Result<(), Error> {
        self.order("/v1/power-button", Bytes::new())
    }

    /// Resets the machine.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn reset(&mut self) -> Result<(), Error> {
        self.order("/v1/reset", Bytes::new())
    }

    /// Has the guest end. It may still run when this returns.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn stop(&mut self, request: StopRequest) -> Result<(), Error> {
        let body = serde_json::to_vec(&request).map_err(Failure::internal)?;
        self.order("/v1/stop", body.into())
    }

    /// Has a snapshot made, which takes as long as the guest's memory takes to write.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn make_snapshot(&mut self, request: &SnapshotRequest) -> Result<(), Error> {
        let body = serde_json::to_vec(request).map_err(Failure::internal)?;
        self.order("/v1/snapshots", body.into())
    }

    /// The guest's snapshots, the oldest first.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn snapshots(&mut self) -> Result<Vec<Snapshot>, Error> {
        self.get("/v1/snapshots")
    }

    /// How much memory the guest has at present, and what it does with it.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn balloon(&mut self) -> Result<BalloonState, Error> {
        self.get("/v1/balloon")
    }

    /// Has the guest give memory back, or have it again. It does so as fast as it can, which may be never.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn set_balloon(&mut self, request: BalloonRequest) -> Result<(), Error> {
        let body = serde_json::to_vec(&request).map_err(Failure::internal)?;
        self.order("/v1/balloon", body.into())
    }

    /// Has a device be taken from the guest, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// See [`Error`]; it is refused if the guest has not let go of it in time.
    pub fn detach(mut self, request: &DetachRequest) -> Result<(), Error> {
        self.patience += Duration::from_secs(request.timeout_s.into());
        let body = serde_json::to_vec(request).map_err(Failure::internal)?;
        self.order("/v1/detach", body.into())
    }

    /// What has happened to the guest and, to `follow`, what happens until its end.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn events(mut self, follow: bool) -> Result<Events, Error> {
        let answer =
            self.ask(request(Method::GET, &format!("/v1/events?follow={follow}"), Bytes::new())?)?;
        let answer = self.expect(answer, StatusCode::OK)?;
        Ok(Events::new(Log::new(self.runtime, answer.into_body())))
    }

    /// What the guest wrote to its console, the last `tail` lines, and, to `follow`, what it writes
    /// until its end.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn log(mut self, tail: u64, follow: bool) -> Result<Log, Error> {
        let path = format!("/v1/log?tail={tail}&follow={follow}");
        let answer = self.ask(request(Method::GET, &path, Bytes::new())?)?;
        let answer = self.expect(answer, StatusCode::OK)?;
        Ok(Log::new(self.runtime, answer.into_body()))
    }

    /// Makes this connection the guest's console: a stream of what it writes and what it reads,
    /// which begins with what is returned beside, and that with the last `tail` lines written before.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn console(self, tail: u64) -> Result<(UnixStream, Vec<u8>), Error> {
        self.upgrade(&format!("/v1/console?tail={tail}"), CONSOLE_PROTOCOL)
    }

    /// Makes this connection a stream to a port in the guest, which begins with what is returned
    /// beside.
    ///
    /// # Errors
    ///
    /// See [`Error`]; it is refused if nobody listens there.
    pub fn vsock(self, port: u32) -> Result<(UnixStream, Vec<u8>), Error> {
        self.upgrade(&format!("/v1/vsock?port={port}"), VSOCK_PROTOCOL)
    }

    fn upgrade(mut self, path: &str, protocol: &str) -> Result<(UnixStream, Vec<u8>), Error> {
        let mut request = request(Method::GET, path, Bytes::new())?;
        let headers = request.headers_mut();
        headers.insert(CONNECTION, "upgrade".parse().map_err(Failure::internal)?);
        headers.insert(UPGRADE, protocol.parse().map_err(Failure::internal)?);
        let answer = self.ask(request)?;
        let answer = self.expect(answer, StatusCode::SWITCHING_PROTOCOLS)?;
        self.runtime.block_on(async {
            let upgraded = hyper::upgrade::on(answer).await?;
            let parts = upgraded
                .downcast::<TokioIo<tokio::net::UnixStream>>()
                .map_err(|_| Failure::internal("the connection is no socket"))?;
            let stream = parts.io.into_inner().into_std()?;
            stream.set_nonblocking(false)?;
            Ok((stream, parts.read_buf.to_vec()))
        })
    }

    fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Error> {
        let answer = self.ask(request(Method::GET, path, Bytes::new())?)?;
        let answer = self.expect(answer, StatusCode::OK)?;
        let body = self.body(answer)?;
        serde_json::from_slice(&body).map_err(|error| Error::Language(error.to_string()))
    }

    fn order(&mut self, path: &str, body: Bytes) -> Result<(), Error> {
        let answer = self.ask(request(Method::POST, path, body)?)?;
        let answer = self.expect(answer, StatusCode::NO_CONTENT)?;
        self.body(answer).map(drop)
    }

    fn ask(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        let Client { runtime, requests, patience } = self;
        runtime.block_on(async {
            timeout(*patience, async {
                requests.ready().await?;
                Ok(requests.send_request(request).await?)
            })
            .await
            .map_err(|_| Error::Late)?
        })
    }

    /// Makes an error of every other answer.
    fn expect(
        &mut self,
        answer: Response<Incoming>,
        wanted: StatusCode,
    ) -> Result<Response<Incoming>, Error> {
        let status = answer.status();
        if status == wanted {
            return Ok(answer);
        }
        let body = self.body(answer)?;
        Err(match serde_json::from_slice::<Failure>(&body) {
            Ok(failure) => Error::Refused(failure),
            Err(_) if status == StatusCode::SERVICE_UNAVAILABLE => Error::Busy,
            Err(_) => Error::Language(format!("HTTP status {status}")),
        })
    }

    fn body(&self, answer: Response<Incoming>) -> Result<Bytes, Error> {
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect();
        let body = self.runtime.block_on(async { timeout(self.patience, body).await });
        match body {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(_)) => Err(Error::Gone),
            Err(_) => Err(Error::Late),
        }
    }
}

fn request(method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, Error> {
    let builder = Request::builder().method(method).uri(path).header(HOST, "lodge-vmm");
    let builder =
        if body.is_empty() { builder } else { builder.header(CONTENT_TYPE, "application/json") };
    Ok(builder.body(Full::new(body)).map_err(Failure::internal)?)
}
