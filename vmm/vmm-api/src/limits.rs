//! What a guest may take of the host.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The most processors of a host that one can be named of: as many as Linux can be built for.
pub const MAX_HOST_CPUS: u32 = 8192;

/// What a guest may take of the host at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// So much of the host's processors in all: the guest's own and its devices' work. `None`: all.
    pub cpu: Option<CpuShare>,
    /// So much of the host's memory, in MiB: the guest's own and its VMM's. `None`: no limit.
    pub memory_mib: Option<u64>,
    /// For each processor of the guest, the processors of the host that it may run on. Where the list is
    /// empty or ends before, it may run on all.
    pub affinity: Vec<Vec<u32>>,
}

/// A number of processors, to the thousandth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuShare {
    thousandths: u32,
}

impl CpuShare {
    /// One in a hundred of a processor: less is no use.
    pub const MIN: Self = Self { thousandths: 10 };
    /// More than any host has.
    pub const MAX: Self = Self { thousandths: MAX_HOST_CPUS * 1000 };

    /// In thousandths of a processor.
    #[must_use]
    pub fn thousandths(self) -> u32 {
        self.thousandths
    }

    /// This many processors, rounded to the thousandth; `None` if that is out of range.
    #[must_use]
    pub fn new(cpus: f64) -> Option<Self> {
        let thousandths = (cpus * 1000.0).round();
        // Casts saturate, so that they are in range before.
        let in_range = (f64::from(Self::MIN.thousandths)..=f64::from(Self::MAX.thousandths))
            .contains(&thousandths);
        in_range.then_some(Self { thousandths: thousandths as u32 })
    }
}

impl fmt::Display for CpuShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (f64::from(self.thousandths) / 1000.0).fmt(f)
    }
}

impl FromStr for CpuShare {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().and_then(Self::new);
        number.ok_or_else(|| "write a number of processors from 0.01 on, as in 1.5".to_owned())
    }
}

impl Serialize for CpuShare {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.thousandths) / 1000.0)
    }
}

impl<'de> Deserialize<'de> for CpuShare {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = f64::deserialize(deserializer)?;
        let bad = || format!("{number} is no number of processors: 0.01 and more are");
        Self::new(number).ok_or_else(|| serde::de::Error::custom(bad()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_and_written() {
        for (text, thousandths) in [("1.5", 1500), ("2", 2000), ("0.01", 10), ("0.3333", 333)] {
            let share: CpuShare = text.parse().unwrap();
            assert_eq!(share.thousandths(), thousandths);
            assert_eq!(share.to_string().parse(), Ok(share));
            let json = serde_json::to_string(&share).unwrap();
            assert_eq!(serde_json::from_str::<CpuShare>(&json).unwrap(), share);
        }
        assert_eq!(serde_json::from_str::<CpuShare>("2").unwrap().thousandths(), 2000);
        for bad in ["", "0", "-1", "0.004", "NaN", "inf", "1e9", "one"] {
            assert!(bad.parse::<CpuShare>().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<CpuShare>("-2").is_err());
    }
}
