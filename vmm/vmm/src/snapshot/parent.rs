//! The snapshot that a guest stands on: the last that was made of it, or the one that it goes on from. The
//! next keeps only what has changed since, and links to the files of this one.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, linkat, openat, unlinkat};
use rustix::io::Errno;
use state::memory::{self, Base, Contents, Older};

use super::MEMORY;

/// A snapshot that is whole. Its files are opened when they are needed: until then, whoever removes it has their
/// room back.
pub struct Parent {
    /// It may have been removed meanwhile.
    directory: OwnedFd,
    /// What its memory files hold.
    contents: Contents,
}

impl Parent {
    /// The one in this directory.
    pub fn new(directory: OwnedFd, contents: Contents) -> Self {
        Self { directory, contents }
    }

    /// Gives all its memory files names in the directory of a snapshot that is to stand on it, and opens them
    /// there. `None` if that cannot be: it may have been removed, or lie where this process may link nothing.
    pub fn link_into(&self, directory: &OwnedFd) -> Option<Base> {
        let linked = self.names().try_for_each(|(from, to)| {
            linkat(&self.directory, from.as_str(), directory, to.as_str(), AtFlags::empty())
        });
        match linked
            .map_err(|errno| io::Error::from(errno).into())
            .and_then(|()| self.open_in(directory))
        {
            Ok(base) => Some(base),
            Err(error) => {
                tracing::info!("the snapshot before cannot be stood on: {error}");
                self.unlink_from(directory, &[]);
                None
            }
        }
    }

    /// Its memory, by the names that its files have in that directory.
    fn open_in(&self, directory: &OwnedFd) -> Result<Base, memory::Error> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let open = |(_, name): (String, String)| {
            openat(directory, name.as_str(), flags, Mode::empty()).map(File::from)
        };
        let files: Result<Vec<File>, Errno> = self.names().map(open).collect();
        let mut older = files.map_err(io::Error::from)?;
        // Its own is named first.
        let own = older.remove(0);
        Base::new(self.contents.clone(), own, older)
    }

    /// Takes these names away again, but for those of the files that are needed.
    pub fn unlink_from(&self, directory: &OwnedFd, needed: &[Older]) {
        let is_needed = |name: &String| needed.iter().any(|older| older.name() == *name);
        for (_, name) in self.names().filter(|(_, name)| !is_needed(name)) {
            match unlinkat(directory, name.as_str(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                // It takes no room of its own.
                Err(error) => tracing::warn!("a link to {name} is left in a snapshot: {error}"),
            }
        }
    }

    /// The names of its memory files, here and in a snapshot that stands on it.
    fn names(&self) -> impl Iterator<Item = (String, String)> {
        let own = Older::name_of(self.contents.number());
        let older = self.contents.older.iter().map(|older| (older.name(), older.name()));
        std::iter::once((MEMORY.to_owned(), own)).chain(older)
    }
}
