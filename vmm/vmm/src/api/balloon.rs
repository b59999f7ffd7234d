//! The guest's balloon.

use std::time::Duration;

use hyper::StatusCode;
use virtio::{BalloonSize, MemoryUse};
use vmm_api::{BalloonRequest, BalloonState, Failure, GuestMemoryUse, RunState};

use super::Shared;
use super::body::{Answer, empty, json, refused};

/// How long a guest may take to say what it does with its memory; it is its kernel that does so. What it
/// said before does as well.
const PATIENCE: Duration = Duration::from_millis(500);
/// Pages of the balloon in a MiB.
const PAGES: u64 = 256;

/// Tells how large it is, and what the guest says of its memory.
pub async fn state(shared: &Shared) -> Answer {
    let Some(balloon) = shared.balloon.clone() else { return none() };
    let shown = shared.shown();
    // A guest that stands still says nothing new.
    let patience = if shown.state == RunState::Paused { Duration::ZERO } else { PATIENCE };
    let ask = move || (balloon.memory_use(patience), balloon.size());
    match tokio::task::spawn_blocking(ask).await {
        Ok((guest, size)) => json(StatusCode::OK, &state_of(shown.config.memory_mib, size, guest)),
        Err(_) => refused(&Failure::internal("the balloon cannot be looked at")),
    }
}

/// Has the guest make it as large as is asked for.
pub fn set(shared: &Shared, request: BalloonRequest) -> Answer {
    let Some(balloon) = &shared.balloon else { return none() };
    let memory = shared.shown().config.memory_mib;
    match pages(memory, request.target_mib) {
        Ok(pages) => {
            balloon.want(pages);
            empty(StatusCode::NO_CONTENT)
        }
        Err(failure) => refused(&failure),
    }
}

fn none() -> Answer {
    refused(&Failure::configuration("the guest has no balloon, as its configuration says"))
}

fn pages(memory: u64, target: u64) -> Result<u32, Failure> {
    if !(1..=memory).contains(&target) {
        return Err(Failure::configuration(format!(
            "a guest that is made with {memory} MiB of memory can have 1 to {memory} MiB, not {target}"
        )));
    }
    // At most 1 TiB.
    u32::try_from((memory - target) * PAGES).map_err(Failure::internal)
}

fn state_of(memory: u64, size: BalloonSize, guest: Option<MemoryUse>) -> BalloonState {
    let rest = |pages: u32| memory.saturating_sub(u64::from(pages).div_ceil(PAGES));
    BalloonState {
        memory_mib: memory,
        target_mib: rest(size.wanted),
        actual_mib: rest(size.actual),
        guest: guest.map(|it| GuestMemoryUse {
            total_bytes: it.total,
            free_bytes: it.free,
            available_bytes: it.available,
            cached_bytes: it.caches,
            swapped_in_bytes: it.swapped_in,
            swapped_out_bytes: it.swapped_out,
            major_faults: it.major_faults,
            minor_faults: it.minor_faults,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_either_way() {
        assert_eq!(pages(1024, 1024), Ok(0));
        assert_eq!(pages(1024, 512), Ok(512 * 256));
        assert_eq!(pages(1 << 20, 1), Ok(((1 << 20) - 1) * 256));
        for bad in [0, 1025, u64::MAX] {
            assert_eq!(pages(1024, bad).unwrap_err().kind, vmm_api::FailureKind::Configuration);
        }
        let state = state_of(1024, BalloonSize { wanted: 256, actual: 1 }, None);
        assert_eq!((state.target_mib, state.actual_mib), (1023, 1023));
        let state = state_of(1024, BalloonSize { wanted: 0, actual: u32::MAX }, None);
        assert_eq!((state.target_mib, state.actual_mib), (1024, 0));
    }
}
