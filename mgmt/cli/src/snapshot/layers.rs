//! The layers of a guest's disk: files beside it, each of which has what was written between two
//! snapshots, and the name of what it stands on (docs/interop/qcow2.txt of QEMU, "Header").

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmm_api::Failure;

use super::store;
use crate::failure;

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// The longest name that the format allows.
const MAX_NAME: u32 = 1023;

/// Whether a file of this name is a layer.
fn is_layer(name: &str) -> bool {
    name.starts_with("layer-") && name.ends_with(".qcow2")
}

/// The layers in the guest's directory that `first` needs, itself included.
pub fn chain(guest: &Path, first: &str) -> Vec<String> {
    let mut chain: Vec<String> = Vec::new();
    let mut next = Some(first.to_owned());
    while let Some(name) = next.filter(|name| is_layer(name) && !chain.contains(name)) {
        next = backing(&guest.join(&name));
        chain.push(name);
    }
    chain
}

/// Removes layers that neither the guest nor a snapshot of it needs any more.
pub fn sweep(guest: &Path) -> Result<(), Failure> {
    let entries = fs::read_dir(guest).map_err(failure::io("read", guest))?;
    let images: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".qcow2"))
        .collect();
    let mut needed = BTreeSet::new();
    for overlay in images.iter().filter(|name| !is_layer(name)) {
        if let Some(layer) = backing(&guest.join(overlay)) {
            needed.extend(chain(guest, &layer));
        }
    }
    for snapshot in store::all(guest)? {
        for layer in snapshot.layers.iter().flatten() {
            needed.extend(chain(guest, layer));
        }
    }
    for layer in images.iter().filter(|name| is_layer(name) && !needed.contains(*name)) {
        let path = guest.join(layer);
        fs::remove_file(&path).map_err(failure::io("remove", &path))?;
    }
    Ok(())
}

/// What a qcow2 image says that it stands on.
fn backing(path: &Path) -> Option<String> {
    let file = File::open(path).ok()?;
    let mut header = [0; 20];
    file.read_exact_at(&mut header, 0).ok()?;
    let [m0, m1, m2, m3, _, _, _, _, o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = header;
    let offset = u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]);
    let len = u32::from_be_bytes([l0, l1, l2, l3]);
    if [m0, m1, m2, m3] != MAGIC || offset == 0 || len > MAX_NAME {
        return None;
    }
    let mut name = vec![0; len as usize];
    file.read_exact_at(&mut name, offset).ok()?;
    String::from_utf8(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(path: &Path, backing: &str) {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(3u32.to_be_bytes());
        bytes.extend(20u64.to_be_bytes());
        bytes.extend((backing.len() as u32).to_be_bytes());
        bytes.extend(backing.as_bytes());
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn what_nobody_needs_goes() {
        let guest = tempfile::tempdir().unwrap();
        let at = |name: &str| guest.path().join(name);
        image(&at("disk.qcow2"), "layer-b-0.qcow2");
        image(&at("layer-b-0.qcow2"), "layer-a-0.qcow2");
        image(&at("layer-a-0.qcow2"), "/images/disk.qcow2");
        image(&at("layer-c-0.qcow2"), "layer-a-0.qcow2");
        assert_eq!(chain(guest.path(), "layer-c-0.qcow2"), ["layer-c-0.qcow2", "layer-a-0.qcow2"]);
        sweep(guest.path()).unwrap();
        assert!(at("layer-a-0.qcow2").exists() && at("layer-b-0.qcow2").exists());
        assert!(!at("layer-c-0.qcow2").exists());
        // One that leads back to itself ends.
        image(&at("layer-a-0.qcow2"), "layer-b-0.qcow2");
        assert_eq!(chain(guest.path(), "layer-b-0.qcow2").len(), 2);
        fs::write(at("layer-b-0.qcow2"), b"QFI").unwrap();
        assert_eq!(chain(guest.path(), "layer-b-0.qcow2").len(), 1);
    }
}
