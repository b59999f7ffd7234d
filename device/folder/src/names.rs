//! Names in directories: looking them up, making, moving and removing them.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{
    AtFlags, FileType, Mode, RenameFlags, linkat, mkdirat, mknodat, readlinkat_raw, renameat_with,
    symlinkat, unlinkat,
};
use rustix::io::{Errno, Result};

use crate::attributes::checked_mode;
use crate::nodes::{kind, stat};
use crate::root::number;
use crate::serve::Folder;
use crate::wire::{Fields, Reply};

/// The longest target of a link that is read.
const MAX_TARGET: usize = 4096;

impl Folder {
    pub(crate) fn look_up(
        &mut self,
        parent: u64,
        fields: &mut Fields,
        reply: &mut Reply,
    ) -> Result<()> {
        let name = fields.name()?;
        self.told(parent, name, reply)
    }

    /// Tells the client of a name.
    fn told(&mut self, parent: u64, name: &CStr, reply: &mut Reply) -> Result<()> {
        let (node, stat) = self.nodes.look_up(parent, name)?;
        self.entry(node, &stat, reply).inspect_err(|_| self.nodes.forget(node, 1))
    }

    pub(crate) fn read_link(&mut self, node: u64, reply: &mut Reply) -> Result<()> {
        let link = self.nodes.descriptor(node)?;
        if kind(&stat(link.as_fd())?) != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        reply.fill(MAX_TARGET, |room| readlinkat_raw(link.as_fd(), c"", room)).map(drop)
    }

    pub(crate) fn make_link(
        &mut self,
        parent: u64,
        fields: &mut Fields,
        reply: &mut Reply,
    ) -> Result<()> {
        self.check_writable()?;
        let (name, target) = (fields.name()?, fields.target()?);
        let directory = self.nodes.descriptor(parent)?;
        symlinkat(target, directory.as_fd(), name)?;
        self.told(parent, name, reply)
    }

    /// `struct fuse_mknod_in`.
    pub(crate) fn make_node(
        &mut self,
        parent: u64,
        fields: &mut Fields,
        reply: &mut Reply,
    ) -> Result<()> {
        self.check_writable()?;
        let raw_mode = fields.u32()?;
        fields.skip(12)?;
        let name = fields.name()?;
        let kind = match raw_mode & 0o170_000 {
            0 => FileType::RegularFile,
            bits => FileType::from_raw_mode(bits),
        };
        // Devices of the host are none of the client's.
        if !matches!(kind, FileType::RegularFile | FileType::Fifo | FileType::Socket) {
            return Err(Errno::PERM);
        }
        let mode = checked_mode(raw_mode, kind)?;
        let directory = self.nodes.descriptor(parent)?;
        mknodat(directory.as_fd(), name, kind, mode, 0)?;
        self.told_of_new(parent, name, mode, reply)
    }

    /// `struct fuse_mkdir_in`.
    pub(crate) fn make_directory(
        &mut self,
        parent: u64,
        fields: &mut Fields,
        reply: &mut Reply,
    ) -> Result<()> {
        self.check_writable()?;
        let raw_mode = fields.u32()?;
        fields.skip(4)?;
        let name = fields.name()?;
        let mode = checked_mode(raw_mode, FileType::Directory)?;
        let directory = self.nodes.descriptor(parent)?;
        mkdirat(directory.as_fd(), name, mode)?;
        self.told_of_new(parent, name, mode, reply)
    }

    /// Tells the client of something that it has just made.
    fn told_of_new(
        &mut self,
        parent: u64,
        name: &CStr,
        mode: Mode,
        reply: &mut Reply,
    ) -> Result<()> {
        let (node, _) = self.nodes.look_up(parent, name)?;
        let told = self.complete_mode(node, mode).and_then(|stat| self.entry(node, &stat, reply));
        told.inspect_err(|_| self.nodes.forget(node, 1))
    }

    /// Gives a new file what this process's umask took away: the client's has been applied already.
    pub(crate) fn complete_mode(&mut self, node: u64, mode: Mode) -> Result<rustix::fs::Statx> {
        let file = self.nodes.descriptor(node)?;
        let now = stat(file.as_fd())?;
        let is = Mode::from_raw_mode(u32::from(now.stx_mode) & 0o7777);
        if is.contains(mode) {
            return Ok(now);
        }
        // A directory may have got its group's bit from its parent.
        self.set_mode(file.as_fd(), is | mode)?;
        stat(file.as_fd())
    }

    pub(crate) fn remove(
        &mut self,
        parent: u64,
        fields: &mut Fields,
        is_directory: bool,
    ) -> Result<()> {
        self.check_writable()?;
        let name = fields.name()?;
        let directory = self.nodes.descriptor(parent)?;
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        unlinkat(directory.as_fd(), name, flags)
    }

    /// `struct fuse_rename_in`, and with flags `struct fuse_rename2_in`.
    pub(crate) fn rename(
        &mut self,
        parent: u64,
        fields: &mut Fields,
        has_flags: bool,
    ) -> Result<()> {
        self.check_writable()?;
        let new_parent = fields.u64()?;
        let mut flags = RenameFlags::empty();
        if has_flags {
            flags = RenameFlags::from_bits_retain(fields.u32()?);
            fields.skip(4)?;
        }
        let (name, new_name) = (fields.name()?, fields.name()?);
        let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
        if !known.contains(flags) {
            return Err(Errno::INVAL);
        }
        let directory = self.nodes.descriptor(parent)?;
        let new_directory = self.nodes.descriptor(new_parent)?;
        renameat_with(directory.as_fd(), name, new_directory.as_fd(), new_name, flags)?;
        self.nodes.moved(new_parent, new_name);
        if flags.contains(RenameFlags::EXCHANGE) {
            self.nodes.moved(parent, name);
        }
        Ok(())
    }

    /// `struct fuse_link_in`.
    pub(crate) fn link(
        &mut self,
        parent: u64,
        fields: &mut Fields,
        reply: &mut Reply,
    ) -> Result<()> {
        self.check_writable()?;
        let node = fields.u64()?;
        let name = fields.name()?;
        let file = self.nodes.descriptor(node)?;
        let directory = self.nodes.descriptor(parent)?;
        // What is followed is /proc's way to the descriptor, and no link that the node may be.
        let (place, flags) = (self.root.descriptors(), AtFlags::SYMLINK_FOLLOW);
        linkat(place, number(file.as_fd()), directory.as_fd(), name, flags)?;
        self.told(parent, name, reply)
    }
}
