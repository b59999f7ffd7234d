//! What is known of files: owners, modes, times.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Statx, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
};
use rustix::io::{Errno, Result};

use crate::nodes::{kind, stat};
use crate::root::number;
use crate::serve::Folder;
use crate::spec::fattr;
use crate::wire::{Fields, Reply};

/// For how many seconds the client believes what it was told of names and attributes.
pub const VALID: u64 = 1;
/// Who the files of others belong to, as the client sees it (`nobody`).
const OVERFLOW_ID: u32 = 65534;
const S_ISUID: u32 = 0o4000;
const S_ISGID: u32 = 0o2000;
/// What a mode can say besides the kind of file.
const MODE_BITS: u32 = 0o7777;

/// The bits of a mode that the client may set. A program that runs as its owner, whoever starts it, would
/// run as this process's user on the host.
pub fn checked_mode(mode: u32, kind: FileType) -> Result<Mode> {
    let bits = mode & MODE_BITS;
    let forbidden = if kind == FileType::Directory { S_ISUID } else { S_ISUID | S_ISGID };
    if bits & forbidden != 0 {
        return Err(Errno::PERM);
    }
    Ok(Mode::from_raw_mode(bits))
}

impl Folder {
    /// `struct fuse_attr`.
    fn attributes(&self, stat: &Statx, reply: &mut Reply) -> Result<()> {
        for value in [stat.stx_ino, stat.stx_size, stat.stx_blocks] {
            reply.u64(value)?;
        }
        let times = [stat.stx_atime, stat.stx_mtime, stat.stx_ctime];
        for time in times {
            reply.u64(time.tv_sec.cast_unsigned())?;
        }
        for time in times {
            reply.u32(time.tv_nsec)?;
        }
        reply.u32(stat.stx_mode.into())?;
        reply.u32(stat.stx_nlink)?;
        let (uid, gid) = self.owner(stat);
        reply.u32(uid)?;
        reply.u32(gid)?;
        let (major, minor) = (stat.stx_rdev_major, stat.stx_rdev_minor);
        reply.u32(minor & 0xff | major << 8 | (minor & !0xff) << 12)?; // new_encode_dev()
        reply.u32(stat.stx_blksize)?;
        reply.u32(0)
    }

    /// Who a file belongs to, as the client sees it.
    fn owner(&self, stat: &Statx) -> (u32, u32) {
        let (uid, gid) = self.root.user();
        let seen = |is_own: bool, own: u32| if is_own { own } else { OVERFLOW_ID };
        (seen(stat.stx_uid == uid, self.options.uid), seen(stat.stx_gid == gid, self.options.gid))
    }

    /// `struct fuse_entry_out`.
    pub(crate) fn entry(&self, node: u64, stat: &Statx, reply: &mut Reply) -> Result<()> {
        reply.u64(node)?;
        reply.u64(0)?; // the generation: numbers are not used again
        reply.u64(VALID)?;
        reply.u64(VALID)?;
        reply.u64(0)?; // nanoseconds of both
        self.attributes(stat, reply)
    }

    /// `struct fuse_attr_out`.
    fn attributes_of(&self, node: BorrowedFd<'_>, reply: &mut Reply) -> Result<()> {
        reply.u64(VALID)?;
        reply.u64(0)?;
        self.attributes(&stat(node)?, reply)
    }

    pub(crate) fn get_attributes(&mut self, node: u64, reply: &mut Reply) -> Result<()> {
        let file = self.nodes.descriptor(node)?;
        self.attributes_of(file.as_fd(), reply)
    }

    /// `struct fuse_setattr_in`.
    pub(crate) fn set_attributes(
        &mut self,
        node: u64,
        fields: &mut Fields,
        reply: &mut Reply,
    ) -> Result<()> {
        self.check_writable()?;
        let valid = fields.u32()?;
        fields.skip(4)?;
        let (handle, size) = (fields.u64()?, fields.u64()?);
        fields.skip(8)?;
        let (access, modification) = (fields.u64()?, fields.u64()?);
        fields.skip(8)?;
        let (access_ns, modification_ns) = (fields.u32()?, fields.u32()?);
        fields.skip(4)?;
        let mode = fields.u32()?;
        fields.skip(4)?;
        let (uid, gid) = (fields.u32()?, fields.u32()?);
        fields.skip(4)?;

        let has = |what: u32| valid & what != 0;
        let file = self.nodes.descriptor(node)?;
        let now = stat(file.as_fd())?;
        // Nothing is changed if not all can be.
        let owner = self.owner(&now);
        if has(fattr::UID) && uid != owner.0 || has(fattr::GID) && gid != owner.1 {
            return Err(Errno::PERM);
        }
        let mode = has(fattr::MODE).then(|| checked_mode(mode, kind(&now))).transpose()?;
        let times = Timestamps {
            last_access: time(has(fattr::ATIME), has(fattr::ATIME_NOW), access, access_ns)?,
            last_modification: time(
                has(fattr::MTIME),
                has(fattr::MTIME_NOW),
                modification,
                modification_ns,
            )?,
        };

        if let Some(mode) = mode {
            self.set_mode(file.as_fd(), mode)?;
        }
        if has(fattr::SIZE) {
            let handle = has(fattr::FH).then_some(handle);
            self.set_size(node, file.as_fd(), handle, size)?;
        }
        if has(fattr::ATIME | fattr::MTIME) {
            rustix::fs::utimensat(file.as_fd(), c"", &times, AtFlags::EMPTY_PATH)?;
        }
        self.attributes_of(file.as_fd(), reply)
    }

    /// Sets the mode of a file that is no link.
    pub(crate) fn set_mode(&self, file: BorrowedFd<'_>, mode: Mode) -> Result<()> {
        if kind(&stat(file)?) == FileType::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        let place = self.root.descriptors();
        rustix::fs::chmodat(place, number(file), mode, AtFlags::empty())
    }

    fn set_size(
        &mut self,
        node: u64,
        file: BorrowedFd<'_>,
        handle: Option<u64>,
        size: u64,
    ) -> Result<()> {
        // The handle may do what the mode does not allow any more.
        if let Some(handle) = handle
            && self.handle_is_of(handle, node)
        {
            return rustix::fs::ftruncate(self.open_file(handle)?, size);
        }
        rustix::fs::ftruncate(self.open_contents(file, OFlags::WRONLY)?, size)
    }
}

/// What a time is to be, as utimensat(2) takes it.
fn time(is_set: bool, is_now: bool, seconds: u64, nanoseconds: u32) -> Result<Timespec> {
    let (tv_sec, tv_nsec) = match (is_set, is_now) {
        (false, _) => (0, UTIME_OMIT),
        (true, true) => (0, UTIME_NOW),
        (true, false) if nanoseconds < 1_000_000_000 => (seconds.cast_signed(), nanoseconds.into()),
        (true, false) => return Err(Errno::INVAL),
    };
    Ok(Timespec { tv_sec, tv_nsec })
}
