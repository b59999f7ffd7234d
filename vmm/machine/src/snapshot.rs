//! A machine's devices as sections of a saved state, and back.

use std::sync::Arc;

use bus::Saved;
use pci::PciRoot;
use state::{Section, Sections};
use vmm_api::Failure;

/// The devices whose state is saved, by the names of their sections.
#[derive(Default)]
pub struct SavedDevices(Vec<(String, Arc<dyn Saved>)>);

/// What the sections of all devices begin with.
const PREFIX: &str = "device/";

impl SavedDevices {
    /// Adds a device. Names differ, and stay the same from version to version.
    pub fn add(&mut self, name: &str, device: Arc<dyn Saved>) {
        self.0.push((format!("{PREFIX}{name}"), device));
    }

    /// These, and those that are on the bus now.
    pub fn with_bus(&self, pci: &Arc<PciRoot>) -> Self {
        let mut all = Self(self.0.clone());
        for (number, function) in pci.saved() {
            all.add(&format!("pci/{number:02}"), function);
        }
        all
    }

    /// Adds a section for each device, all of which stand still.
    pub fn save(&self, state: &mut Sections) -> Result<(), Failure> {
        for (name, device) in &self.0 {
            let saved = device.save().map_err(|e| Failure::internal(format!("{name}: {e}")))?;
            state.add(name, device.version(), saved).map_err(Failure::internal)?;
        }
        Ok(())
    }

    /// Has each device take over its section. None may be missing, and none be left.
    pub fn restore(&self, state: &Sections) -> Result<(), Failure> {
        let is_ours = |name: &str| self.0.iter().any(|(its, _)| its == name);
        if let Some((name, _)) =
            state.iter().find(|(name, _)| name.starts_with(PREFIX) && !is_ours(name))
        {
            return Err(Failure::artifact(format!(
                "the snapshot holds {name:?}, which this machine does not have: it was made with \
                 other devices, or by another version of Lodge"
            )));
        }
        for (name, device) in &self.0 {
            let Section { version, payload, offset } = state.get(name).ok_or_else(|| {
                Failure::artifact(format!(
                    "the snapshot lacks {name:?}: it was made with other devices, or by another \
                     version of Lodge"
                ))
            })?;
            if *version != device.version() {
                return Err(Failure::artifact(format!(
                    "the snapshot holds {name:?} in version {version}, and this Lodge knows {}: \
                     restore it with the version of Lodge that made it",
                    device.version()
                )));
            }
            device.restore(payload).map_err(|why| {
                Failure::artifact(format!(
                    "the snapshot's section {name:?}, at byte {offset} of its state file, cannot be \
                     used: {why}"
                ))
            })?;
        }
        Ok(())
    }
}
