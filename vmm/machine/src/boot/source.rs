//! A file that is being loaded, on disk or decompressed in memory.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::BootError;

/// Bytes that can be read at any offset, with what is needed to name them in messages.
pub(super) struct Source {
    what: &'static str,
    path: PathBuf,
    data: Data,
}

enum Data {
    File { file: File, len: u64 },
    Bytes(Vec<u8>),
}

/// `O_NONBLOCK`: opening a FIFO must not wait for a writer.
const O_NONBLOCK: i32 = 0o4000;

impl Source {
    /// Opens a regular file. `what` names its role.
    pub(super) fn open(what: &'static str, path: &Path) -> Result<Self, BootError> {
        let read = |source| BootError::Read { what, path: path.to_owned(), source };
        let file =
            OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(BootError::NotAFile { what, path: path.to_owned() });
        }
        Ok(Self { what, path: path.to_owned(), data: Data::File { file, len: metadata.len() } })
    }

    /// What was found inside this source.
    pub(super) fn inner(&self, bytes: Vec<u8>) -> Self {
        Self { what: self.what, path: self.path.clone(), data: Data::Bytes(bytes) }
    }

    pub(super) fn what(&self) -> &'static str {
        self.what
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        match &self.data {
            Data::File { len, .. } => *len,
            Data::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Fills `buf` from `offset`; an end in between means a truncated file.
    pub(super) fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BootError> {
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= self.len());
        let Some(end) = end else {
            return Err(self.too_short(offset, buf.len() as u64));
        };
        match &self.data {
            Data::File { file, .. } => file.read_exact_at(buf, offset).map_err(|source| {
                BootError::Read { what: self.what, path: self.path.clone(), source }
            }),
            Data::Bytes(bytes) => {
                buf.copy_from_slice(&bytes[offset as usize..end as usize]);
                Ok(())
            }
        }
    }

    /// The bytes themselves, where they are in memory; `None` if they must be read.
    pub(super) fn in_memory(&self) -> Option<&[u8]> {
        match &self.data {
            Data::File { .. } => None,
            Data::Bytes(bytes) => Some(bytes),
        }
    }

    /// The `len` bytes at `offset`. The length is checked against the file's before memory is
    /// allocated for it.
    pub(super) fn bytes(&self, offset: u64, len: u64) -> Result<Vec<u8>, BootError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len()) {
            return Err(self.too_short(offset, len));
        }
        let mut bytes = vec![0; len as usize];
        self.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// The first bytes, at most `max` of them.
    pub(super) fn head(&self, max: u64) -> Result<Vec<u8>, BootError> {
        self.bytes(0, self.len().min(max))
    }

    /// It ends before `len` bytes from `offset` on.
    pub(super) fn too_short(&self, offset: u64, len: u64) -> BootError {
        let has = self.len();
        self.damaged(format!("it has {has} bytes, but {len} are needed at offset {offset}"))
    }

    pub(super) fn damaged(&self, why: impl Into<String>) -> BootError {
        BootError::Damaged { what: self.what, path: self.path.clone(), why: why.into() }
    }

    pub(super) fn not_a_kernel(&self, why: impl Into<String>) -> BootError {
        BootError::NotAKernel { path: self.path.clone(), why: why.into() }
    }
}

/// Little-endian fields of a header. An offset outside of it reads as zero: callers check the
/// length of what they read once, where they read it.
pub(super) trait Fields {
    fn u8(&self, offset: usize) -> u8;
    fn u16(&self, offset: usize) -> u16;
    fn u32(&self, offset: usize) -> u32;
    fn u64(&self, offset: usize) -> u64;
}

impl Fields for [u8] {
    fn u8(&self, offset: usize) -> u8 {
        field::<1>(self, offset)[0]
    }
    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(field(self, offset))
    }
    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(field(self, offset))
    }
    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(field(self, offset))
    }
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

/// A structure that is being made for the guest.
pub(super) struct Record(pub(super) Vec<u8>);

impl Record {
    /// A structure of `len` zero bytes.
    pub(super) fn new(len: usize) -> Self {
        Self(vec![0; len])
    }

    /// Puts `bytes` at `offset`. Offsets are those of the structure's definition, so one that
    /// lies outside is a mistake in this crate.
    pub(super) fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn put_u8(&mut self, offset: usize, value: u8) {
        self.put(offset, &[value]);
    }

    pub(super) fn put_u32(&mut self, offset: usize, value: u32) {
        self.put(offset, &value.to_le_bytes());
    }

    pub(super) fn put_u64(&mut self, offset: usize, value: u64) {
        self.put(offset, &value.to_le_bytes());
    }
}
