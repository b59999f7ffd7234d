//! The generation ID, by which a guest notices that it goes on from a copy of itself: what it drew at
//! random before is then no secret any more (Microsoft, "Virtual Machine Generation ID").

use std::sync::{Arc, Mutex, PoisonError};

use chipset::PowerManagement;
use mem::GuestMemory;
use mem::vm_memory::{Bytes, GuestAddress};

use crate::BuildError;

/// The general-purpose event that tells the guest to look. The DSDT says the same.
pub const EVENT: u32 = 0;

/// Writes a new ID to where the DSDT says it is.
pub fn renew(memory: &GuestMemory, address: u64) -> Result<(), BuildError> {
    let mut id = [0; 16];
    let mut filled = 0;
    while filled < id.len() {
        let rest = &mut id[filled..];
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| BuildError::Random(e.into()))?;
    }
    memory.write_slice(&id, GuestAddress(address))?;
    Ok(())
}

/// Tells the guest that the ID has changed.
pub fn announce(pm: &Arc<Mutex<PowerManagement>>) {
    pm.lock().unwrap_or_else(PoisonError::into_inner).raise_gpe(EVENT);
}
