//! The files that the client knows, by their numbers.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat2, statx,
};
use rustix::io::{Errno, Result};
use serde::{Deserialize, Serialize};

use crate::root::Root;
use crate::spec::ROOT_ID;

/// No path is longer, as the kernel takes it (PATH_MAX: names and slashes).
const MAX_DEPTH: usize = 2048;

/// What tells a file from any other, also from one that gets its inode later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Its file system. 0: the directory's.
    device: u64,
    inode: u64,
    /// When it was made, where the file system knows that: seconds and nanoseconds.
    born: Option<(i64, u32)>,
    kind: u16,
}

/// A file that the client knows.
#[derive(Debug)]
pub struct Node {
    pub parent: u64,
    /// What it was called in the parent when it was last seen there.
    pub name: CString,
    pub identity: Identity,
    /// How often the client has been told its number, and has not forgotten it.
    pub lookups: u64,
    /// How many handles there are for it.
    pub handles: u32,
    /// `None`: it is opened again when it is needed.
    descriptor: Option<Arc<OwnedFd>>,
    /// It was in use since it was last thought of to close its descriptor.
    is_recent: bool,
}

/// All nodes but the root.
pub struct Nodes {
    // Configuration.
    limit: usize,
    descriptors: usize,
    // Wiring.
    root: Arc<OwnedFd>,
    device: (u32, u32),
    // Volatile state.
    nodes: HashMap<u64, Node>,
    by_identity: HashMap<Identity, u64>,
    next: u64,
    /// How many of the nodes have a descriptor.
    open: usize,
    /// These in the order in which they got it, and some that are gone.
    queue: VecDeque<u64>,
}

impl Nodes {
    /// At most `limit` nodes, of which about `descriptors` keep a descriptor.
    pub fn new(root: &Root, limit: usize, descriptors: usize) -> Result<Self> {
        let stat = stat(root.as_fd())?;
        Ok(Self {
            limit,
            descriptors,
            root: Arc::new(root.as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE)?),
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            nodes: HashMap::new(),
            by_identity: HashMap::new(),
            next: ROOT_ID + 1,
            open: 0,
            queue: VecDeque::new(),
        })
    }

    pub fn clear(&mut self) {
        self.nodes.clear();
        self.by_identity.clear();
        self.queue.clear();
        self.open = 0;
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, &Node)> {
        self.nodes.iter().map(|(&id, node)| (id, node))
    }

    pub fn knows(&self, id: u64) -> bool {
        self.nodes.contains_key(&id)
    }

    /// Adds a node as it was saved, without a descriptor. `false`: it cannot be.
    pub fn insert(
        &mut self,
        id: u64,
        parent: u64,
        name: CString,
        identity: Identity,
        lookups: u64,
    ) -> bool {
        let is_new = id > ROOT_ID
            && self.nodes.len() < self.limit
            && !self.nodes.contains_key(&id)
            && !self.by_identity.contains_key(&identity);
        if let (true, Some(next)) = (is_new, id.checked_add(1)) {
            self.next = self.next.max(next);
            self.by_identity.insert(identity, id);
            let node = Node {
                parent,
                name,
                identity,
                lookups,
                handles: 0,
                descriptor: None,
                is_recent: false,
            };
            self.nodes.insert(id, node);
            return true;
        }
        false
    }

    /// A descriptor of a node, good for everything but its contents.
    pub fn descriptor(&mut self, id: u64) -> Result<Arc<OwnedFd>> {
        // Up to one that is open.
        let mut way = Vec::new();
        let mut at = id;
        let mut descriptor = loop {
            if at == ROOT_ID {
                break self.root.clone();
            }
            let node = self.nodes.get_mut(&at).ok_or(Errno::STALE)?;
            node.is_recent = true;
            if let Some(descriptor) = &node.descriptor {
                break descriptor.clone();
            }
            if way.len() == MAX_DEPTH {
                return Err(Errno::STALE);
            }
            way.push(at);
            at = node.parent;
        };
        // And down again.
        for id in way.into_iter().rev() {
            let node = self.nodes.get(&id).ok_or(Errno::STALE)?;
            let found = open_entry(descriptor.as_fd(), &node.name).map_err(|_| Errno::STALE)?;
            if self.identity(&stat(found.as_fd())?) != node.identity {
                return Err(Errno::STALE);
            }
            descriptor = Arc::new(found);
            self.keep_open(id, descriptor.clone());
        }
        Ok(descriptor)
    }

    /// The node of a name in a directory, and what it is like. The client knows it from now on.
    pub fn look_up(&mut self, parent: u64, name: &CStr) -> Result<(u64, Statx)> {
        let directory = self.descriptor(parent)?;
        let descriptor = open_entry(directory.as_fd(), name)?;
        self.add(parent, name, descriptor)
    }

    /// The node of a file in a directory that the caller has opened (`O_PATH`).
    pub fn add(&mut self, parent: u64, name: &CStr, file: OwnedFd) -> Result<(u64, Statx)> {
        let stat = stat(file.as_fd())?;
        let identity = self.identity(&stat);
        let id = match self.by_identity.get(&identity) {
            Some(&id) => id,
            None => {
                let id = self.next;
                if !self.insert(id, parent, name.to_owned(), identity, 0) {
                    return Err(Errno::NFILE);
                }
                id
            }
        };
        let node = self.nodes.get_mut(&id).ok_or(Errno::STALE)?;
        node.lookups = node.lookups.checked_add(1).ok_or(Errno::NFILE)?;
        (node.parent, node.name) = (parent, name.to_owned());
        node.is_recent = true;
        if node.descriptor.is_none() {
            self.keep_open(id, Arc::new(file));
        }
        Ok((id, stat))
    }

    /// A name is another file's now: if the client knows that, it is there.
    pub fn moved(&mut self, parent: u64, name: &CStr) {
        let found = self.descriptor(parent).and_then(|dir| open_entry(dir.as_fd(), name));
        let Ok(stat) = found.and_then(|file| stat(file.as_fd())) else { return };
        let id = self.by_identity.get(&self.identity(&stat));
        if let Some(node) = id.and_then(|id| self.nodes.get_mut(id)) {
            (node.parent, node.name) = (parent, name.to_owned());
        }
    }

    /// The client forgets some of the times that it was told of a node.
    pub fn forget(&mut self, id: u64, lookups: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups > 0 {
            return;
        }
        if let Some(node) = self.nodes.remove(&id) {
            self.by_identity.remove(&node.identity);
            self.open -= usize::from(node.descriptor.is_some());
        }
        if self.queue.len() > 2 * self.descriptors + 64 {
            let nodes = &self.nodes;
            self.queue.retain(|id| nodes.get(id).is_some_and(|node| node.descriptor.is_some()));
        }
    }

    /// Counts a handle of a node more or less. A node with handles stays open, so that it is there even if
    /// its name is not.
    pub fn count_handle(&mut self, id: u64, more: bool) {
        if let Some(node) = self.nodes.get_mut(&id) {
            let count = node.handles;
            node.handles = if more { count.saturating_add(1) } else { count.saturating_sub(1) };
        }
    }

    fn keep_open(&mut self, id: u64, descriptor: Arc<OwnedFd>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.descriptor.replace(descriptor).is_none() {
            self.open += 1;
            self.queue.push_back(id);
        }
        // Each gets a second chance; those that must stay open are passed over.
        let mut tries = 2 * self.queue.len();
        while self.open > self.descriptors && tries > 0 {
            tries -= 1;
            let Some(id) = self.queue.pop_front() else { return };
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            if node.descriptor.is_none() {
                continue;
            }
            if node.handles > 0 || std::mem::replace(&mut node.is_recent, false) {
                self.queue.push_back(id);
            } else {
                node.descriptor = None;
                self.open -= 1;
            }
        }
    }

    fn identity(&self, stat: &Statx) -> Identity {
        let born = StatxFlags::BTIME.bits() & stat.stx_mask != 0;
        Identity {
            device: self.device_of(stat),
            inode: stat.stx_ino,
            born: born.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec)),
            kind: stat.stx_mode & 0o170_000,
        }
    }

    /// 0: the directory's own. On file systems with subvolumes there can be others.
    fn device_of(&self, stat: &Statx) -> u64 {
        match (stat.stx_dev_major, stat.stx_dev_minor) {
            device if device == self.device => 0,
            (major, minor) => u64::from(major) << 32 | u64::from(minor),
        }
    }
}

/// What is known of a file.
pub fn stat(file: BorrowedFd<'_>) -> Result<Statx> {
    let what = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    statx(file, c"", AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT, what)
}

/// What kind of file it is.
pub fn kind(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

/// Opens what a name is in a directory: itself, if it is a link, and nothing on another file system.
fn open_entry(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(directory, name, flags, Mode::empty(), BENEATH)
}

/// How names are resolved. They have one component; that is said to the kernel all the same.
pub const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_XDEV)
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);
