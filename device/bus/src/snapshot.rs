//! What of a device is kept when its machine is saved, and how another device takes it over.

use std::sync::{Mutex, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A device whose state can be saved.
///
/// Its machine stands still: no processor runs, guest time does not pass, no work is in flight.
///
/// The state is a plain structure of what changes while a guest runs, the fields under "volatile
/// state" in a device's model. What the machine's configuration says, and what is wired to the
/// device, is not part of it: it is restored into a device that was made from the same
/// configuration. It may have been read from anywhere, so that [`restore`](Self::restore) bounds
/// and checks whatever the model relies on.
pub trait Snapshot {
    /// What is saved.
    type State: Serialize + DeserializeOwned;

    /// Counts the forms that [`State`](Self::State) has had, from 1. A field that is added with
    /// `#[serde(default)]` is no new form.
    const VERSION: u32 = 1;

    /// The state now.
    fn save(&self) -> Self::State;

    /// Takes over a state. The device drives its interrupt lines as the state demands, and sets its
    /// timers; what edges it causes on lines is of no account.
    ///
    /// # Errors
    ///
    /// If no such device can have this state. The device is good for nothing then.
    fn restore(&mut self, state: Self::State) -> Result<(), BadState>;
}

/// A state that a device cannot take over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadState(String);

impl BadState {
    /// `what` is wrong.
    pub fn new(what: impl std::fmt::Display) -> Self {
        Self(what.to_string())
    }
}

/// A [`Snapshot`] device behind its lock, whatever its type. States are JSON.
pub trait Saved: Send + Sync {
    /// [`Snapshot::VERSION`].
    fn version(&self) -> u32;

    /// [`Snapshot::save`].
    ///
    /// # Errors
    ///
    /// If the state has no form as JSON: a mistake in the device.
    fn save(&self) -> Result<Vec<u8>, BadState>;

    /// [`Snapshot::restore`].
    ///
    /// # Errors
    ///
    /// If these bytes are no state, or none that the device can have.
    fn restore(&self, state: &[u8]) -> Result<(), BadState>;
}

impl<T: Snapshot + Send> Saved for Mutex<T> {
    fn version(&self) -> u32 {
        T::VERSION
    }

    fn save(&self) -> Result<Vec<u8>, BadState> {
        let state = self.lock().unwrap_or_else(PoisonError::into_inner).save();
        serde_json::to_vec(&state).map_err(BadState::new)
    }

    fn restore(&self, state: &[u8]) -> Result<(), BadState> {
        let state = serde_json::from_slice(state).map_err(BadState::new)?;
        self.lock().unwrap_or_else(PoisonError::into_inner).restore(state)
    }
}

/// Bytes that are written as hexadecimal digits: registers that are more than a few.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hex(pub Vec<u8>);

impl Hex {
    /// The bytes, if there are as many as are wanted.
    ///
    /// # Errors
    ///
    /// If not. `what` says whose bytes they are.
    pub fn exactly<const N: usize>(&self, what: &str) -> Result<[u8; N], BadState> {
        let wrong = |_| BadState::new(format!("{what} has {} bytes, not {N}", self.0.len()));
        self.0.as_slice().try_into().map_err(wrong)
    }
}

impl Serialize for Hex {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digit = |n: u8| char::from_digit(n.into(), 16).unwrap_or('0');
        let text: String = self.0.iter().flat_map(|&b| [digit(b >> 4), digit(b & 15)]).collect();
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digit = |b: u8| char::from(b).to_digit(16).map(|n| n as u8);
        let pair = |pair: &[u8]| match pair {
            [a, b] => Some(digit(*a)? << 4 | digit(*b)?),
            _ => None,
        };
        let bytes: Option<_> = text.as_bytes().chunks(2).map(pair).collect();
        bytes.map(Hex).ok_or_else(|| serde::de::Error::custom("these are no hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_are_bytes() {
        let hex = Hex(vec![0, 0x7f, 0xa5]);
        assert_eq!(serde_json::to_string(&hex).unwrap(), "\"007fa5\"");
        assert_eq!(serde_json::from_str::<Hex>("\"007Fa5\"").unwrap(), hex);
        assert_eq!(hex.exactly::<3>("it").unwrap(), [0, 0x7f, 0xa5]);
        assert!(hex.exactly::<4>("it").is_err());
        for bad in ["\"0\"", "\"0g\"", "\"é\"", "7"] {
            assert!(serde_json::from_str::<Hex>(bad).is_err());
        }
    }
}
