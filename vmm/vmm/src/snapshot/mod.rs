//! Snapshots: a directory each, `snapshots/NAME` in the guest's.
//!
//! | file | what |
//! |---|---|
//! | `snapshot.json` | what it is, for people and `lodge` ([`vmm_api::Snapshot`]) |
//! | `state` | processors and devices, in [sections](state::Sections) |
//! | `memory` | the guest's memory, page by page ([`state::memory`]), as far as it is not as it was |
//! | `memory.N` | a link to the `memory` of an older snapshot, in which the rest is |
//!
//! What was on the disks then are layers beside the guest's disk. docs/snapshots.md has all of it.

mod contents;
mod create;
mod list;
mod open;
mod parent;
mod rate;

pub use create::create;
pub use list::list;
pub use open::Opened;
pub use parent::Parent;

/// In the guest's directory.
const SNAPSHOTS: &str = "snapshots";
const STATE: &str = "state";
const MEMORY: &str = state::memory::FILE;
const ABOUT: &str = "snapshot.json";
