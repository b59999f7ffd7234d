//! Whose /dev/kvm is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

/// Who may open the file, apart from its owner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceFile {
    /// Its permissions, as chmod has them.
    pub mode: u32,
    /// The name of its group, or its number if it has none.
    pub group: String,
}

impl DeviceFile {
    /// Looks below `root`. Nobody may open what is not there.
    pub fn gather(root: &Path) -> Self {
        let Ok(metadata) = fs::metadata(root.join("dev/kvm")) else { return Self::default() };
        let groups = fs::read_to_string(root.join("etc/group")).unwrap_or_default();
        let group = group_name(&groups, metadata.gid());
        Self { mode: metadata.mode() & 0o777, group: group.unwrap_or(metadata.gid().to_string()) }
    }

    /// What lets a user open it.
    pub fn remedy(&self) -> String {
        const GROUP: u32 = 0o060;
        if self.mode & GROUP == GROUP && self.group != "root" {
            return format!("adduser $USER {}, then log in anew", self.group);
        }
        format!(
            "as root, chgrp kvm /dev/kvm && chmod 660 /dev/kvm, since it is open to its owner alone \
             (mode {:o}, group {}); adduser $USER kvm, then log in anew",
            self.mode, self.group
        )
    }
}

/// The group with this number in /etc/group (group(5)).
fn group_name(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_that_helps_is_named() {
        let groups = "root:x:0:\nvirt:x:108:kim\nkvm:x:109:\n";
        assert_eq!(group_name(groups, 108).as_deref(), Some("virt"));
        assert_eq!(group_name(groups, 7), None);
        let virt = DeviceFile { mode: 0o660, group: "virt".to_owned() };
        assert_eq!(virt.remedy(), "adduser $USER virt, then log in anew");
        for (mode, group) in [(0o600, "kvm"), (0o660, "root"), (0o600, "root")] {
            let remedy = DeviceFile { mode, group: group.to_owned() }.remedy();
            assert!(remedy.contains("chmod 660") && remedy.contains("chgrp kvm"), "{remedy}");
        }
    }

    #[test]
    fn what_is_not_there_is_nobodys() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(DeviceFile::gather(root.path()), DeviceFile::default());
    }
}
