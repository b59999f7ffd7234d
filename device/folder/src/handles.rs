//! Files and directories that the client has open.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::{Errno, Result};

/// Something that is open.
#[derive(Debug)]
pub struct Handle {
    /// The node that it is of.
    pub node: u64,
    /// How it was opened, but for what happens only then.
    pub flags: OFlags,
    /// `None` after it was restored, until it is used.
    pub file: Option<OwnedFd>,
    /// Of a directory: where the next entry is read.
    pub position: u64,
}

impl Handle {
    pub fn is_directory(&self) -> bool {
        self.flags.contains(OFlags::DIRECTORY)
    }
}

/// All of them, by the numbers that the client knows.
pub struct Handles {
    limit: usize,
    handles: HashMap<u64, Handle>,
    next: u64,
}

impl Handles {
    pub fn new(limit: usize) -> Self {
        Self { limit, handles: HashMap::new(), next: 1 }
    }

    /// Whether there can be one more.
    pub fn check_room(&self) -> Result<()> {
        if self.handles.len() < self.limit { Ok(()) } else { Err(Errno::NFILE) }
    }

    /// Adds one, for which there is room, and returns its number.
    pub fn add(&mut self, handle: Handle) -> u64 {
        let number = self.next;
        self.next += 1;
        self.handles.insert(number, handle);
        number
    }

    /// Adds one as it was saved. `false`: it cannot be.
    pub fn insert(&mut self, number: u64, handle: Handle) -> bool {
        let Some(next) = number.checked_add(1) else { return false };
        self.next = self.next.max(next);
        self.check_room().is_ok() && self.handles.insert(number, handle).is_none()
    }

    pub fn get_mut(&mut self, number: u64) -> Result<&mut Handle> {
        self.handles.get_mut(&number).ok_or(Errno::BADF)
    }

    pub fn remove(&mut self, number: u64) -> Result<Handle> {
        self.handles.remove(&number).ok_or(Errno::BADF)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, &Handle)> {
        self.handles.iter().map(|(&number, handle)| (number, handle))
    }

    pub fn clear(&mut self) {
        self.handles.clear();
    }
}
