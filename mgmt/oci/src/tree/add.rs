//! Adding a layer to what is there (image-spec, layer.md, "Applying Changesets").

use std::fs::File;
use std::io::{self, Read, Write};

use super::entry::{Extensions, Item, Reason, What, check_target, names};
use super::{Id, Kind, ROOT, Tree};
use crate::Error;

/// What the names of whiteouts begin with: the rest is what the layer removes.
const WHITEOUT: &[u8] = b".wh.";
/// The rest of one that removes all that is in a directory.
const OPAQUE: &[u8] = b".wh..opq";
/// What whiteouts begin with that were AUFS's own matter.
const OWN_MATTER: &[u8] = b".wh.";

const PIECE: usize = 128 << 10;
/// The most bytes in what extends entries, all layers together: long names and links, and extended
/// attributes. They stay in memory.
const MAX_EXTENSIONS: u64 = 512 << 20;

/// Why a layer could not be added.
enum Stopped {
    /// The entry is one that no layer may have.
    Refused(Reason),
    /// The layer ends, or cannot be read.
    Unreadable(io::Error),
    /// Something else.
    Error(Error),
}

impl<T: Into<Reason>> From<T> for Stopped {
    fn from(reason: T) -> Stopped {
        Stopped::Refused(reason.into())
    }
}

impl Tree {
    /// Adds a layer, the archive of which comes from `archive`, on top of what is there. `name` is its
    /// name for people. `is_cancelled` is asked now and then.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], [`Error::Damaged`], [`Error::TooLarge`], [`Error::Cancelled`], and
    /// [`Error::Io`] for the file with the contents. The tree is of no use then.
    pub fn add_layer(
        &mut self,
        archive: impl Read,
        name: &str,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        self.layer = self.layer.saturating_add(1);
        let mut archive = tar::Archive::new(archive);
        let damaged = |error: io::Error| Error::damaged(name, error);
        let mut extensions = Extensions::default();
        for entry in archive.entries().map_err(damaged)?.raw(true) {
            let mut entry = entry.map_err(damaged)?;
            self.entries = self.entries.saturating_add(1);
            if self.entries > self.limits.entries {
                let limit = format!("{} entries in all layers", self.limits.entries);
                return Err(Error::TooLarge { what: name.to_owned(), limit });
            }
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let stopped = match self.take(&mut entry, &mut extensions, is_cancelled) {
                Ok(()) => continue,
                Err(stopped) => stopped,
            };
            return Err(match stopped {
                Stopped::Refused(why) => Error::Refused { layer: name.to_owned(), path, why },
                Stopped::Unreadable(error) => damaged(error),
                Stopped::Error(error) => error,
            });
        }
        Ok(())
    }

    fn take(
        &mut self,
        entry: &mut tar::Entry<'_, impl Read>,
        extensions: &mut Extensions,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<(), Stopped> {
        if is_cancelled() {
            return Err(Stopped::Error(Error::Cancelled));
        }
        if extensions.take(entry)? {
            self.extensions = self.extensions.saturating_add(entry.size());
            if self.extensions > MAX_EXTENSIONS {
                let limit = format!("{} MiB in long names and attributes", MAX_EXTENSIONS >> 20);
                return Err(Stopped::Error(Error::TooLarge { what: "the image".into(), limit }));
            }
            return Ok(());
        }
        let item = std::mem::take(extensions).complete(entry)?;
        let Some(last) = item.path.last() else {
            // The root itself.
            if item.what != What::Directory {
                return Err("is in the place of the root".into());
            }
            self.touch(ROOT);
            if let Some(root) = self.nodes.get_mut(ROOT) {
                root.attributes = item.attributes;
            }
            return Ok(());
        };
        if let Some(removed) = last.strip_prefix(WHITEOUT) {
            let removed = removed.to_vec();
            return Ok(self.white_out(&item.path, &removed)?);
        }
        self.put(item, entry, is_cancelled)
    }

    /// Removes what earlier layers have put there, but nothing of this one.
    fn white_out(&mut self, path: &[Vec<u8>], removed: &[u8]) -> Result<(), Reason> {
        if removed == OPAQUE {
            if let Some(directory) = self.parent(path, false)? {
                self.remove_earlier(directory);
            }
            return Ok(());
        }
        if removed.starts_with(OWN_MATTER) {
            return Ok(());
        }
        if matches!(removed, b"" | b"." | b"..") {
            return Err("removes its own directory".into());
        }
        let Some(directory) = self.parent(path, false)? else { return Ok(()) };
        let found = self.children(directory).and_then(|children| children.get(removed)).copied();
        let Some(id) = found else { return Ok(()) };
        if self.is_of_this_layer(id) {
            self.remove_earlier(id);
        } else if let Some(children) = self.children_mut(directory) {
            children.remove(removed);
        }
        Ok(())
    }

    fn is_of_this_layer(&self, id: Id) -> bool {
        self.nodes.get(id).is_some_and(|node| node.layer == self.layer)
    }

    /// Removes what earlier layers have put in a directory.
    fn remove_earlier(&mut self, directory: Id) {
        let mut open = vec![directory];
        while let Some(id) = open.pop() {
            let Some(children) = self.children(id) else { continue };
            let (kept, removed): (Vec<_>, Vec<_>) = children
                .iter()
                .map(|(name, id)| (name.clone(), *id))
                .partition(|(_, id)| self.is_of_this_layer(*id));
            open.extend(kept.into_iter().map(|(_, id)| id));
            if let Some(children) = self.children_mut(id) {
                for (name, _) in removed {
                    children.remove(&name);
                }
            }
        }
    }

    /// Puts something new in its place, or says something new about a directory.
    fn put(
        &mut self,
        item: Item,
        contents: &mut impl Read,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<(), Stopped> {
        let Item { path, what, link, attributes, length, device: (major, minor) } = item;
        let parent = self.parent(&path, true)?.ok_or("has no place")?;
        let name = path.last().cloned().unwrap_or_default();
        let present = self.children(parent).and_then(|children| children.get(&name)).copied();
        let kind = match what {
            What::Directory => {
                if let Some(id) = present.filter(|id| self.children(*id).is_some()) {
                    self.touch(id);
                    if let Some(node) = self.nodes.get_mut(id) {
                        node.attributes = attributes;
                    }
                    return Ok(());
                }
                Kind::Directory(Default::default())
            }
            What::File => {
                let offset = self.length;
                self.spool(contents, length, is_cancelled)?;
                Kind::File { offset, length }
            }
            What::SymbolicLink => {
                check_target(&link)?;
                Kind::Link(link)
            }
            What::HardLink => {
                let id = self.linked(&link)?;
                self.touch(id);
                if let Some(children) = self.children_mut(parent) {
                    children.insert(name, id);
                }
                return Ok(());
            }
            What::BlockDevice => Kind::Device { is_block: true, major, minor },
            What::CharacterDevice => Kind::Device { is_block: false, major, minor },
            What::Pipe => Kind::Pipe,
        };
        let id = self.new_node(attributes, kind)?;
        if let Some(children) = self.children_mut(parent) {
            children.insert(name, id);
        }
        Ok(())
    }

    /// What a hard link leads to, which is no directory.
    fn linked(&mut self, target: &[u8]) -> Result<Id, Reason> {
        let missing = || {
            let target = String::from_utf8_lossy(target);
            format!("is a link to {target:?}, which is not there")
        };
        let path = names(target)?;
        let parent = self.parent(&path, false)?.ok_or_else(missing)?;
        let name = path.last().ok_or_else(missing)?;
        let id = self.children(parent).and_then(|children| children.get(name)).copied();
        let id = id.ok_or_else(missing)?;
        if self.children(id).is_some() {
            return Err("is a hard link to a directory".into());
        }
        Ok(id)
    }

    /// Appends the contents of a file to all contents.
    fn spool(
        &mut self,
        contents: &mut impl Read,
        length: u64,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<(), Stopped> {
        let end = self.length.checked_add(length).filter(|end| *end <= self.limits.bytes);
        let Some(end) = end else {
            let limit = format!("{} MiB in files", self.limits.bytes >> 20);
            return Err(Stopped::Error(Error::TooLarge { what: "the image".into(), limit }));
        };
        let mut piece = vec![0; PIECE];
        let mut left = length;
        while left > 0 {
            if is_cancelled() {
                return Err(Stopped::Error(Error::Cancelled));
            }
            let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let count = match contents.read(piece.get_mut(..most).unwrap_or_default()) {
                Ok(0) => return Err(Stopped::Unreadable(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Stopped::Unreadable(error)),
            };
            let mut file: &File = &self.contents;
            file.write_all(piece.get(..count).unwrap_or_default()).map_err(|error| {
                Stopped::Error(Error::io("write", "the contents of the image".as_ref())(error))
            })?;
            left -= count as u64;
        }
        self.length = end;
        Ok(())
    }
}
