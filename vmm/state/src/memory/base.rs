//! The memory of a snapshot, as what a later one stands on.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::flat::Flat;
use super::verify::{check_size, verify_file};
use super::{
    Contents, Error, FILE, MAX_OLDER, MAX_RUNS, MAX_SUMS, Older, PAGE, PAGE_LEN, PAGES_OF_PIECE,
    PIECE, Pages,
};

/// How many runs of pages a snapshot may have changed; more are joined. So some snapshots fit one upon
/// the other.
const MAX_CHANGED_RUNS: usize = MAX_RUNS / 8;

/// A snapshot's memory: its files, and what they must hold.
#[derive(Debug)]
pub struct Base {
    contents: Contents,
    own: File,
    /// In the order of [`Contents::older`].
    older: Vec<File>,
}

/// A file, and what is in it.
pub struct Part<'a> {
    /// Its name.
    pub name: String,
    /// The file.
    pub file: &'a File,
    /// The checksums of its pieces.
    pub sums: &'a [Option<u32>],
    /// The pages that count.
    pub pages: Pages,
}

impl Base {
    /// Made of the snapshot's own file and of the older ones, in the order of [`Contents::older`].
    ///
    /// # Errors
    ///
    /// If these cannot be the files: as far as that is seen without reading them.
    pub fn new(contents: Contents, own: File, older: Vec<File>) -> Result<Self, Error> {
        let len = contents.check()?;
        let base = Self { contents, own, older };
        for part in base.parts() {
            check_size(&part, len)?;
        }
        Ok(base)
    }

    /// What the files must hold.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The files, the snapshot's own first.
    pub fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let Contents { sums, older, .. } = &self.contents;
        let (name, pages) = (FILE.to_owned(), self.contents.own_pages());
        let own = Part { name, file: &self.own, sums, pages };
        let older = older.iter().zip(&self.older).map(|(older, file)| Part {
            name: older.name(),
            file,
            sums: &older.sums,
            pages: older.pages.clone(),
        });
        std::iter::once(own).chain(older)
    }

    /// Reads all files and looks whether they hold what they must.
    ///
    /// # Errors
    ///
    /// If they do not, and the host's.
    pub fn verify(&self) -> Result<(), Error> {
        self.parts().try_for_each(|part| verify_file(&part))
    }

    /// What a snapshot of `memory` writes that stands on this one, and the files that it stands on then.
    /// `None`: it would have too many.
    pub(super) fn succeeded_by(&self, memory: &Flat) -> Result<Option<(Pages, Vec<Older>)>, Error> {
        if self.older.len() >= MAX_OLDER || self.contents.number() == u32::MAX {
            return Ok(None);
        }
        let changed = self.changed_in(memory)?.in_runs(MAX_CHANGED_RUNS);
        let numbers = std::iter::once(self.contents.number())
            .chain(self.contents.older.iter().map(|older| older.number));
        let older: Vec<Older> = numbers
            .zip(self.parts())
            .map(|(number, part)| {
                let pages = part.pages.without(&changed);
                Older { number, sums: part.sums.to_owned(), pages }
            })
            .filter(|older| older.pages.count() > 0)
            .collect();
        let runs: usize = older.iter().map(|older| older.pages.run_count()).sum();
        let sums = (older.len() + 1).saturating_mul(self.contents.sums.len());
        Ok((runs <= MAX_RUNS && sums <= MAX_SUMS).then_some((changed, older)))
    }

    /// The pages that are not in `memory` as they are here.
    fn changed_in(&self, memory: &Flat) -> Result<Pages, Error> {
        let parts: Vec<Part> = self.parts().collect();
        let (mut now, mut then) = (vec![0; PIECE], vec![0; PIECE]);
        let mut changed = Pages::default();
        for (index, place) in memory.pieces().enumerate() {
            let len = (place.end - place.start) as usize;
            let (now, then) = (&mut now[..len], &mut then[..len]);
            let has_now = memory.read(place.start, now)?;
            let has_then = read(&parts, index, then)?;
            match (has_now, has_then) {
                (false, false) => continue,
                (false, true) => now.fill(0),
                (true, false) => then.fill(0),
                (true, true) => {}
            }
            let first = index as u64 * PAGES_OF_PIECE;
            for (page, (now, then)) in
                (first..).zip(now.chunks(PAGE_LEN).zip(then.chunks(PAGE_LEN)))
            {
                if now != then {
                    changed.push(page..page + 1);
                }
            }
        }
        Ok(changed)
    }
}

/// Reads a piece, unless it is all zero: then that is said by `false`.
fn read(parts: &[Part], index: usize, to: &mut [u8]) -> Result<bool, Error> {
    let first = index as u64 * PAGES_OF_PIECE;
    let pages = first..first + (to.len() / PAGE_LEN) as u64;
    let bytes = |run: &Range<u64>| {
        (run.start - first) as usize * PAGE_LEN..(run.end - first) as usize * PAGE_LEN
    };
    let mut has_any = false;
    let is_there = |part: &&Part| part.sums.get(index).is_some_and(Option::is_some);
    for part in parts.iter().filter(is_there) {
        for run in part.pages.within(pages.clone()) {
            if !has_any {
                to.fill(0);
                has_any = true;
            }
            part.file.read_exact_at(&mut to[bytes(&run)], run.start * PAGE)?;
        }
    }
    Ok(has_any)
}
