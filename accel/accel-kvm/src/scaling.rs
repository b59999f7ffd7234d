//! A guest's TSC that runs at another rate than the host's: the host's, multiplied, plus an offset.

/// The rates, in kHz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scaling {
    /// The guest's.
    pub guest_khz: u32,
    /// The host's, as KVM knows it.
    pub host_khz: u32,
}

impl Scaling {
    /// Ticks of the guest's TSC in so many of the host's.
    pub fn guest_ticks(self, host: u64) -> u64 {
        let ticks = u128::from(host) * u128::from(self.guest_khz);
        (ticks / u128::from(self.host_khz.max(1))) as u64
    }

    /// What the guest's TSC shows more than the host's when the latter shows `host`, if KVM adds `offset`.
    pub fn ahead(self, offset: u64, host: u64) -> u64 {
        self.guest_ticks(host).wrapping_add(offset).wrapping_sub(host)
    }

    /// What KVM has to add so that the guest's TSC shows so much more than the host's then.
    pub fn offset(self, ahead: u64, host: u64) -> u64 {
        host.wrapping_add(ahead).wrapping_sub(self.guest_ticks(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_has_its_own_rate_and_time() {
        let half = Scaling { guest_khz: 1_000_000, host_khz: 2_000_000 };
        assert_eq!(half.guest_ticks(1 << 60), 1 << 59);
        assert_eq!(half.guest_ticks(u64::MAX), u64::MAX / 2);
        // It is at 700 when the host's is at 1000.
        let offset = half.offset(700u64.wrapping_sub(1000), 1000);
        assert_eq!(half.guest_ticks(1000).wrapping_add(offset), 700);
        assert_eq!(half.guest_ticks(3000).wrapping_add(offset), 1700);
        assert_eq!(half.ahead(offset, 1000), 700u64.wrapping_sub(1000));
        assert_eq!(half.ahead(offset, 3000), 1700u64.wrapping_sub(3000));
        // On a host that has run for longer or shorter than the guest.
        for (ahead, host) in [(u64::MAX / 3, 1 << 50), (5, 0), (0, u64::MAX)] {
            assert_eq!(half.ahead(half.offset(ahead, host), host), ahead);
        }
    }
}
