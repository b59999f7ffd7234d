//! Extended attributes (xattr(7)): those of users only. Others say what the host's kernel is to do with a
//! file, or are for the host's administrator.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, OFlags, XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr};
use rustix::io::{Errno, Result};

use crate::nodes::{kind, stat};
use crate::serve::Folder;
use crate::wire::{Fields, Reply};

const OURS: &[u8] = b"user.";
/// The longest value, and the longest list of names (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const MAX_SIZE: usize = 64 << 10;

impl Folder {
    /// Opens a file that can have such attributes.
    fn open_for_xattrs(&mut self, node: u64) -> Result<OwnedFd> {
        let file = self.nodes.descriptor(node)?;
        match kind(&stat(file.as_fd())?) {
            FileType::RegularFile | FileType::Directory => {
                self.root.reopen(file.as_fd(), OFlags::RDONLY)
            }
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    /// `struct fuse_getxattr_in`.
    pub(crate) fn get_xattr(
        &mut self,
        node: u64,
        fields: &mut Fields,
        reply: &mut Reply,
    ) -> Result<()> {
        let size = fields.u32()?;
        fields.skip(4)?;
        let name = checked(fields.attribute()?)?;
        let file = self.open_for_xattrs(node)?;
        let mut value = vec![0; MAX_SIZE];
        let len = fgetxattr(&file, name, &mut value[..])?;
        value.truncate(len);
        answer(&value, size, reply)
    }

    /// `struct fuse_getxattr_in`.
    pub(crate) fn list_xattrs(
        &mut self,
        node: u64,
        fields: &mut Fields,
        reply: &mut Reply,
    ) -> Result<()> {
        let size = fields.u32()?;
        let file = self.open_for_xattrs(node)?;
        let mut names = vec![0; MAX_SIZE];
        let len = flistxattr(&file, &mut names[..])?;
        names.truncate(len);
        let ours = names.split_inclusive(|&byte| byte == 0).filter(|name| name.starts_with(OURS));
        answer(&ours.collect::<Vec<_>>().concat(), size, reply)
    }

    /// `struct fuse_setxattr_in`, as it is without `FUSE_SETXATTR_EXT`.
    pub(crate) fn set_xattr(&mut self, node: u64, fields: &mut Fields) -> Result<()> {
        self.check_writable()?;
        let (size, flags) = (fields.u32()?, XattrFlags::from_bits_retain(fields.u32()?));
        let name = checked(fields.attribute()?)?;
        let value = std::mem::replace(fields, Fields::new(&[])).rest();
        let known = XattrFlags::CREATE | XattrFlags::REPLACE;
        if value.len() != size as usize || value.len() > MAX_SIZE || !known.contains(flags) {
            return Err(Errno::INVAL);
        }
        fsetxattr(self.open_for_xattrs(node)?, name, value, flags)
    }

    pub(crate) fn remove_xattr(&mut self, node: u64, fields: &mut Fields) -> Result<()> {
        self.check_writable()?;
        let name = checked(fields.attribute()?)?;
        fremovexattr(self.open_for_xattrs(node)?, name)
    }
}

fn checked(name: &CStr) -> Result<&CStr> {
    if name.to_bytes().starts_with(OURS) { Ok(name) } else { Err(Errno::OPNOTSUPP) }
}

/// What was asked for, or how long it is if the client has no room (`struct fuse_getxattr_out`).
fn answer(value: &[u8], size: u32, reply: &mut Reply) -> Result<()> {
    if size == 0 {
        reply.u32(value.len() as u32)?; // at most MAX_SIZE
        return reply.u32(0);
    }
    if value.len() > size as usize {
        return Err(Errno::RANGE);
    }
    reply.bytes(value)
}
