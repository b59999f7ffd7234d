//! Folders of the host, mounted where the kernel's command line says (docs/folders.md).

use std::fs;
use std::io;

use rustix::mount::{MountFlags, mount};

use super::files::about;

/// What a parameter begins with: `lodge.folder=TAG:PATH:ro`, or `:rw`.
const PARAMETER: &str = "lodge.folder=";

/// Mounts all of them. A program whose folder is missing does not run: what it writes would be lost.
pub fn mount_all(cmdline: &str) -> io::Result<()> {
    for folder in cmdline.split_ascii_whitespace().filter_map(Folder::read) {
        let Folder { tag, path, is_readonly } = folder;
        fs::create_dir_all(path).map_err(about(path))?;
        let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
        flags.set(MountFlags::RDONLY, is_readonly);
        mount(tag, path, "virtiofs", flags, None).map_err(|error| about(path)(error.into()))?;
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Folder<'a> {
    tag: &'a str,
    path: &'a str,
    is_readonly: bool,
}

impl Folder<'_> {
    /// `None`: the word is about something else.
    fn read(word: &str) -> Option<Folder<'_>> {
        let (tag, rest) = word.strip_prefix(PARAMETER)?.split_once(':')?;
        let (path, mode) = rest.rsplit_once(':')?;
        Some(Folder { tag, path, is_readonly: mode == "ro" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_found_on_the_command_line() {
        let folder = |tag, path, is_readonly| Some(Folder { tag, path, is_readonly });
        assert_eq!(Folder::read("lodge.folder=folder0:/a/b:rw"), folder("folder0", "/a/b", false));
        assert_eq!(Folder::read("lodge.folder=folder1:/c:ro"), folder("folder1", "/c", true));
        for other in ["quiet", "lodge.folder=", "lodge.folder=folder0:/a", "lodge.folders=a:b:rw"] {
            assert_eq!(Folder::read(other), None, "{other}");
        }
    }
}
