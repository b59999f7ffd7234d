//! The tree as one archive, in which each name stands once, behind its directory.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::{Id, Kind, Node, ROOT, Tree};

impl Tree {
    /// Writes the tree as an archive (in GNU's form, with extended headers for extended attributes).
    /// The root itself is no entry of it: its owner and mode are in [`Tree::root_mode`]. Devices are
    /// left out unless `with_devices`.
    ///
    /// # Errors
    ///
    /// The writer's own, and those of reading the contents.
    pub fn write(&self, archive: impl Write, with_devices: bool) -> io::Result<()> {
        let mut builder = Builder::new(archive);
        // The first name of each node that is no directory: further ones are links to it.
        let mut names: Vec<Option<PathBuf>> = vec![None; self.nodes.len()];
        let mut open = vec![(PathBuf::new(), ROOT)];
        while let Some((path, id)) = open.pop() {
            let Some(node) = self.nodes.get(id) else { continue };
            if let Kind::Directory(children) = &node.kind {
                // The last is taken first.
                let children = children.iter().rev();
                open.extend(children.map(|(name, id)| (path.join(OsStr::from_bytes(name)), *id)));
            }
            if id != ROOT && (with_devices || !matches!(node.kind, Kind::Device { .. })) {
                self.append(&mut builder, &path, id, node, &mut names)?;
            }
        }
        builder.into_inner()?.flush()
    }

    /// The mode of the root, and the numbers of its user and group.
    #[must_use]
    pub fn root_mode(&self) -> (u32, u64, u64) {
        self.nodes.get(ROOT).map_or((0o755, 0, 0), |root| {
            let attributes = &root.attributes;
            (attributes.mode, attributes.user, attributes.group)
        })
    }

    fn append(
        &self,
        builder: &mut Builder<impl Write>,
        path: &Path,
        id: Id,
        node: &Node,
        names: &mut [Option<PathBuf>],
    ) -> io::Result<()> {
        let attributes = &node.attributes;
        let mut header = Header::new_gnu();
        header.set_mode(attributes.mode);
        header.set_uid(attributes.user);
        header.set_gid(attributes.group);
        header.set_mtime(attributes.modified);
        header.set_size(0);
        if let Some(Some(first)) = names.get(id) {
            header.set_entry_type(EntryType::Link);
            return builder.append_link(&mut header, path, first);
        }
        if let Some(name) = names.get_mut(id).filter(|_| self.children(id).is_none()) {
            *name = Some(path.to_owned());
        }
        let extended = attributes.extended.iter();
        let extended: Vec<(String, &[u8])> = extended
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.as_slice()))
            .collect();
        if !extended.is_empty() {
            builder.append_pax_extensions(extended.iter().map(|(k, v)| (k.as_str(), *v)))?;
        }
        match &node.kind {
            Kind::Directory(_) => {
                header.set_entry_type(EntryType::Directory);
                builder.append_data(&mut header, path, io::empty())
            }
            Kind::File { offset, length } => {
                header.set_entry_type(EntryType::Regular);
                header.set_size(*length);
                let contents = Contents { tree: self, at: *offset, left: *length };
                builder.append_data(&mut header, path, contents)
            }
            Kind::Link(target) => {
                header.set_entry_type(EntryType::Symlink);
                builder.append_link(&mut header, path, OsStr::from_bytes(target))
            }
            Kind::Device { is_block, major, minor } => {
                header.set_entry_type(if *is_block { EntryType::Block } else { EntryType::Char });
                header.set_device_major(*major)?;
                header.set_device_minor(*minor)?;
                builder.append_data(&mut header, path, io::empty())
            }
            Kind::Pipe => {
                header.set_entry_type(EntryType::Fifo);
                builder.append_data(&mut header, path, io::empty())
            }
        }
    }
}

/// The contents of one file.
struct Contents<'a> {
    tree: &'a Tree,
    at: u64,
    left: u64,
}

impl Read for Contents<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count =
            self.tree.contents.read_at(buffer.get_mut(..most).unwrap_or_default(), self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
