//! `lodge balloon`.

use std::fmt::Write;

use vmm_api::{BalloonRequest, BalloonState, Failure, GuestMemoryUse};

use crate::args::BalloonArgs;
use crate::size::format_bytes;
use crate::{guests, output};

/// Says how much memory a guest has, or is to have; the value is the exit status.
pub fn run(args: &BalloonArgs) -> Result<u8, Failure> {
    let about = |error: vmm_client::Error| error.about(&args.name);
    let mut client = guests::client(&args.name)?;
    if let Some(target_mib) = args.size {
        client.set_balloon(BalloonRequest { target_mib }).map_err(about)?;
        if client.balloon().map_err(about)?.guest.is_none() {
            eprintln!(
                "lodge: the guest has no driver for its balloon yet (Linux: virtio_balloon), and does so \
                 when it has"
            );
        }
        return Ok(0);
    }
    let state = client.balloon().map_err(about)?;
    let text = match args.json {
        true => serde_json::to_string_pretty(&state).map_err(Failure::internal)? + "\n",
        false => describe(&state),
    };
    output::print(text)?;
    Ok(0)
}

/// For people.
fn describe(state: &BalloonState) -> String {
    let mib = |mib: u64| format_bytes(mib << 20);
    let BalloonState { memory_mib, target_mib, actual_mib, guest } = state;
    let mut text = format!("It has {} of {}", mib(*actual_mib), mib(*memory_mib));
    if target_mib != actual_mib {
        let _ = write!(text, ", and is to have {}", mib(*target_mib));
    }
    text += ".\n";
    let Some(guest) = guest else {
        return text + "It has no driver for its balloon (Linux: virtio_balloon), or not yet.\n";
    };
    let GuestMemoryUse { total_bytes, free_bytes, available_bytes, cached_bytes, .. } = guest;
    let amounts = [
        ("total", total_bytes),
        ("free", free_bytes),
        ("available", available_bytes),
        ("cached", cached_bytes),
        ("swapped in", &guest.swapped_in_bytes),
        ("swapped out", &guest.swapped_out_bytes),
    ];
    for (what, bytes) in amounts {
        if let Some(bytes) = bytes {
            let _ = writeln!(text, "{what:>12}  {}", format_bytes(*bytes));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balloon_is_described() {
        let mut state =
            BalloonState { memory_mib: 1024, target_mib: 512, actual_mib: 1024, guest: None };
        let text = describe(&state);
        assert!(text.starts_with("It has 1 GiB of 1 GiB, and is to have 512 MiB.\n"), "{text}");
        assert!(text.contains("virtio_balloon"), "{text}");
        state.actual_mib = 512;
        let free_bytes = Some(13 << 20);
        state.guest = Some(GuestMemoryUse { free_bytes, ..GuestMemoryUse::default() });
        let text = describe(&state);
        assert!(text.starts_with("It has 512 MiB of 1 GiB.\n"), "{text}");
        assert!(text.contains("free  13 MiB\n") && !text.contains("swapped"), "{text}");
    }
}
