//! What a client knows and has open, as plain data. Whoever goes on from it finds the files again by their
//! names, if they are still the same.

use std::ffi::CString;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::handles::Handle;
use crate::nodes::Identity;
use crate::serve::Folder;
use crate::spec::ROOT_ID;
use crate::wire::is_name;

/// More files than this cannot be saved: a section of a saved state has an end.
const MAX_NODES: usize = 100_000;

/// The state of a [`Folder`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    is_ready: bool,
    nodes: Vec<SavedNode>,
    handles: Vec<SavedHandle>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedNode {
    id: u64,
    parent: u64,
    /// Each byte as the character of that number.
    name: String,
    identity: Identity,
    lookups: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedHandle {
    number: u64,
    node: u64,
    flags: u32,
}

/// A state cannot be saved, or is none that a folder can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadState {
    /// The client knows too much.
    #[error(
        "the guest knows {0} files of a shared folder, more than a snapshot has room for: have it forget \
         them, with `echo 2 > /proc/sys/vm/drop_caches`"
    )]
    TooMany(usize),
    /// Something in it contradicts the rest, or is more than there may be.
    #[error("a shared folder cannot have the {0} {1}")]
    Impossible(&'static str, u64),
}

impl Folder {
    /// What the client knows and has open.
    ///
    /// # Errors
    ///
    /// That is too much.
    pub fn save(&self) -> Result<State, BadState> {
        let nodes: Vec<_> = self.nodes.iter().collect();
        if nodes.len() > MAX_NODES {
            return Err(BadState::TooMany(nodes.len()));
        }
        let node = |(id, node): (u64, &crate::nodes::Node)| SavedNode {
            id,
            parent: node.parent,
            name: node.name.as_bytes().iter().copied().map(char::from).collect(),
            identity: node.identity,
            lookups: node.lookups,
        };
        let handle = |(number, handle): (u64, &Handle)| SavedHandle {
            number,
            node: handle.node,
            flags: handle.flags.bits(),
        };
        let has_node =
            |(_, handle): &(u64, &Handle)| handle.node == ROOT_ID || self.nodes.knows(handle.node);
        Ok(State {
            is_ready: self.is_ready,
            nodes: nodes.into_iter().map(node).collect(),
            // A client may have forgotten what it has open; then there is no way back to that.
            handles: self.handles.iter().filter(has_node).map(handle).collect(),
        })
    }

    /// Takes a state over. Files are looked for when they are used.
    ///
    /// # Errors
    ///
    /// No folder can have it.
    pub fn restore(&mut self, state: State) -> Result<(), BadState> {
        self.reset();
        self.is_ready = state.is_ready;
        for SavedNode { id, parent, name, identity, lookups } in state.nodes {
            let bytes: Option<Vec<u8>> = name.chars().map(|c| u8::try_from(c).ok()).collect();
            let name =
                bytes.and_then(|bytes| CString::new(bytes).ok()).filter(|name| is_name(name));
            let added =
                name.is_some_and(|name| self.nodes.insert(id, parent, name, identity, lookups));
            if !added {
                return Err(BadState::Impossible("node", id));
            }
        }
        for SavedHandle { number, node, flags } in state.handles {
            let flags = OFlags::from_bits_retain(flags);
            let known = OFlags::ACCMODE | OFlags::SYNC | OFlags::DSYNC | OFlags::DIRECTORY;
            let writes = flags & OFlags::ACCMODE != OFlags::RDONLY;
            let is_possible = known.contains(flags)
                && flags & OFlags::ACCMODE != OFlags::ACCMODE
                && !(writes && (self.options.readonly || flags.contains(OFlags::DIRECTORY)))
                && (node == ROOT_ID || self.nodes.knows(node));
            let handle = Handle { node, flags, file: None, position: u64::MAX };
            if !is_possible || !self.handles.insert(number, handle) {
                return Err(BadState::Impossible("handle", number));
            }
            self.nodes.count_handle(node, true);
        }
        Ok(())
    }
}
