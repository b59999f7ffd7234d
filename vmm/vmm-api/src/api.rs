//! What goes over a VMM's API: JSON by HTTP/1.1 on a Unix socket.
//!
//! `lodge-vmm --api-fd N` serves it at N, a Unix stream socket that listens. docs/api/openapi.json
//! describes it; these are the types of its bodies.

use serde::{Deserialize, Serialize};

use crate::{Accelerator, Event, VmConfig};

/// What each path begins with. A change that a client of before could not live with gets another.
pub const API_PREFIX: &str = "/v1";

/// The protocol that `GET /v1/console` switches to (RFC 9110, 7.8): the console's bytes, as they
/// are, in both directions.
pub const CONSOLE_PROTOCOL: &str = "lodge-console";

/// The protocol that `GET /v1/vsock` switches to: a stream to a port in the guest, as it is.
pub const VSOCK_PROTOCOL: &str = "lodge-vsock";

/// A running guest: `GET /v1/instance`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The guest's name.
    pub name: String,
    /// What it is doing.
    pub state: RunState,
    /// Why it is paused, for people, unless somebody asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_reason: Option<String>,
    /// The version of Lodge that runs it.
    pub version: String,
    /// The process number of its VMM.
    pub pid: u32,
    /// What runs its processors: never [`Accelerator::Auto`].
    pub accelerator: Accelerator,
    /// How many processors it has.
    pub cpus: u32,
    /// How much memory it has, in MiB.
    pub memory_mib: u64,
    /// When it was started, in milliseconds since 1970.
    pub started_ms: u64,
    /// How often it was reset since.
    pub resets: u64,
}

/// What a guest that has a VMM is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Its processors run.
    Running,
    /// Its processors, its devices and its time stand still.
    Paused,
    /// It has been asked to switch itself off, and still runs.
    Stopping,
}

/// The body of `POST /v1/stop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StopRequest {
    /// For how many seconds the guest may take to switch itself off after its power button was
    /// pressed. Then it is ended like a machine whose plug is pulled; with 0 at once. Whatever it
    /// saw flushed is on its disks.
    pub timeout_s: u32,
}

impl Default for StopRequest {
    fn default() -> Self {
        Self { timeout_s: 60 }
    }
}

/// The body of `POST /v1/snapshots`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// The snapshot's name, which no other of the guest has.
    pub name: String,
}

/// A snapshot: `snapshots/NAME/snapshot.json` in the guest's directory, and an element of
/// `GET /v1/snapshots`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// The version of Lodge that made it.
    pub version: String,
    /// What ran the guest's processors.
    pub accelerator: Accelerator,
    /// How much memory the guest has, in bytes.
    pub memory_bytes: u64,
    /// For how long the guest stood still, in microseconds.
    pub pause_us: u64,
    /// For each disk, the file in the guest's directory that has what was on it; `None` for those that
    /// the guest only reads.
    pub layers: Vec<Option<String>>,
    /// What the guest was made of.
    pub config: VmConfig,
}

/// One line of `GET /v1/events`: something that happened, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Counts a guest's events since its VMM was started, from 1.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Failure, StopReason};

    #[test]
    fn records_are_events_with_a_time() {
        for event in [
            Event::Reset,
            Event::Paused { reason: None },
            Event::Paused { reason: Some("no room".into()) },
            Event::AgentReady,
            Event::DeviceAttached { id: "disk-24".into() },
            Event::DeviceDetached { id: "disk-24".into() },
            Event::Warning { message: "slow".into() },
            Event::Stopped { reason: StopReason::DebugExit { status: 3 } },
            Event::Stopped { reason: StopReason::Exited { status: 0 } },
            Event::Error(Failure::host("port 22 is in use")),
        ] {
            let record = EventRecord { number: 7, time_ms: 1_700_000_000_000, event };
            let text = serde_json::to_string(&record).unwrap();
            assert!(text.starts_with(r#"{"number":7,"time_ms":1700000000000,"event":"#), "{text}");
            assert_eq!(serde_json::from_str::<EventRecord>(&text).unwrap(), record);
        }
    }

    #[test]
    fn a_stop_is_patient_unless_told_otherwise() {
        let stop = |text: &str| serde_json::from_str::<StopRequest>(text);
        assert_eq!(stop("{}").unwrap().timeout_s, 60);
        assert_eq!(stop(r#"{"timeout_s":0}"#).unwrap().timeout_s, 0);
        assert!(stop(r#"{"timeout":0}"#).is_err());
        assert!(stop(r#"{"timeout_s":-1}"#).is_err());
    }
}
