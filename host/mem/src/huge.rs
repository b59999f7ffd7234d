//! Memory of huge pages that the host has reserved (Documentation/admin-guide/mm/hugetlbpage.rst).

use std::fs;

use crate::{Backing, Error, GuestMemory, HUGE_PAGE, RamRange, Region, Unmapped, check};

/// Where the host tells of its reserve.
const RESERVE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Allocates RAM for `ranges`, all zero, from the host's reserve of huge pages. They are there from
/// the beginning: no guest can run into a lack of them later. What is left over at the ends of ranges
/// is of ordinary pages.
pub fn allocate_huge(ranges: &[RamRange]) -> Result<GuestMemory, Error> {
    let mib = check(ranges)?;
    let mut small = Backing::new(libc::MFD_CLOEXEC).map_err(|e| Unmapped::Host(e).of(mib))?;
    let mut huge = Backing::new(libc::MFD_CLOEXEC | libc::MFD_HUGETLB | libc::MFD_HUGE_2MB)
        .map_err(|source| Error::NoHugePages { source })?;
    let parts: Vec<_> = ranges.iter().flat_map(split).collect();
    let needed = parts.iter().filter(|part| part.is_huge).map(|part| part.range.len / HUGE_PAGE);
    let needed = needed.sum();
    let regions: Result<Vec<Region>, Error> = parts
        .iter()
        .map(|part| match part.is_huge {
            // Without MAP_NORESERVE, the pages are set aside here.
            true => huge.map(&part.range, 0).map_err(|e| shortage(e, needed, mib)),
            false => small.map(&part.range, libc::MAP_NORESERVE).map_err(|e| e.of(mib)),
        })
        .collect();
    GuestMemory::from_regions(regions?).map_err(|e| Error::Layout(e.to_string()))
}

/// A part of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    range: RamRange,
    /// It consists of whole huge pages.
    is_huge: bool,
}

/// Splits a range where huge pages begin and end.
fn split(range: &RamRange) -> impl Iterator<Item = Part> {
    let end = range.start.saturating_add(range.len);
    let first = range.start.checked_next_multiple_of(HUGE_PAGE).map_or(end, |at| at.min(end));
    let last = (end / HUGE_PAGE * HUGE_PAGE).max(first);
    let part =
        |start, end: u64, is_huge| Part { range: RamRange { start, len: end - start }, is_huge };
    [part(range.start, first, false), part(first, last, true), part(last, end, false)]
        .into_iter()
        .filter(|part| part.range.len > 0)
}

/// Why huge pages cannot be mapped.
fn shortage(error: Unmapped, needed: u64, mib: u64) -> Error {
    let number = |name: &str| -> u64 {
        let text = fs::read_to_string(format!("{RESERVE}/{name}")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    match error {
        Unmapped::Host(source) if source.raw_os_error() == Some(libc::ENOMEM) => {
            let free = number("free_hugepages").saturating_sub(number("resv_hugepages"));
            let wanted = (number("nr_hugepages") + needed).saturating_sub(free);
            Error::HugePages { needed, free, wanted }
        }
        other => other.of(mib),
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

    use super::*;

    #[test]
    fn ranges_are_split_where_huge_pages_begin() {
        let parts = |start, len| split(&RamRange { start, len }).collect::<Vec<_>>();
        let part = |start, len, is_huge| Part { range: RamRange { start, len }, is_huge };
        assert_eq!(parts(0, 0xa_0000), [part(0, 0xa_0000, false)]);
        assert_eq!(
            parts(0xc_0000, 0x74_1000),
            [
                part(0xc_0000, 0x14_0000, false),
                part(0x20_0000, 0x60_0000, true),
                part(0x80_0000, 0x1000, false)
            ]
        );
        assert_eq!(parts(1 << 32, HUGE_PAGE), [part(1 << 32, HUGE_PAGE, true)]);
        assert_eq!(parts(u64::MAX - 0xfff, 0xfff), [part(u64::MAX - 0xfff, 0xfff, false)]);
    }

    #[test]
    fn what_the_host_has_not_reserved_is_told() {
        let ranges =
            [RamRange { start: 0, len: 0xa_0000 }, RamRange { start: 0xc_0000, len: 64 << 20 }];
        match allocate_huge(&ranges) {
            Ok(memory) => {
                // Places in huge pages are the same for guest and host.
                for region in memory.iter().filter(|r| r.len() >= HUGE_PAGE) {
                    assert_eq!(
                        region.start_addr().0 % HUGE_PAGE,
                        region.as_ptr() as u64 % HUGE_PAGE
                    );
                }
                memory.write_slice(&[7; 0x1000], GuestAddress(0x20_0000 - 0x800)).unwrap();
                assert_eq!(memory.read_obj::<u8>(GuestAddress(0x20_0400)).unwrap(), 7);
            }
            Err(Error::HugePages { needed, free, wanted }) => {
                eprintln!("SKIPPED: this host has {free} huge pages, and {needed} are needed");
                assert!(needed == 31 && free < needed && wanted >= needed - free);
            }
            Err(Error::NoHugePages { source }) => eprintln!("SKIPPED: no huge pages: {source}"),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn more_than_any_host_reserves_is_refused_with_a_remedy() {
        // As much as the host has: no host has all of it in huge pages.
        let len = crate::host_memory() / HUGE_PAGE * HUGE_PAGE;
        match allocate_huge(&[RamRange { start: 0, len }]) {
            Err(error @ Error::HugePages { .. }) => {
                assert!(error.to_string().contains("vm.nr_hugepages="), "{error}");
            }
            Err(Error::NoHugePages { source }) => eprintln!("SKIPPED: no huge pages: {source}"),
            other => panic!("{other:?}"),
        }
    }
}
