//! Looking whether memory files are as they were written.

use std::os::unix::fs::FileExt;

use super::base::Part;
use super::flat::next_data;
use super::{Error, PIECE, is_zero};

/// Looks whether a file has the size that it must have: what can be seen without reading it.
pub fn check_size(part: &Part, wanted: u64) -> Result<(), Error> {
    let len = part.file.metadata()?.len();
    let damaged =
        |what| Err(Error::Damaged { file: part.name.clone(), offset: len.min(wanted), what });
    if len != wanted {
        return damaged("the file has another length");
    }
    if len.div_ceil(PIECE as u64) != part.sums.len() as u64 {
        return damaged("there is no checksum for each piece");
    }
    Ok(())
}

/// How much is read at once: as much as stays in the processor's caches, and as `malloc` does not take for
/// a sign that such sizes are usual, and worth to be kept.
const CHUNK: u64 = 64 << 10;

/// Looks whether a file of the right size holds what it must.
pub fn verify_file(part: &Part) -> Result<(), Error> {
    let len = part.file.metadata()?.len();
    let mut chunk = vec![0; CHUNK as usize];
    for (sum, offset) in part.sums.iter().zip((0..).step_by(PIECE)) {
        let place = offset..len.min(offset + PIECE as u64);
        let damaged = |what| Err(Error::Damaged { file: part.name.clone(), offset, what });
        let is_hole = || Ok(next_data(part.file, offset)?.is_none_or(|data| data >= place.end));
        if sum.is_none() && is_hole().map_err(Error::Host)? {
            continue;
        }
        let (mut found, mut is_empty) = (0, true);
        for at in place.clone().step_by(CHUNK as usize) {
            let bytes = &mut chunk[..CHUNK.min(place.end - at) as usize];
            part.file.read_exact_at(bytes, at)?;
            match sum {
                Some(_) => found = crc32c::crc32c_append(found, bytes),
                None => is_empty &= is_zero(bytes),
            }
        }
        match sum {
            Some(sum) if *sum != found => return damaged("a checksum is wrong"),
            None if !is_empty => return damaged("there is something where nothing was"),
            _ => {}
        }
    }
    Ok(())
}
