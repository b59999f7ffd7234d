//! The rate of a guest's TSC, by which it keeps time, on a host where it is another.

use vmm_api::Failure;

/// Rates that differ by less, in millionths, are the same: they were measured. KVM takes them for the
/// same as well.
const SAME: u64 = 250;
/// A clock that is wrong by more is no clock. Of this much, NTP corrects a half.
const TOLERATED: u64 = 1000;

/// What a guest gets whose TSC had another rate.
#[derive(Debug, PartialEq, Eq)]
pub enum Rate {
    /// The host's, which is as good as its own.
    Same,
    /// Its own, in kHz.
    Scaled(u32),
    /// The host's, which differs by so many millionths.
    Tolerated(u64),
}

impl Rate {
    /// For a guest's rate and the host's, in Hz. `scales`: the accelerator can have them differ.
    pub fn of(guest: u64, host: u64, scales: bool) -> Result<Self, Failure> {
        let apart = u128::from(guest.abs_diff(host)) * 1_000_000 / u128::from(host.max(1));
        let apart = u64::try_from(apart).unwrap_or(u64::MAX);
        if apart <= SAME {
            return Ok(Self::Same);
        }
        if let (true, Ok(khz @ 1..)) = (scales, u32::try_from(guest / 1000)) {
            return Ok(Self::Scaled(khz));
        }
        if apart <= TOLERATED {
            return Ok(Self::Tolerated(apart));
        }
        Err(Failure::configuration(format!(
            "the processor's time stamp counter ran at {} kHz when the snapshot was made, and runs at \
             {} kHz here: the guest's clocks would be wrong, and nothing here scales it; restore it on \
             a host with the same processor, or under a KVM that scales TSCs",
            guest / 1000,
            host / 1000
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_right_or_it_is_said() {
        let host = 2_000_000_000;
        let of = |ppm: u64, scales| Rate::of(host + host / 1_000_000 * ppm, host, scales);
        for scales in [false, true] {
            assert_eq!(of(0, scales).unwrap(), Rate::Same);
            assert_eq!(of(250, scales).unwrap(), Rate::Same);
        }
        assert_eq!(of(251, false).unwrap(), Rate::Tolerated(251));
        assert_eq!(of(1000, false).unwrap(), Rate::Tolerated(1000));
        let refusal = of(1001, false).unwrap_err().to_string();
        assert!(refusal.contains("2002002 kHz") && refusal.contains("2000000 kHz"), "{refusal}");
        assert_eq!(of(251, true).unwrap(), Rate::Scaled(2_000_502));
        assert_eq!(Rate::of(host / 2, host, true).unwrap(), Rate::Scaled(1_000_000));
        // What a file may say.
        assert!(Rate::of(0, host, true).is_err() && Rate::of(u64::MAX, host, true).is_err());
    }
}
