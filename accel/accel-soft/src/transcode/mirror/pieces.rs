//! The parts of this process's address space that a mirror may use.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::OnceLock;

/// Address space is taken in pieces, so that nobody else's mappings come between: of the first of these
/// sizes that nobody has a part of. Programs' stacks all begin within the same 16 GiB, as this
/// process's own does.
const SIZES: [u64; 3] = [1 << 30, 1 << 21, 1 << 12];
/// The first address that Linux lets programs map.
const LOWEST: u64 = 1 << 16;
/// How far the stack of this process may grow, with all that Linux keeps free below it.
const STACK_GROWTH: u64 = 64 << 20;

/// A piece of the address space.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Piece {
    start: u64,
    size: u64,
}

impl Piece {
    /// The one of this size around an address.
    fn around(address: u64, size: u64) -> Self {
        Self { start: address & !(size - 1), size }
    }

    /// What of it may be mapped. The last one ends before the last page, which Linux does not give.
    fn extent(self) -> Range<u64> {
        self.start.max(LOWEST)..(self.start + self.size).min((1 << 47) - 0x1000)
    }
}

/// See the module's text.
pub struct Pieces {
    /// Whether they are the mirror's, of those that were wanted.
    known: HashMap<Piece, bool>,
    /// Where the stack of this process may grow.
    stack: Range<u64>,
}

impl Pieces {
    /// Nothing is taken yet.
    pub fn new() -> Self {
        let stack = stack_start().map_or(0..0, |start| start.saturating_sub(STACK_GROWTH)..start);
        Self { known: HashMap::new(), stack }
    }

    /// Sees to it that a piece around `linear`, a user's address, is the mirror's, with nothing to be seen
    /// in it at first, and says what it covers, which includes the page of `linear`; `None` if something of
    /// this process lies there, or nobody is given that page.
    pub fn reserve(&mut self, linear: u64) -> Option<Range<u64>> {
        if linear < LOWEST {
            return None;
        }
        SIZES.iter().find_map(|&size| {
            let piece = Piece::around(linear, size);
            let extent = piece.extent();
            if !extent.contains(&linear) {
                return None;
            }
            let meets_stack = extent.start < self.stack.end && self.stack.start < extent.end;
            let is_ours = *self.known.entry(piece).or_insert_with(|| {
                let len = (extent.end - extent.start) as usize;
                !meets_stack
                    && map_at(extent.start, len, libc::PROT_NONE, libc::MAP_FIXED_NOREPLACE, None)
            });
            is_ours.then_some(extent)
        })
    }

    /// How many there are, with those that could not be taken.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Gives all pieces back, with what was mapped there.
    pub fn clear(&mut self) {
        for (piece, is_ours) in std::mem::take(&mut self.known) {
            if is_ours {
                let Range { start, end } = piece.extent();
                // SAFETY: the piece was reserved by this value, and nobody has references into it.
                unsafe { libc::munmap(start as *mut libc::c_void, (end - start) as usize) };
            }
        }
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Where the stack of this process begins, from which it grows to lower addresses (proc(5)).
pub fn stack_start() -> Option<u64> {
    const STARTSTACK: usize = 28;
    // Once, for a process that confines itself has no such file later.
    static START: OnceLock<Option<u64>> = OnceLock::new();
    *START.get_or_init(|| {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The third field is the first behind the name, which is in brackets and may contain anything.
        let (_, rest) = stat.rsplit_once(") ")?;
        rest.split(' ').nth(STARTSTACK - 3)?.parse().ok()
    })
}

/// Maps part of a file, or nothing, at `at`.
pub fn map_at(
    at: u64,
    len: usize,
    protection: i32,
    flags: i32,
    file: Option<(RawFd, u64)>,
) -> bool {
    let (fd, offset) = file.unwrap_or((-1, 0));
    let kind = match file {
        Some(_) => libc::MAP_SHARED,
        None => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
    };
    let Ok(offset) = libc::off_t::try_from(offset) else { return false };
    // SAFETY: the caller replaces nothing but what it has reserved itself, or flags say not to
    // replace at all.
    let got =
        unsafe { libc::mmap(at as *mut libc::c_void, len, protection, kind | flags, fd, offset) };
    if got == libc::MAP_FAILED {
        return false;
    }
    if got as u64 != at {
        // Kernels that do not know MAP_FIXED_NOREPLACE.
        // SAFETY: a mapping that was just made, and that nobody knows of.
        unsafe { libc::munmap(got, len) };
        return false;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address in the middle of nowhere: programs have theirs at both ends of the address space.
    const NOWHERE: u64 = 0x2345 << 32;

    #[test]
    fn pieces_leave_out_what_is_in_use() {
        let mut other = Pieces::new();
        let taken = other.reserve(NOWHERE).unwrap();
        assert_eq!(taken, NOWHERE..NOWHERE + SIZES[0]);
        // The same, from the view of another mirror.
        let mut pieces = Pieces::new();
        assert_eq!(pieces.reserve(NOWHERE + 0x1234), None);
        other.clear();
        let page = NOWHERE + 0x5000;
        assert!(map_at(page, 0x1000, libc::PROT_NONE, libc::MAP_FIXED_NOREPLACE, None));
        let mut pieces = Pieces::new();
        assert_eq!(pieces.reserve(page + 7), None);
        assert_eq!(pieces.reserve(page + 0x1007), Some(page + 0x1000..page + 0x2000));
        let far = NOWHERE + SIZES[1];
        assert_eq!(pieces.reserve(far), Some(far..far + SIZES[1]));
        // SAFETY: the test's own mapping.
        unsafe { libc::munmap(page as *mut libc::c_void, 0x1000) };
    }

    #[test]
    fn the_stack_may_grow() {
        let mut pieces = Pieces::new();
        let start = stack_start().unwrap();
        assert_eq!(pieces.reserve(start - (16 << 20)), None);
        assert_eq!(pieces.reserve(0x1000), None);
        // Linux keeps the last page to itself, but not what shares a piece with it.
        assert_eq!(pieces.reserve((1 << 47) - 0x1000), None);
        assert_eq!(pieces.reserve((1 << 47) - 1), None);
        let before = (1 << 47) - 0x1001;
        assert!(pieces.reserve(before).is_none_or(|piece| piece.contains(&before)));
    }
}
