//! What a file holds, read into guest memory without a copy in between.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::{GuestMemory, MarksFrom};

/// How many pieces one call to the host may have (UIO_MAXIOV).
const MOST_PIECES: usize = 1024;

/// Fills runs of guest memory, one after the other, with what `file` holds from `offset` on; with zeroes beyond its
/// end. What was translated from there is forgotten, as after any store.
///
/// # Errors
///
/// The host's, or [`io::ErrorKind::InvalidInput`] for what is no memory. Some of it may be filled then.
pub fn fill_from_file(
    memory: &GuestMemory,
    runs: impl Iterator<Item = (GuestAddress, usize)>,
    file: &File,
    offset: u64,
) -> io::Result<()> {
    let mut slices = Vec::new();
    for (start, len) in runs {
        for slice in memory.get_slices(start, len) {
            slices.push(slice.map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?);
        }
    }
    let result = fill(&slices, file, offset);
    // Also after a failure, since nobody knows how much was stored before.
    for slice in &slices {
        slice.bitmap().mark_dirty(0, slice.len());
    }
    result
}

fn fill(slices: &[VolatileSlice<MarksFrom>], file: &File, mut offset: u64) -> io::Result<()> {
    let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let mut runs: Vec<_> = guards
        .iter()
        .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
        .collect();
    let mut rest = &mut runs[..];
    while let Some(first) = rest.iter().position(|run| run.iov_len > 0) {
        rest = &mut rest[first..];
        let at = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let count = rest.len().min(MOST_PIECES) as libc::c_int;
        // SAFETY: each run is what is left of a slice of guest memory, whose mapping `slices` keep and into which
        // there are no references: the guest may change it at any time.
        let done = unsafe { libc::preadv(file.as_raw_fd(), rest.as_ptr(), count, at) };
        match done {
            0 => {
                rest.iter().for_each(clear);
                break;
            }
            1.. => {
                offset = offset.saturating_add(done as u64);
                skip(rest, done as usize);
            }
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// Zeroes what is left of a run.
fn clear(run: &libc::iovec) {
    // SAFETY: as for `preadv` above.
    unsafe { std::ptr::write_bytes(run.iov_base.cast::<u8>(), 0, run.iov_len) };
}

/// Takes `done` bytes off the front.
fn skip(runs: &mut [libc::iovec], mut done: usize) {
    for run in runs {
        let step = done.min(run.iov_len);
        run.iov_base = run.iov_base.wrapping_byte_add(step);
        run.iov_len -= step;
        done -= step;
        if done == 0 {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use vm_memory::{Bytes, GuestMemoryRegion};

    use super::*;
    use crate::{Backing, CodeMarks, RamRange, allocate};

    const START: u64 = 0x10_0000;

    fn memory() -> GuestMemory {
        // Two regions that lie side by side.
        let range = |start| RamRange { start, len: 0x2000 };
        let memory = allocate(&[range(START), range(START + 0x2000)]).unwrap();
        memory.write_slice(&[0xff; 0x4000], GuestAddress(START)).unwrap();
        memory
    }

    fn file(len: usize) -> Arc<File> {
        let file = Backing::new(libc::MFD_CLOEXEC).unwrap().file;
        let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
        (&*file).write_all(&bytes).unwrap();
        file
    }

    fn look(memory: &GuestMemory, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(START + at)).unwrap();
        bytes
    }

    #[test]
    fn runs_are_filled_in_their_order_and_nothing_else() {
        let memory = memory();
        // The second crosses from one region to the other.
        let runs = [(0x100, 10), (0x1ff0, 32), (0x3000, 0), (5, 3)];
        let runs = runs.map(|(at, len)| (GuestAddress(START + at), len));
        fill_from_file(&memory, runs.into_iter(), &file(1000), 7).unwrap();
        let expected: Vec<u8> = (7..52).collect();
        let found = [look(&memory, 0x100, 10), look(&memory, 0x1ff0, 32), look(&memory, 5, 3)];
        assert_eq!(found.concat(), expected);
        for (at, len) in [(0, 5), (8, 0xf8), (0x10a, 0x1ee6), (0x2010, 0x1ff0)] {
            assert_eq!(look(&memory, at, len), vec![0xff; len], "{at:#x}");
        }
    }

    #[test]
    fn there_are_zeroes_beyond_the_end() {
        let memory = memory();
        let run = (GuestAddress(START), 0x3000);
        fill_from_file(&memory, [run].into_iter(), &file(100), 98).unwrap();
        assert_eq!(look(&memory, 0, 4), [98, 99, 0, 0]);
        assert_eq!(look(&memory, 2, 0x2ffe), vec![0; 0x2ffe]);
        fill_from_file(&memory, [run].into_iter(), &file(100), 1 << 40).unwrap();
        assert_eq!(look(&memory, 0, 0x3001), [vec![0; 0x3000], vec![0xff]].concat());
    }

    #[test]
    fn more_runs_than_the_host_takes_at_once() {
        let memory = memory();
        let runs = (0..3000).map(|n| (GuestAddress(START + n * 5), 1));
        fill_from_file(&memory, runs, &file(4000), 0).unwrap();
        for n in 0..3000 {
            assert_eq!(look(&memory, n * 5, 2), [(n % 251) as u8, 0xff]);
        }
    }

    #[test]
    fn what_is_no_memory_is_refused_and_what_is_not_readable_fails() {
        let memory = memory();
        let run = (GuestAddress(START + 0x3fff), 2);
        let error = fill_from_file(&memory, [run].into_iter(), &file(9), 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let directory = File::open(std::env::temp_dir()).unwrap();
        let run = (GuestAddress(START), 2);
        assert!(fill_from_file(&memory, [run].into_iter(), &directory, 0).is_err());
    }

    #[test]
    fn translated_code_there_is_forgotten() {
        let memory = memory();
        let region = memory.iter().next().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let listener = heard.clone();
        let marks = region.bitmap().marks();
        marks.listen(Box::new(move |page| listener.lock().unwrap().push(page)));
        let mark = |page: usize| {
            let bits = CodeMarks::bits(0x800, 1);
            marks.page(page).unwrap().fetch_or(bits, std::sync::atomic::Ordering::SeqCst);
        };
        (0..2).for_each(mark);
        let fill = |at, len| {
            let run = (GuestAddress(START + at), len);
            fill_from_file(&memory, [run].into_iter(), &file(0x1000), 0).unwrap();
        };
        fill(0, 0x800);
        assert!(heard.lock().unwrap().is_empty());
        fill(0, 0x801);
        assert_eq!(*heard.lock().unwrap(), [0]);
        // Zeroes beyond the file's end are stores, too.
        fill(0x800, 0x1001);
        assert_eq!(*heard.lock().unwrap(), [0, 1]);
    }
}
