//! Whether the host has room again for images that it had no room for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{stat, statvfs};

/// How often to look.
const LOOK: Duration = Duration::from_secs(1);
/// So much room is enough, in bytes; on a small file system, a twentieth of it.
const ENOUGH: u64 = 64 << 20;

/// A guest stands still because the host has no room for its disks.
#[derive(Clone, Debug)]
pub struct NoRoom {
    images: BTreeSet<PathBuf>,
    /// When to look next.
    pub next_look: Instant,
}

impl NoRoom {
    /// For these images.
    pub fn new(images: BTreeSet<PathBuf>) -> Self {
        Self { images, next_look: Instant::now() + LOOK }
    }

    /// Why the guest stands still, for people.
    pub fn reason(&self) -> String {
        let names: Vec<String> =
            self.images.iter().map(|path| path.display().to_string()).collect();
        format!(
            "the host has no room for what the guest writes to {}; it goes on when there is room again",
            names.join(" and ")
        )
    }

    /// Whether it is time to look, and there is room for all.
    pub fn is_over(&mut self) -> bool {
        if Instant::now() < self.next_look {
            return false;
        }
        self.next_look = Instant::now() + LOOK;
        self.images.iter().all(|image| has_room(image))
    }
}

/// Whether an image's file system has room. Who gave a block device its room is not known here: then
/// somebody has to say that there is more.
fn has_room(image: &Path) -> bool {
    let is_file =
        stat(image).is_ok_and(|it| rustix::fs::FileType::from_raw_mode(it.st_mode).is_file());
    let Ok(system) = statvfs(image) else { return false };
    let bytes = |blocks: u64| blocks.saturating_mul(system.f_frsize);
    is_file && bytes(system.f_bavail) >= ENOUGH.min(bytes(system.f_blocks) / 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_room_and_what_is_not_there_has_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let images = |path: &Path| BTreeSet::from([path.to_owned()]);
        let mut waits = NoRoom::new(images(file.path()));
        assert!(waits.reason().contains(&file.path().display().to_string()));
        assert!(!waits.is_over(), "it is too early");
        waits.next_look = Instant::now();
        let system = statvfs(file.path()).unwrap();
        let free = system.f_bavail * system.f_frsize;
        if free > ENOUGH {
            assert!(waits.is_over());
        }
        for nowhere in ["/nowhere", "/dev/null"] {
            let mut waits = NoRoom::new(images(Path::new(nowhere)));
            waits.next_look = Instant::now();
            assert!(!waits.is_over(), "{nowhere}");
        }
    }
}
