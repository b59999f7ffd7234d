//! What can be asked, and how it is answered.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, StatusCode};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use vmm_api::{BalloonRequest, DetachRequest, Failure, SnapshotRequest, StopRequest};

use super::body::{Answer, empty, json, mistake, refused};
use super::query::Query;
use super::{Shared, attach, balloon, console, streams, vsock};
use crate::control::Command;
use crate::hub::Hub;

/// The longest body of a request that makes sense.
const MAX_BODY: usize = 64 << 10;
/// How long a client may take to send it.
const BODY_PATIENCE: Duration = Duration::from_secs(10);

/// What a path and a method stand for.
#[derive(Clone, Debug)]
enum Endpoint {
    Instance,
    Config,
    Statistics,
    Events,
    Log,
    Console,
    Vsock,
    Order(Command),
    Stop,
    Snapshots,
    MakeSnapshot,
    Balloon,
    SetBalloon,
    Attach,
    Detach,
}

/// All there is. docs/api/openapi.json describes exactly these.
const ENDPOINTS: &[(Method, &str, Endpoint)] = &[
    (Method::GET, "/v1/instance", Endpoint::Instance),
    (Method::GET, "/v1/config", Endpoint::Config),
    (Method::GET, "/v1/statistics", Endpoint::Statistics),
    (Method::GET, "/v1/events", Endpoint::Events),
    (Method::GET, "/v1/log", Endpoint::Log),
    (Method::GET, "/v1/console", Endpoint::Console),
    (Method::GET, "/v1/vsock", Endpoint::Vsock),
    (Method::POST, "/v1/pause", Endpoint::Order(Command::Pause)),
    (Method::POST, "/v1/resume", Endpoint::Order(Command::Resume)),
    (Method::POST, "/v1/power-button", Endpoint::Order(Command::PressPowerButton)),
    (Method::POST, "/v1/reset", Endpoint::Order(Command::Reset)),
    (Method::POST, "/v1/stop", Endpoint::Stop),
    (Method::GET, "/v1/snapshots", Endpoint::Snapshots),
    (Method::POST, "/v1/snapshots", Endpoint::MakeSnapshot),
    (Method::GET, "/v1/balloon", Endpoint::Balloon),
    (Method::POST, "/v1/balloon", Endpoint::SetBalloon),
    (Method::GET, "/v1/attach", Endpoint::Attach),
    (Method::POST, "/v1/detach", Endpoint::Detach),
];

/// Answers one request.
pub async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    seat: Arc<OwnedSemaphorePermit>,
) -> Answer {
    let (endpoint, query) = match find(&request) {
        Ok(found) => found,
        Err(answer) => return *answer,
    };
    match endpoint {
        Endpoint::Instance => json(StatusCode::OK, &shared.instance()),
        Endpoint::Config => json(StatusCode::OK, &*shared.shown().config),
        Endpoint::Statistics => statistics(&shared).await,
        Endpoint::Events => streams::events(&shared.journal, query.follow.unwrap_or(true)),
        Endpoint::Log => with_console(&shared, |hub| {
            let tail = query.tail.unwrap_or(u64::MAX);
            streams::log(hub, tail, query.follow.unwrap_or(false))
                .unwrap_or_else(|e| refused(&Failure::host(format!("the log is lost: {e}"))))
        }),
        Endpoint::Console => with_console(&shared, |hub| {
            console::attach(request, hub, query.tail.unwrap_or(0), seat)
        }),
        Endpoint::Vsock => vsock::connect(request, &shared, query.port, seat).await,
        Endpoint::Order(command) => order(&shared, command).await,
        Endpoint::Stop => match body::<StopRequest>(request).await {
            Ok(StopRequest { timeout_s }) => {
                let patience = Duration::from_secs(timeout_s.into());
                order(&shared, Command::Stop { patience }).await
            }
            Err(answer) => answer,
        },
        Endpoint::Balloon => balloon::state(&shared).await,
        Endpoint::SetBalloon => match body::<BalloonRequest>(request).await {
            Ok(request) => balloon::set(&shared, request),
            Err(answer) => answer,
        },
        Endpoint::Attach => attach::attach(request, shared, seat),
        Endpoint::Detach => match body::<DetachRequest>(request).await {
            Ok(request) => order(&shared, Command::Detach(request)).await,
            Err(answer) => answer,
        },
        Endpoint::Snapshots => match shared.snapshots() {
            Ok(snapshots) => json(StatusCode::OK, &snapshots),
            Err(failure) => refused(&failure),
        },
        Endpoint::MakeSnapshot => match body::<SnapshotRequest>(request).await {
            Ok(SnapshotRequest { name }) => order(&shared, Command::Snapshot { name }).await,
            Err(answer) => answer,
        },
    }
}

/// What a request asks for. The error is the answer to one that makes no sense.
fn find(request: &Request<Incoming>) -> Result<(Endpoint, Query), Box<Answer>> {
    let path = request.uri().path();
    let mut here = ENDPOINTS.iter().filter(|(_, its_path, _)| *its_path == path).peekable();
    let Some((allowed, ..)) = here.peek() else {
        return Err(Box::new(mistake(
            StatusCode::NOT_FOUND,
            format_args!("this VMM has no {path}: it may be of another version than who asks"),
        )));
    };
    let first = allowed.to_string();
    let others = here.clone().skip(1).map(|(method, ..)| format!(", {method}"));
    let allowed = first + &others.collect::<String>();
    let Some((.., endpoint)) = here.find(|(method, ..)| method == request.method()) else {
        let mut answer =
            mistake(StatusCode::METHOD_NOT_ALLOWED, format_args!("{path} is for {allowed} only"));
        if let Ok(allowed) = HeaderValue::from_str(&allowed) {
            answer.headers_mut().insert(ALLOW, allowed);
        }
        return Err(Box::new(answer));
    };
    let known: &[&str] = match endpoint {
        Endpoint::Events => &["follow"],
        Endpoint::Log => &["follow", "tail"],
        Endpoint::Console => &["tail"],
        Endpoint::Vsock => &["port"],
        _ => &[],
    };
    Query::parse(request.uri().query().unwrap_or_default(), known)
        .map(|query| (endpoint.clone(), query))
        .map_err(|message| Box::new(mistake(StatusCode::BAD_REQUEST, message)))
}

async fn statistics(shared: &Shared) -> Answer {
    let (shown, resident) = (shared.shown(), shared.own_memory.resident_bytes());
    match tokio::task::spawn_blocking(move || shown.statistics(resident)).await {
        Ok(statistics) => json(StatusCode::OK, &statistics),
        Err(_) => refused(&Failure::internal("the statistics cannot be had")),
    }
}

fn with_console(shared: &Shared, act: impl FnOnce(&Hub) -> Answer) -> Answer {
    match &shared.console {
        Some(hub) => act(hub),
        None => refused(&Failure::configuration(
            "the guest's first serial port leads elsewhere, as its configuration says",
        )),
    }
}

/// Has something done with the machine.
async fn order(shared: &Shared, command: Command) -> Answer {
    let Some(outcome) = shared.orders.give(command) else {
        return refused(&Failure::host("too many requests wait already; try again"));
    };
    match outcome.await {
        Ok(Ok(_)) => empty(StatusCode::NO_CONTENT),
        Ok(Err(failure)) => refused(&failure),
        Err(_) => refused(&Failure::configuration("the guest has just ended")),
    }
}

/// Reads a body that is JSON; none stands for `{}`.
async fn body<T: serde::de::DeserializeOwned>(request: Request<Incoming>) -> Result<T, Answer> {
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    let bytes = match timeout(BODY_PATIENCE, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => {
            return Err(mistake(
                StatusCode::PAYLOAD_TOO_LARGE,
                format_args!("a body has at most {MAX_BODY} bytes"),
            ));
        }
        Err(_) => return Err(mistake(StatusCode::REQUEST_TIMEOUT, "the body does not come")),
    };
    let text = if bytes.is_empty() { b"{}" } else { bytes.as_ref() };
    serde_json::from_slice(text).map_err(|e| {
        mistake(StatusCode::BAD_REQUEST, format_args!("the body is not understood: {e}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_is_described_is_what_there_is() {
        let text = include_str!("../../../../docs/api/openapi.json");
        let description: serde_json::Value = serde_json::from_str(text).unwrap();
        let mut described = BTreeSet::new();
        for (path, methods) in description["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                described.insert((method.to_uppercase(), path.clone()));
            }
        }
        let there: BTreeSet<_> =
            ENDPOINTS.iter().map(|(m, path, _)| (m.to_string(), (*path).to_owned())).collect();
        assert_eq!(described, there);
        assert!(there.iter().all(|(_, path)| path.starts_with(vmm_api::API_PREFIX)));
    }
}
