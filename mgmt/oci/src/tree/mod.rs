//! A root file system in the making: what the layers of an image come to.
//!
//! Names and links are nodes in memory; contents go one after the other to a file that has no name.
//! Links are followed within the tree alone, so that no layer can reach anything else.

mod add;
mod emit;
mod entry;
mod look_up;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use crate::Error;

/// How large a tree may become.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The contents of all files of all layers together, in bytes.
    pub bytes: u64,
    /// The entries of all layers together. Each takes some hundred bytes of memory.
    pub entries: usize,
}

/// How much of it there is, without what later layers have removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in files.
    pub bytes: u64,
    /// Names.
    pub names: u64,
    /// Nodes of devices, which only root can make.
    pub devices: u64,
}

/// A root file system.
pub struct Tree {
    /// The first is the root. What was removed stays here, and nobody leads to it.
    nodes: Vec<Node>,
    contents: File,
    /// How long the contents are by now.
    length: u64,
    /// Which layer is being added, from 1.
    layer: u32,
    entries: usize,
    /// How many bytes have extended entries by now.
    extensions: u64,
    limits: Limits,
}

/// The number of a node.
type Id = usize;
const ROOT: Id = 0;

struct Node {
    attributes: Attributes,
    kind: Kind,
    /// The last layer that has said something about it, or about something in it.
    layer: u32,
}

/// What is said about a node besides its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Attributes {
    mode: u32,
    user: u64,
    group: u64,
    /// Seconds since 1970.
    modified: u64,
    /// Extended attributes: names and values.
    extended: Vec<(String, Vec<u8>)>,
}

enum Kind {
    Directory(BTreeMap<Vec<u8>, Id>),
    /// A place in the contents.
    File {
        offset: u64,
        length: u64,
    },
    Link(Vec<u8>),
    Device {
        is_block: bool,
        major: u32,
        minor: u32,
    },
    Pipe,
}

impl Tree {
    /// An empty tree, whose contents go to a file without a name in `directory`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn new(directory: &Path, limits: Limits) -> Result<Tree, Error> {
        let contents =
            tempfile::tempfile_in(directory).map_err(Error::io("write in", directory))?;
        let attributes = Attributes { mode: 0o755, ..Attributes::default() };
        let root = Node { attributes, kind: Kind::Directory(BTreeMap::new()), layer: 0 };
        Ok(Tree {
            nodes: vec![root],
            contents,
            length: 0,
            layer: 0,
            entries: 0,
            extensions: 0,
            limits,
        })
    }

    /// How much of it there is.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        let mut seen = vec![false; self.nodes.len()];
        let mut open = vec![ROOT];
        while let Some(id) = open.pop() {
            usage.names += 1;
            // The names of one file are several.
            if seen.get_mut(id).is_none_or(|seen| std::mem::replace(seen, true)) {
                continue;
            }
            match self.nodes.get(id).map(|node| &node.kind) {
                Some(Kind::Directory(children)) => open.extend(children.values()),
                Some(Kind::File { length, .. }) => {
                    usage.bytes = usage.bytes.saturating_add(*length);
                }
                Some(Kind::Device { .. }) => usage.devices += 1,
                Some(Kind::Link(_) | Kind::Pipe) | None => {}
            }
        }
        usage
    }

    fn children(&self, id: Id) -> Option<&BTreeMap<Vec<u8>, Id>> {
        match self.nodes.get(id).map(|node| &node.kind) {
            Some(Kind::Directory(children)) => Some(children),
            _ => None,
        }
    }

    fn children_mut(&mut self, id: Id) -> Option<&mut BTreeMap<Vec<u8>, Id>> {
        match self.nodes.get_mut(id).map(|node| &mut node.kind) {
            Some(Kind::Directory(children)) => Some(children),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
