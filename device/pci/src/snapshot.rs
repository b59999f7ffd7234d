//! What of the bus is saved: each function by itself, and the address register.

use std::sync::{Arc, Mutex, PoisonError};

use bus::{BadState, Hex, Saved, Snapshot};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::PciRoot;
use crate::access::ConfigPorts;
use crate::config::ConfigSpace;
use crate::function::Function;
use crate::msix::Msix;
use crate::spec::{CONFIG_SIZE, msix::ENTRY};

/// The state of one function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FunctionState {
    /// Configuration space, without the zeroes at its end.
    config: Hex,
    /// `None`: the function has no interrupts.
    interrupts: Option<InterruptsState>,
    /// What the device itself says.
    device: Value,
}

/// The state of a function's interrupts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InterruptsState {
    /// The MSI-X table.
    pub table: Hex,
    /// A bit for each vector that waits.
    pub pending: Vec<u64>,
    /// The device asserts its pin.
    pub intx: bool,
}

/// A function, to be saved and restored.
struct SavedFunction {
    root: Arc<PciRoot>,
    function: Arc<Mutex<Function>>,
}

impl PciRoot {
    /// The functions by their device numbers, to be saved and restored. The bus is
    /// [paused](PciRoot::pause).
    pub fn saved(self: &Arc<Self>) -> Vec<(u8, Arc<dyn Saved>)> {
        let functions = self.functions();
        let saved = |(number, function)| {
            let root = self.clone();
            (number, Arc::new(SavedFunction { root, function }) as Arc<dyn Saved>)
        };
        functions.into_iter().map(saved).collect()
    }
}

impl Saved for SavedFunction {
    fn version(&self) -> u32 {
        1
    }

    fn save(&self) -> Result<Vec<u8>, BadState> {
        let function = self.function.lock().unwrap_or_else(PoisonError::into_inner);
        let state = FunctionState {
            config: Hex(function.config().trimmed().to_vec()),
            interrupts: function.interrupts().map(|interrupts| interrupts.save()),
            device: function.device().save()?,
        };
        serde_json::to_vec(&state).map_err(BadState::new)
    }

    fn restore(&self, state: &[u8]) -> Result<(), BadState> {
        let state: FunctionState = serde_json::from_slice(state).map_err(BadState::new)?;
        Function::change(&self.function, self.root.decoder(), |function| {
            function.config_mut().take_over(&state.config.0)?;
            let control = function.config().msix_control().unwrap_or((false, false));
            match (function.interrupts(), &state.interrupts) {
                (Some(interrupts), Some(state)) => interrupts.restore(state, control)?,
                (None, None) => {}
                _ => return Err(BadState::new("the device's interrupts are of another kind")),
            }
            function.device_mut().restore(state.device)
        })
    }
}

impl ConfigSpace {
    /// Its bytes without the zeroes at the end.
    fn trimmed(&self) -> &[u8] {
        let end = self.bytes().iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        &self.bytes()[..end]
    }

    /// Takes over what a guest can have written. The rest says which device it is, and must be the
    /// same.
    fn take_over(&mut self, trimmed: &[u8]) -> Result<(), BadState> {
        let mut bytes = Box::new([0; CONFIG_SIZE]);
        let room = bytes.get_mut(..trimmed.len());
        room.ok_or_else(|| BadState::new("configuration space is too long"))?
            .copy_from_slice(trimmed);
        if !self.is_same_device(&bytes) {
            return Err(BadState::new("it is of another device"));
        }
        self.write(0, &bytes[..]);
        Ok(())
    }
}

impl Msix {
    fn save(&self) -> (Hex, Vec<u64>) {
        (Hex(self.table().to_vec()), self.pending().to_vec())
    }
}

/// For [`Interrupts`](crate::Interrupts), under its lock.
pub(crate) fn save_msix(msix: &Msix, intx: bool) -> InterruptsState {
    let (table, pending) = msix.save();
    InterruptsState { table, pending, intx }
}

/// For [`Interrupts`](crate::Interrupts), under its lock: a table and pending bits for a device that
/// sends nothing now.
pub(crate) fn restore_msix(
    msix: &mut Msix,
    state: &InterruptsState,
    (enabled, function_mask): (bool, bool),
) -> Result<(), BadState> {
    let mut other = Msix::new(msix.vectors());
    if state.table.0.len() != usize::from(msix.vectors()) * ENTRY
        || state.pending.len() != other.pending().len()
    {
        return Err(BadState::new("the device has another number of interrupt vectors"));
    }
    // Nothing is pending yet, so that nothing is sent.
    let _ = other.table_write(0, &state.table.0);
    let _ = other.set_control(enabled, function_mask);
    other.set_pending(&state.pending);
    *msix = other;
    Ok(())
}

impl Snapshot for ConfigPorts {
    /// The address register.
    type State = u32;

    fn save(&self) -> u32 {
        self.address
    }

    fn restore(&mut self, address: u32) -> Result<(), BadState> {
        self.address = address;
        Ok(())
    }
}
