//! What a guest is made of at its next start: the file that people may edit, and that keeps its form.

use std::fs::{self, File};
use std::path::PathBuf;

use toml_edit::{ArrayOfTables, DocumentMut, InlineTable, Item, Table};
use vmm_api::{Device, Failure};

use crate::failure;
use crate::guests::{self, DEFINITION, Record};
use crate::run::definition::strip;

/// The definition of a guest that outlives its run.
pub struct Definition {
    directory: PathBuf,
}

/// That of the guest of this name.
///
/// # Errors
///
/// It goes with its run, or there is none.
pub fn of(name: &str) -> Result<Definition, Failure> {
    let directory = guests::existing(name)?;
    let is_kept = Record::read(&directory)?.is_some_and(|record| record.keep);
    if !is_kept || !directory.join(DEFINITION).exists() {
        return Err(Failure::configuration(format!(
            "the guest {name} is gone when it is stopped, and has no next start: leave out --persist"
        )));
    }
    Ok(Definition { directory })
}

impl Definition {
    /// Has the guest be started with this device.
    pub fn add(&self, device: &Device) -> Result<(), Failure> {
        self.change(|document| add(document, device))
    }

    /// Has the guest be started without what is in this device's slot.
    pub fn remove(&self, device: &Device) -> Result<(), Failure> {
        self.change(|document| {
            remove(document, device);
            Ok(())
        })
    }

    /// Two that change it come one after the other.
    fn change(
        &self,
        change: impl FnOnce(&mut DocumentMut) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let lock = File::open(&self.directory).and_then(|directory| {
            directory.lock()?;
            Ok(directory)
        });
        let _lock = lock.map_err(failure::io("lock", &self.directory))?;
        let path = self.directory.join(DEFINITION);
        let text = fs::read_to_string(&path).map_err(failure::io("read", &path))?;
        let mut document: DocumentMut = text.parse().map_err(|error| {
            Failure::configuration(format!("{} cannot be understood: {error}", path.display()))
        })?;
        change(&mut document)?;
        guests::write_whole(&self.directory, DEFINITION, document.to_string().as_bytes())
    }
}

/// The array that a device is in.
fn key(device: &Device) -> &'static str {
    match device {
        Device::Disk(_) => "disks",
        Device::Net(_) => "nets",
    }
}

fn add(document: &mut DocumentMut, device: &Device) -> Result<(), Failure> {
    let mut device = device.clone();
    if let Device::Net(card) = &mut device {
        // Filled in at each start.
        card.lease = None;
    }
    let value = match &device {
        Device::Disk(disk) => serde_json::to_value(disk),
        Device::Net(card) => serde_json::to_value(card),
    };
    let mut value = value.map_err(Failure::internal)?;
    strip(&mut value);
    let text = toml::to_string(&value).map_err(Failure::internal)?;
    let table = text.parse::<DocumentMut>().map_err(Failure::internal)?.as_table().clone();
    let is_empty = |item: &Item| item.as_array().is_some_and(|array| array.is_empty());
    let item = document.entry(key(&device)).or_insert_with(|| match device {
        Device::Disk(_) => Item::ArrayOfTables(ArrayOfTables::new()),
        // Without any, the guest would have one on the user-mode network, which it is to keep.
        Device::Net(_) => Item::ArrayOfTables([Table::new()].into_iter().collect()),
    });
    if is_empty(item) {
        *item = Item::ArrayOfTables(ArrayOfTables::new());
    }
    match item {
        Item::ArrayOfTables(tables) => tables.push(table),
        item => match item.as_array_mut() {
            Some(array) => array.push(table.into_inline_table()),
            None => {
                let key = key(&device);
                return Err(Failure::configuration(format!(
                    "the guest's {DEFINITION} cannot be changed: {key} is no array"
                )));
            }
        },
    }
    Ok(())
}

fn remove(document: &mut DocumentMut, device: &Device) {
    let slot = device.slot().map(i64::from);
    let Some(item) = document.get_mut(key(device)) else { return };
    let in_table = |table: &Table| table.get("slot").and_then(Item::as_integer) == slot;
    let in_inline = |table: &InlineTable| table.get("slot").and_then(|it| it.as_integer()) == slot;
    if let Some(tables) = item.as_array_of_tables_mut() {
        tables.retain(|table| !in_table(table));
        // None is said, since the guest would have a card else.
        if tables.is_empty() {
            *item = toml_edit::value(toml_edit::Array::new());
        }
    } else if let Some(array) = item.as_array_mut() {
        array.retain(|value| !value.as_inline_table().is_some_and(in_inline));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_api::{BlockConfig, DiskLimits, NetConfig, Rate, VmConfig};

    fn disk(slot: u8) -> Device {
        let limit = Some(Rate { per_second: 500, burst: None });
        Device::Disk(BlockConfig {
            path: format!("/d{slot}").into(),
            slot: Some(slot),
            limits: DiskLimits { requests: limit, ..DiskLimits::default() },
            ..BlockConfig::default()
        })
    }

    fn read(document: &DocumentMut) -> VmConfig {
        let text = document.to_string();
        toml::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    const START: &str = "# mine\nname = 'a' # a name\ncpus = 1\nmemory_mib = 64\n";
    const BOOT: &str = "[boot]\nkernel = '/k'\n";

    #[test]
    fn devices_come_and_go_and_all_else_stays() {
        let card = Device::Net(NetConfig { slot: Some(26), ..NetConfig::default() });
        for (disks, nets) in [
            ("", ""),
            ("disks = []\n", "nets = []\n"),
            ("disks = [{ path = '/own' }]\n", "nets = [{}, {}]\n"),
        ] {
            let mut document: DocumentMut = format!("{START}{disks}{nets}{BOOT}").parse().unwrap();
            let before = read(&document);
            for device in [&disk(24), &disk(25), &card] {
                add(&mut document, device).unwrap();
            }
            let with = read(&document);
            let count = before.disks.len();
            assert_eq!(Device::Disk(with.disks[count].clone()), disk(24));
            assert_eq!(Device::Disk(with.disks[count + 1].clone()), disk(25));
            assert_eq!(with.nets.last().unwrap().slot, Some(26));
            // A guest of which nothing is said has one card, and keeps it.
            let nets_before = if nets.is_empty() { 1 } else { before.nets.len() };
            assert_eq!(with.nets.len(), nets_before + 1);
            for device in [&card, &disk(24), &disk(25)] {
                remove(&mut document, device);
            }
            let after = read(&document);
            assert_eq!((after.disks, after.nets.len()), (before.disks, nets_before));
            assert!(document.to_string().starts_with("# mine\nname = 'a' # a name\n"));
        }
        let mut wrong: DocumentMut = "disks = 1\n".parse().unwrap();
        assert!(add(&mut wrong, &disk(24)).is_err());
        remove(&mut wrong, &disk(24));
        assert_eq!(wrong.to_string(), "disks = 1\n");
    }
}
