//! The snapshot that a guest stands on: the last that was made of it, or the one that it goes on from. The
//! next keeps only what has changed since, and links to the files of this one.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, linkat, unlinkat};
use rustix::io::Errno;
use state::memory::{Base, Contents, Older};
use vmm_api::Failure;

use super::MEMORY;
use super::open::unusable;

/// A snapshot that is whole.
pub struct Parent {
    /// It may have been removed meanwhile.
    directory: OwnedFd,
    memory: Arc<Base>,
}

impl Parent {
    /// The one in this directory.
    pub fn new(directory: OwnedFd, memory: Arc<Base>) -> Self {
        Self { directory, memory }
    }

    /// The one in this directory, which was made when the guest stood on `parent`.
    pub fn made(
        directory: OwnedFd,
        contents: Contents,
        memory: File,
        parent: Option<&Parent>,
    ) -> Result<Self, Failure> {
        let base = match parent {
            Some(parent) => parent.memory.successor(contents, memory),
            None => Base::new(contents, memory, Vec::new()),
        };
        Ok(Self::new(directory, Arc::new(base.map_err(unusable)?)))
    }

    /// Its memory.
    pub fn memory(&self) -> &Base {
        &self.memory
    }

    /// Gives all its memory files names in the directory of a snapshot that is to stand on it. Whether
    /// that could be: it may have been removed, or lie where this process may link nothing.
    pub fn link_into(&self, directory: &OwnedFd) -> bool {
        let linked = self.names().try_for_each(|(from, to)| {
            linkat(&self.directory, from.as_str(), directory, to.as_str(), AtFlags::empty())
        });
        if let Err(error) = &linked {
            tracing::info!("the snapshot before cannot be stood on: {error}");
            self.unlink_from(directory, &[]);
        }
        linked.is_ok()
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
        let own = Older::name_of(self.memory.number());
        let older = self.memory.contents().older.iter().map(|older| (older.name(), older.name()));
        std::iter::once((MEMORY.to_owned(), own)).chain(older)
    }
}
