//! Writing memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

use mem::GuestMemory;

use super::flat::Flat;
use super::{Base, Contents, Error, PAGE, PAGE_LEN, PIECE, Pages, is_zero, regions};

/// Writes `memory`, which nobody changes meanwhile, to an empty file: all of it, or only the pages that
/// are not as they were in `base`, if that can be.
///
/// # Errors
///
/// The host's.
pub fn write(memory: &GuestMemory, file: &File, base: Option<&Base>) -> Result<Contents, Error> {
    let (flat, regions) = (Flat::of(memory), regions(memory));
    let base = base.filter(|base| base.contents().regions == regions);
    if let Some(base) = base
        && let Some((pages, older)) = base.succeeded_by(&flat)?
    {
        return Ok(Contents { regions, sums: write_pages(&flat, file, &pages)?, older });
    }
    let all = Pages::all(flat.len() / PAGE);
    Ok(Contents { regions, sums: write_pages(&flat, file, &all)?, older: Vec::new() })
}

/// Writes these pages, and holes for all others. The value has the checksums of the file.
fn write_pages(flat: &Flat, file: &File, pages: &Pages) -> Result<Vec<Option<u32>>, Error> {
    file.set_len(flat.len())?;
    let mut piece = vec![0; PIECE];
    let sum = |place: std::ops::Range<u64>| {
        let bytes = &mut piece[..(place.end - place.start) as usize];
        let first = place.start / PAGE;
        let wanted = || pages.within(first..place.end.div_ceil(PAGE));
        if wanted().next().is_none() || !flat.read(place.start, bytes)? {
            return Ok(None);
        }
        let mut unwanted = 0;
        for run in wanted() {
            bytes[unwanted..(run.start - first) as usize * PAGE_LEN].fill(0);
            unwanted = (run.end - first) as usize * PAGE_LEN;
        }
        let end = bytes.len();
        bytes[unwanted.min(end)..].fill(0);
        if is_zero(bytes) {
            return Ok(None);
        }
        // Runs of pages that are not zero.
        let mut pages = bytes.chunks(PAGE_LEN).enumerate().peekable();
        while let Some((index, page)) = pages.next() {
            if is_zero(page) {
                continue;
            }
            let mut len = page.len();
            while let Some((_, page)) = pages.next_if(|(_, page)| !is_zero(page)) {
                len += page.len();
            }
            let from = index * PAGE_LEN;
            file.write_all_at(&bytes[from..from + len], place.start + from as u64)?;
        }
        Ok(Some(crc32c::crc32c(bytes)))
    };
    flat.pieces().map(sum).collect()
}
