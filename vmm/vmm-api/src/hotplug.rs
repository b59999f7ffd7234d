//! Devices that come and go while the guest runs.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{BlockConfig, ConfigError, Failure, NetConfig, VmConfig, parse_mac};

/// The slots (device numbers on PCI bus 0) whose devices can come and go while the guest runs. All others are
/// for what it is started with.
pub const HOT_SLOTS: RangeInclusive<u8> = 24..=31;

/// How many disks, cards and folders there are at most besides those in such slots: device 0 is the host bridge,
/// and five more may be console, entropy, sockets, cloud-init's disk and balloon.
pub const MAX_FIXED: usize = 23 - 5;

/// The protocol that `GET /v1/attach` switches to. The VMM sends an empty line, the client an
/// [`AttachRequest`] as a line of JSON, whose first bytes carry the descriptors (`SCM_RIGHTS`, unix(7)), and
/// the VMM an [`AttachAnswer`] as a line.
pub const ATTACH_PROTOCOL: &str = "lodge-attach";

/// A device of a kind that can come and go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// A disk.
    Disk(BlockConfig),
    /// A network card.
    Net(NetConfig),
}

/// What a client of `GET /v1/attach` wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// The device. Without a slot, it is put into one that is free.
    pub device: Device,
    /// What the descriptors that come with this are open for, in their order: the disk's image and the images
    /// that it stands on, or the card's tap. A VMM that has confined itself cannot open them.
    #[serde(default)]
    pub descriptors: Vec<PathBuf>,
}

/// What has become of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachAnswer {
    /// The guest has been told of the device: this one, with its slot and all that was chosen for it.
    Attached(Device),
    /// The guest is as before.
    Refused(Failure),
}

/// The body of `POST /v1/detach`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetachRequest {
    /// Which device: see [`Device::is_called`].
    pub id: String,
    /// Take it away if the guest has not let go of it in time.
    #[serde(default)]
    pub force: bool,
    /// For how many seconds to wait until the guest lets go of it.
    #[serde(default = "patience")]
    pub timeout_s: u32,
}

fn patience() -> u32 {
    30
}

impl Device {
    /// The slot that it is in or is to be in.
    #[must_use]
    pub fn slot(&self) -> Option<u8> {
        match self {
            Device::Disk(disk) => disk.slot,
            Device::Net(card) => card.slot,
        }
    }

    /// Says which slot it is to be in.
    pub fn set_slot(&mut self, slot: u8) {
        match self {
            Device::Disk(disk) => disk.slot = Some(slot),
            Device::Net(card) => card.slot = Some(slot),
        }
    }

    /// What it is called, if it can be detached: `disk-24`, `net-25`.
    #[must_use]
    pub fn id(&self) -> Option<String> {
        let kind = match self {
            Device::Disk(_) => "disk",
            Device::Net(_) => "net",
        };
        self.slot().map(|slot| format!("{kind}-{slot}"))
    }

    /// Whether people may mean it by this: by its id, a disk also by its serial number or its image, a card by
    /// its address.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        let other = match self {
            Device::Disk(disk) => {
                disk.serial.as_deref() == Some(name) || disk.path == Path::new(name)
            }
            Device::Net(card) => {
                let mac = card.mac.as_deref().and_then(|mac| parse_mac(mac).ok());
                mac.is_some() && mac == parse_mac(name).ok()
            }
        };
        other || self.id().as_deref() == Some(name)
    }
}

impl VmConfig {
    /// The disks and then the cards.
    pub fn devices(&self) -> impl Iterator<Item = Device> {
        let disks = self.disks.iter().cloned().map(Device::Disk);
        disks.chain(self.nets.iter().cloned().map(Device::Net))
    }

    /// A slot that is free: the first one behind `last`, so that a device does not soon get the place of
    /// another that a guest may still let go of.
    #[must_use]
    pub fn free_slot(&self, last: Option<u8>) -> Option<u8> {
        let taken: HashSet<u8> = self.devices().filter_map(|device| device.slot()).collect();
        let is_behind = |slot: &u8| last.is_none_or(|last| *slot > last);
        let behind = HOT_SLOTS.filter(is_behind);
        behind.chain(HOT_SLOTS).find(|slot| !taken.contains(slot))
    }
}

/// Which number a card has, for its default address and its network: that of its slot, or its place among
/// the cards. It stays the same while others come and go.
#[must_use]
pub fn card_number(index: usize, card: &NetConfig) -> usize {
    card.slot.map_or(index, usize::from)
}

pub(crate) fn validate_slots(config: &VmConfig) -> Result<(), ConfigError> {
    let fixed = config.devices().filter(|it| it.slot().is_none()).count() + config.folders.len();
    if fixed > MAX_FIXED {
        return Err(ConfigError::TooManyFixed(fixed));
    }
    let mut taken = HashSet::new();
    match config.devices().filter_map(|it| it.slot()).find(|slot| !HOT_SLOTS.contains(slot)) {
        Some(slot) => Err(ConfigError::Slot(slot)),
        None => match config.devices().filter_map(|it| it.slot()).find(|it| !taken.insert(*it)) {
            Some(slot) => Err(ConfigError::SameSlot(slot)),
            None => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(slot: Option<u8>) -> BlockConfig {
        BlockConfig { path: "/d".into(), serial: Some("S".into()), slot, ..BlockConfig::default() }
    }

    fn config(disks: Vec<BlockConfig>, nets: Vec<NetConfig>) -> VmConfig {
        let text = r#"{"name":"a","cpus":1,"memory_mib":64,"boot":{"kernel":"/k"}}"#;
        VmConfig { disks, nets, ..serde_json::from_str(text).unwrap() }
    }

    #[test]
    fn slots_are_few_and_are_taken_once() {
        let card = |slot| NetConfig { slot, ..NetConfig::default() };
        let apart = BlockConfig { path: "/e".into(), ..disk(Some(25)) };
        let good = config(vec![disk(None), apart], vec![card(None), card(Some(24))]);
        assert_eq!(good.validate(), Ok(()));
        for bad in [0, 1, 23, 32, 255] {
            let wrong = config(vec![], vec![card(Some(bad))]);
            assert_eq!(wrong.validate(), Err(ConfigError::Slot(bad)));
        }
        let same = config(vec![disk(Some(24))], vec![card(Some(24))]);
        assert_eq!(same.validate(), Err(ConfigError::SameSlot(24)));

        assert_eq!(good.free_slot(None), Some(26));
        assert_eq!(good.free_slot(Some(28)), Some(29));
        assert_eq!(good.free_slot(Some(31)), Some(26));
        let full = config(vec![], HOT_SLOTS.map(|slot| card(Some(slot))).collect());
        assert_eq!(full.free_slot(None), None);
    }

    #[test]
    fn devices_have_names() {
        let device = Device::Disk(disk(Some(24)));
        for name in ["disk-24", "S", "/d"] {
            assert!(device.is_called(name), "{name}");
        }
        for other in ["", "disk-25", "net-24", "/", "24"] {
            assert!(!device.is_called(other), "{other}");
        }
        let mut card = NetConfig { mac: Some("52:54:00:aa:00:01".into()), ..NetConfig::default() };
        assert!(Device::Net(card.clone()).is_called("52:54:00:AA:00:01"));
        assert_eq!(Device::Net(card.clone()).id(), None);
        card.mac = None;
        assert!(!Device::Net(card.clone()).is_called("nonsense"));
        card.slot = Some(31);
        assert_eq!(card_number(3, &card), 31);
        assert!(Device::Net(card).is_called("net-31"));
    }

    #[test]
    fn requests_are_read() {
        let text = r#"{"device":{"disk":{"path":"/d"}},"descriptors":["/d"]}"#;
        let request: AttachRequest = serde_json::from_str(text).unwrap();
        assert_eq!(request.descriptors, [PathBuf::from("/d")]);
        assert!(serde_json::from_str::<AttachRequest>(r#"{"device":{"disk":{}}}"#).is_err());
        let detach: DetachRequest = serde_json::from_str(r#"{"id":"disk-24"}"#).unwrap();
        assert_eq!((detach.force, detach.timeout_s), (false, 30));
    }
}
