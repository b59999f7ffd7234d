//! Disks and cards that come and go while the machine runs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};

use block::{GivenFile, Switch};
use net::Backend;
use pci::PciDevice;
use vmm_api::{BlockConfig, Failure, NetConfig};

use crate::counters::Counters;
use crate::slots::Slots;
use crate::wiring::network;
use crate::wiring::storage::{self, AttachedDisk};
use crate::{BuildError, Machine};

/// A machine's disks and cards, in the order of its configuration.
pub struct Plugged {
    /// The disks.
    pub disks: Vec<AttachedDisk>,
    /// What disks and cards count.
    pub counters: Counters,
}

/// A device that is off the bus. Its work ends when this is dropped.
pub struct Removed {
    /// The slot that it was in.
    pub slot: u8,
    _device: pci::Unplugged,
}

/// A device that is in no slot was meant to be put into one: a mistake here.
fn no_slot() -> Failure {
    Failure::internal("a device has no slot to be put into")
}

impl AttachedDisk {
    /// A disk whose files somebody else has opened: the image, and what it stands on, by their names.
    ///
    /// # Errors
    ///
    /// It is in use, damaged, or made of other files.
    pub fn given(
        config: &BlockConfig,
        files: impl IntoIterator<Item = (PathBuf, OwnedFd)>,
    ) -> Result<Self, Failure> {
        let given = |(path, fd): (PathBuf, OwnedFd)| GivenFile { path, file: fd.into() };
        let files = files.into_iter().map(given).collect();
        let image = block::open_given(&storage::image(config), files).map_err(BuildError::from)?;
        let disk = Arc::new(Switch::new(image));
        Ok(Self { path: config.path.clone(), disk, config: config.clone() })
    }
}

impl Machine {
    /// Whether the guest notices devices that come and go. It does once its kernel has read the ACPI tables.
    pub fn listens_for_devices(&self) -> bool {
        self.pm.lock().unwrap_or_else(PoisonError::into_inner).listens_to_gpes()
    }

    /// Gives the guest a disk, as the last of its disks.
    ///
    /// # Errors
    ///
    /// The host's, or the slot is taken.
    pub fn attach_disk(&self, disk: AttachedDisk) -> Result<(), Failure> {
        let (device, counters) = storage::device(&disk, self.cpus, &self.full, &self.memory)?;
        self.put_in(disk.config.slot, Box::new(device))?;
        let mut plugged = self.plugged();
        plugged.disks.push(disk);
        plugged.counters.disks.push(counters);
        Ok(())
    }

    /// Gives the guest of this name a card, as the last of its cards, whose number is `index`. `tap`: what it
    /// leads to, if it is on a network of the host.
    ///
    /// # Errors
    ///
    /// The host's, or the slot is taken.
    pub fn attach_card(
        &self,
        guest: &str,
        (index, card): (usize, &NetConfig),
        tap: Option<Arc<dyn Backend>>,
    ) -> Result<(), Failure> {
        let (device, counters) = network::device(guest, (index, card), tap, &self.memory)?;
        self.put_in(card.slot, Box::new(device))?;
        self.plugged().counters.nets.push(counters);
        Ok(())
    }

    fn put_in(&self, slot: Option<u8>, device: Box<dyn PciDevice>) -> Result<(), Failure> {
        let slot = slot.ok_or_else(no_slot)?;
        self.pci.add(Some(slot), device).map_err(BuildError::from)?;
        self.slots().announce(slot);
        Ok(())
    }

    /// Asks the guest to let go of what is in a slot. Once it has, [`Machine::removed`] is readable.
    pub fn ask_to_release(&self, slot: u8) {
        self.slots().ask_to_release(slot);
    }

    /// Takes away what is in a slot, as if somebody had pulled it out.
    pub fn take_away(&self, slot: u8) {
        self.slots().take_away(slot);
    }

    /// Readable when [`Machine::take_removed`] has something.
    pub fn removed(&self) -> BorrowedFd<'_> {
        self.ejected.as_fd()
    }

    /// Whether [`Machine::take_removed`] has something.
    pub fn has_removed(&self) -> bool {
        !self.ejected.is_empty()
    }

    /// The devices that the guest has let go of, or that were taken away.
    pub fn take_removed(&self) -> Vec<Removed> {
        let removed = |(slot, device)| Removed { slot, _device: device };
        self.ejected.take().into_iter().map(removed).collect()
    }

    /// Closes a disk, by its place among them, whose device is gone.
    ///
    /// # Errors
    ///
    /// The host does not take the last data.
    pub fn close_disk(&self, index: usize) -> Result<(), Failure> {
        let disk = {
            let mut plugged = self.plugged();
            if index < plugged.counters.disks.len() {
                plugged.counters.disks.remove(index);
            }
            if index >= plugged.disks.len() {
                return Ok(());
            }
            plugged.disks.remove(index)
        };
        disk.flush()
    }

    /// Forgets a card, by its place among them, whose device is gone.
    pub fn close_card(&self, index: usize) {
        let nets = &mut self.plugged().counters.nets;
        if index < nets.len() {
            nets.remove(index);
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
