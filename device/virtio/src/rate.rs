//! Limits of how much passes in a time: token buckets.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How much may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So much in a second, in the long run; 0 is taken as 1. Bytes, or requests.
    pub per_second: u64,
    /// So much at once after a rest.
    pub burst: u64,
}

/// A limit that is shared by all that it concerns.
///
/// It is a token bucket, kept as the time at which the bucket would be full again: nothing needs to be
/// filled. What passes may be larger than what is left, and all that comes later waits for it: so
/// whatever the burst is, nothing waits for ever, and the rate holds in the long run.
#[derive(Debug)]
pub struct Limit {
    rate: Rate,
    full_at: Mutex<Instant>,
}

impl Limit {
    /// A limit that has rested.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { rate, full_at: Mutex::new(Instant::now()) }
    }

    /// Whether something may pass at the time `now`; if not, how long it has to wait.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let missing = self.full_at().saturating_duration_since(now);
        let wait = missing.checked_sub(self.time(self.rate.burst))?;
        (!wait.is_zero()).then_some(wait)
    }

    /// So much has passed.
    pub fn spend(&self, amount: u64, now: Instant) {
        let mut full_at = self.full_at();
        let from = (*full_at).max(now);
        // Beyond what time can tell, it is never.
        *full_at = from.checked_add(self.time(amount)).unwrap_or(from);
    }

    /// How long so much takes at this rate.
    fn time(&self, amount: u64) -> Duration {
        let nanos = u128::from(amount) * 1_000_000_000 / u128::from(self.rate.per_second.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn full_at(&self) -> MutexGuard<'_, Instant> {
        self.full_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_passes_at_once_and_the_rest_at_the_rate() {
        let limit = Limit::new(Rate { per_second: 1000, burst: 100 });
        let now = Instant::now();
        limit.spend(100, now);
        assert_eq!(limit.wait(now), None);
        limit.spend(50, now);
        assert_eq!(limit.wait(now), Some(Duration::from_millis(50)));
        assert_eq!(limit.wait(now + Duration::from_millis(49)), Some(Duration::from_millis(1)));
        assert_eq!(limit.wait(now + Duration::from_millis(50)), None);
        // A long rest gives no more than a burst.
        let later = now + Duration::from_secs(60);
        limit.spend(101, later);
        assert_eq!(limit.wait(later), Some(Duration::from_millis(1)));
    }

    #[test]
    fn what_is_larger_than_the_burst_passes() {
        let limit = Limit::new(Rate { per_second: 10, burst: 0 });
        let now = Instant::now();
        assert_eq!(limit.wait(now), None);
        limit.spend(5, now);
        assert_eq!(limit.wait(now), Some(Duration::from_millis(500)));
    }

    #[test]
    fn absurd_numbers_do_no_harm() {
        for rate in [Rate { per_second: 0, burst: u64::MAX }, Rate { per_second: 1, burst: 0 }] {
            let limit = Limit::new(rate);
            let now = Instant::now();
            limit.spend(u64::MAX, now);
            limit.spend(u64::MAX, now);
            limit.wait(now);
        }
    }

    proptest! {
        /// Whoever waits as told gets what the rate and the burst allow, and no more.
        #[test]
        fn the_rate_holds(
            per_second in 1_u64..1_000_000,
            burst in 0_u64..1_000_000,
            amounts in proptest::collection::vec(0_u64..100_000, 1..100),
        ) {
            let limit = Limit::new(Rate { per_second, burst });
            let start = Instant::now() + Duration::from_secs(1);
            let mut now = start;
            let mut passed = 0_u64;
            for &amount in &amounts {
                if let Some(wait) = limit.wait(now) {
                    now += wait;
                }
                prop_assert_eq!(limit.wait(now), None);
                let allowed = (now - start).as_secs_f64() * per_second as f64 + burst as f64;
                prop_assert!(passed as f64 <= allowed * 1.000_001 + 1.0);
                limit.spend(amount, now);
                passed += amount;
            }
        }
    }
}
