//! Folders of the host that a guest shares.

use std::collections::HashSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::MAX_DEVICES;

/// The longest path in a guest, in bytes: all of them go on its kernel's command line.
const MAX_GUEST_PATH: usize = 128;

/// A folder of the host that a guest shares, by a virtio file system device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FolderConfig {
    /// The directory on the host.
    pub path: PathBuf,
    /// Where the guest is to mount it. Images that Lodge has built do so by themselves.
    pub guest: String,
    /// The guest may only read.
    #[serde(default)]
    pub readonly: bool,
    /// Who the files of the VMM's user belong to, as the guest sees it. Those of others belong to `nobody`.
    #[serde(default)]
    pub uid: u32,
    /// Which group the files of the VMM's group belong to, as the guest sees it.
    #[serde(default)]
    pub gid: u32,
}

/// A folder that cannot be shared like this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FolderError {
    /// Not a path for a mount point.
    #[error(
        "the folder cannot be at {0:?} in the guest: give an absolute path other than /, of at most \
         {MAX_GUEST_PATH} letters, digits and any of /._-+@, without empty parts, . and .."
    )]
    GuestPath(String),
    /// Two at one place.
    #[error("two folders are to be at {0} in the guest: choose another place for one of them")]
    SamePlace(String),
    /// More than there can be.
    #[error("{0} shared folders cannot be had: a guest has at most {MAX_DEVICES}")]
    TooMany(usize),
}

impl FolderConfig {
    /// The tag by which the guest's kernel knows a folder, the first of which has number 0.
    #[must_use]
    pub fn tag(index: usize) -> String {
        format!("folder{index}")
    }

    /// What a kernel's command line says of folders, for the guest's programs (docs/folders.md):
    /// ` lodge.folder=folder0:/srv/www:ro`.
    #[must_use]
    pub fn cmdline(folders: &[FolderConfig]) -> String {
        let word = |(index, folder): (usize, &FolderConfig)| {
            let mode = if folder.readonly { "ro" } else { "rw" };
            format!(" lodge.folder={}:{}:{mode}", FolderConfig::tag(index), folder.guest)
        };
        folders.iter().enumerate().map(word).collect()
    }
}

/// Checks what can be told from the configuration alone.
pub(crate) fn validate(folders: &[FolderConfig]) -> Result<(), FolderError> {
    if folders.len() > MAX_DEVICES {
        return Err(FolderError::TooMany(folders.len()));
    }
    let mut places = HashSet::new();
    for FolderConfig { guest, .. } in folders {
        let is_good = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
        let leads_down = guest
            .strip_prefix('/')
            .is_some_and(|rest| !rest.split('/').any(|part| matches!(part, "" | "." | "..")));
        if !leads_down || !guest.chars().all(is_good) || guest.len() > MAX_GUEST_PATH {
            return Err(FolderError::GuestPath(guest.clone()));
        }
        if !places.insert(guest) {
            return Err(FolderError::SamePlace(guest.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(guest: &str) -> FolderConfig {
        FolderConfig { path: "/srv".into(), guest: guest.into(), ..Default::default() }
    }

    #[test]
    fn places_are_checked() {
        for good in ["/a", "/srv/www", "/mnt/a-b_c.d+e@f", "/..."] {
            assert_eq!(validate(&[at(good)]), Ok(()), "{good}");
        }
        let long = format!("/{}", "x".repeat(MAX_GUEST_PATH));
        for bad in [
            "", "a", "/", "//a", "/a/", "/a/../b", "/.", "/a b", "/a:b", "/a\n", "/ä", "/a\"",
            &long,
        ] {
            assert_eq!(validate(&[at(bad)]), Err(FolderError::GuestPath(bad.into())));
        }
        let same = validate(&[at("/a/b"), at("/a/b")]);
        assert_eq!(same, Err(FolderError::SamePlace("/a/b".into())));
        assert_eq!(validate(&[at("/a"), at("/a/b")]), Ok(()));
        let many: Vec<_> = (0..9).map(|n| at(&format!("/{n}"))).collect();
        assert_eq!(validate(&many), Err(FolderError::TooMany(9)));
    }

    #[test]
    fn the_guest_is_told() {
        let folders = [at("/a"), FolderConfig { readonly: true, ..at("/b") }];
        let said = FolderConfig::cmdline(&folders);
        assert_eq!(said, " lodge.folder=folder0:/a:rw lodge.folder=folder1:/b:ro");
        assert_eq!(FolderConfig::cmdline(&[]), "");
    }
}
