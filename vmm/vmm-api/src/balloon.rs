//! The guest's memory balloon, over the API.

use serde::{Deserialize, Serialize};

/// `GET /v1/balloon`: how much memory the guest is to have and has, and what it says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// What it is made with, in MiB.
    pub memory_mib: u64,
    /// What it is to have at present, in MiB.
    pub target_mib: u64,
    /// What it has at present, in MiB: it gives memory back, and takes it, as fast as it can.
    pub actual_mib: u64,
    /// What the guest says of its memory; `None`: it has no driver for its balloon, or not yet.
    pub guest: Option<GuestMemoryUse>,
}

/// What a guest says of its memory, in bytes, as far as it does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMemoryUse {
    /// All that it has. (Linux counts in what is in the balloon.)
    pub total_bytes: Option<u64>,
    /// What is not in use at all.
    pub free_bytes: Option<u64>,
    /// What programs could have without swapping.
    pub available_bytes: Option<u64>,
    /// What holds the contents of files, and could be had.
    pub cached_bytes: Option<u64>,
    /// Read from swap space so far.
    pub swapped_in_bytes: Option<u64>,
    /// Written to swap space so far.
    pub swapped_out_bytes: Option<u64>,
    /// Page faults for which something had to be read.
    pub major_faults: Option<u64>,
    /// Other page faults.
    pub minor_faults: Option<u64>,
}

/// The body of `POST /v1/balloon`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonRequest {
    /// What the guest is to have, in MiB: 1 to what it is made with.
    pub target_mib: u64,
}
