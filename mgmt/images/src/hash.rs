//! SHA-256 sums of sparse files.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use rustix::fs::SeekFrom as SparseSeek;
use sha2::{Digest, Sha256};

use crate::{Cancel, Error, Progress, Unit};

const BLOCK: usize = 1 << 20;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// The SHA-256 sum of a file's contents in hexadecimal, and its length. Holes count as the zeros
/// they are but are not read.
///
/// # Errors
///
/// [`Error::Io`] and [`Error::Cancelled`].
pub(crate) fn sha256(
    path: &Path,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<(String, u64), Error> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("look at", path))?.len();
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BLOCK];
    let mut at = 0;
    while at < length {
        let data = next_data(&file, at, length).map_err(Error::io("read", path))?;
        for_each_block(at, data.start, |size| {
            cancel.check()?;
            hasher.update(&ZEROS[..size]);
            Ok::<_, Error>(())
        })?;
        file.seek(SeekFrom::Start(data.start)).map_err(Error::io("read", path))?;
        for_each_block(data.start, data.end, |size| {
            cancel.check()?;
            file.read_exact(&mut buffer[..size]).map_err(Error::io("read", path))?;
            hasher.update(&buffer[..size]);
            progress.advance(file.stream_position().unwrap_or(0), length, Unit::Bytes);
            Ok::<_, Error>(())
        })?;
        at = data.end;
    }
    let hex = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((hex, length))
}

/// The next stretch at or after `at` that is not a hole; empty at `length` if there is none.
fn next_data(file: &File, at: u64, length: u64) -> io::Result<std::ops::Range<u64>> {
    let seek = |to| match rustix::fs::seek(file, to) {
        Ok(offset) => Ok(Some(offset)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(errno) => Err(io::Error::from(errno)),
    };
    // A file system without holes reports one stretch of data; one without the call, an error
    // that makes the whole rest data.
    let start = match seek(SparseSeek::Data(at)) {
        Ok(Some(offset)) => offset.min(length),
        Ok(None) => return Ok(length..length),
        Err(_) => return Ok(at..length),
    };
    let end = seek(SparseSeek::Hole(start))?.unwrap_or(length).min(length);
    Ok(start..end)
}

fn for_each_block<E>(
    from: u64,
    to: u64,
    mut each: impl FnMut(usize) -> Result<(), E>,
) -> Result<(), E> {
    let mut left = to.saturating_sub(from);
    while left > 0 {
        let size = left.min(BLOCK as u64);
        each(size as usize)?;
        left -= size;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Quiet;
    use std::os::unix::fs::FileExt;

    fn sum(path: &Path) -> String {
        sha256(path, &mut Quiet, &Cancel::default()).unwrap().0
    }

    #[test]
    fn known_sums() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(sum(&path), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        std::fs::write(&path, b"abc").unwrap();
        assert_eq!(sum(&path), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn holes_count_as_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let sparse = dir.path().join("sparse");
        let dense = dir.path().join("dense");
        let length = 5 * BLOCK as u64 + 12345;
        let file = File::create(&sparse).unwrap();
        file.set_len(length).unwrap();
        let mut bytes = vec![0u8; length as usize];
        for offset in [0usize, 4096, 2 * BLOCK + 7, 4 * BLOCK - 1] {
            file.write_all_at(b"here", offset as u64).unwrap();
            bytes[offset..offset + 4].copy_from_slice(b"here");
        }
        std::fs::write(&dense, &bytes).unwrap();
        assert_eq!(sum(&sparse), sum(&dense));
    }

    #[test]
    fn hashing_can_be_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"abc").unwrap();
        let cancel = Cancel::default();
        cancel.cancel();
        assert!(matches!(sha256(&path, &mut Quiet, &cancel), Err(Error::Cancelled)));
    }
}
