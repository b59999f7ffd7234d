//! How fast data may pass through disks and cards.

use serde::{Deserialize, Serialize};

use crate::ConfigError;

/// How much may pass: bytes, or requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// So much in a second, in the long run; at least 1.
    pub per_second: u64,
    /// So much at once after a rest. By default what passes in a tenth of a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

/// What a guest may ask of a disk, by reading and writing together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskLimits {
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Rate>,
    /// Requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<Rate>,
}

/// What may pass through a network card: bytes of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetLimits {
    /// To the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive: Option<Rate>,
    /// From the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send: Option<Rate>,
}

impl DiskLimits {
    /// Whether there are none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        validate([self.bandwidth, self.requests])
    }
}

impl NetLimits {
    /// Whether there are none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        validate([self.receive, self.send])
    }
}

fn validate(rates: [Option<Rate>; 2]) -> Result<(), ConfigError> {
    let stops_all = |rate: &Rate| rate.per_second == 0;
    if rates.iter().flatten().any(stops_all) { Err(ConfigError::RateZero) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_lets_something_pass() {
        let limits = |per_second| NetLimits {
            send: Some(Rate { per_second, burst: None }),
            ..NetLimits::default()
        };
        assert_eq!(NetLimits::default().validate(), Ok(()));
        assert_eq!(limits(1).validate(), Ok(()));
        assert_eq!(limits(0).validate(), Err(ConfigError::RateZero));
    }
}
