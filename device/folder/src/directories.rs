//! What is in directories.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::fs::{FileType, OFlags, RawDir, SeekFrom};
use rustix::io::{Errno, Result};

use crate::nodes::{kind, stat};
use crate::serve::Folder;
use crate::spec::{DIRENT, ENTRY_OUT};
use crate::wire::{Fields, Reply, is_name};

/// More than this is not read from the host at once, for one request.
const MAX_BATCH: usize = 32 << 10;
/// Less holds not even one entry with the longest name.
const MIN_BATCH: usize = 1 << 10;

/// An entry as the host tells of it.
struct Entry<'a> {
    name: &'a CStr,
    inode: u64,
    kind: FileType,
    /// Where the one behind it is.
    next: u64,
}

impl Folder {
    pub(crate) fn open_directory(&mut self, node: u64, reply: &mut Reply) -> Result<()> {
        self.handles.check_room()?;
        let directory = self.nodes.descriptor(node)?;
        if kind(&stat(directory.as_fd())?) != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let file = self.root.reopen(directory.as_fd(), flags)?;
        let handle = self.add_handle(node, flags, file);
        self.opened(handle, reply)
    }

    /// `struct fuse_read_in`. `plus`: each entry comes with what a lookup would tell.
    pub(crate) fn read_directory(
        &mut self,
        fields: &mut Fields,
        reply: &mut Reply,
        plus: bool,
    ) -> Result<()> {
        let (handle, offset, size) = (fields.u64()?, fields.u64()?, fields.u32()?);
        let size = (size as usize).min(reply.left());
        self.open_file(handle)?;
        let it = self.handles.get_mut(handle)?;
        if !it.is_directory() {
            return Err(Errno::NOTDIR);
        }
        // The host's entries are shorter than the client's, so that some may be read twice.
        let batch = if plus { size / 4 } else { size };
        let mut buffer = vec![MaybeUninit::uninit(); batch.clamp(MIN_BATCH, MAX_BATCH)];
        let parent = it.node;
        let file = it.file.as_ref().ok_or(Errno::STALE)?.try_clone().map_err(|_| Errno::MFILE)?;
        if it.position != offset {
            rustix::fs::seek(&file, SeekFrom::Start(offset))?;
        }
        // Until it is known where that is.
        it.position = u64::MAX;
        let mut entries = RawDir::new(&file, &mut buffer);
        let (mut left, mut position, mut is_first) = (size, offset, true);
        let mut all_read = true;
        // One batch for each request: no system call besides the first reads any.
        while is_first || !entries.is_buffer_empty() {
            is_first = false;
            let Some(entry) = entries.next() else { break };
            let entry = entry?;
            let entry = Entry {
                name: entry.file_name(),
                inode: entry.ino(),
                kind: entry.file_type(),
                next: entry.next_entry_cookie(),
            };
            let len = entry.len(plus);
            if len > left {
                all_read = false;
                break;
            }
            if plus {
                self.entry_or_none(parent, entry.name, reply)?;
            }
            entry.write(reply)?;
            left -= len;
            position = entry.next;
        }
        if all_read {
            // The host is where the client is.
            self.handles.get_mut(handle)?.position = position;
        }
        Ok(())
    }

    /// `struct fuse_entry_out`, with the number 0 if there is nothing to tell: `.`, `..`, a file that is
    /// gone, a place where another file system is mounted.
    fn entry_or_none(&mut self, parent: u64, name: &CStr, reply: &mut Reply) -> Result<()> {
        let found = if is_name(name) { self.nodes.look_up(parent, name).ok() } else { None };
        match found {
            Some((node, stat)) => self.entry(node, &stat, reply),
            None => reply.bytes(&[0; ENTRY_OUT]),
        }
    }
}

impl Entry<'_> {
    /// The length that it has for the client.
    fn len(&self, plus: bool) -> usize {
        let entry = (DIRENT + self.name.count_bytes()).next_multiple_of(8);
        if plus { ENTRY_OUT + entry } else { entry }
    }

    /// `struct fuse_dirent`.
    fn write(&self, reply: &mut Reply) -> Result<()> {
        let name = self.name.to_bytes();
        reply.u64(self.inode)?;
        reply.u64(self.next)?;
        reply.u32(name.len() as u32)?; // at most NAME_MAX
        reply.u32(self.kind.as_raw_mode() >> 12)?;
        reply.bytes(name)?;
        let padded = (DIRENT + name.len()).next_multiple_of(8) - DIRENT - name.len();
        reply.bytes([0; 8].get(..padded).unwrap_or_default())
    }
}
