//! The rate of the TSC as the kernel knows it, which it tells to programs that measure themselves
//! (perf_event_open(2), `cap_user_time`).

use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;

/// The first form of `struct perf_event_attr` (`PERF_ATTR_SIZE_VER0`).
#[repr(C)]
#[derive(Default)]
struct PerfEventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}

const PERF_TYPE_SOFTWARE: u32 = 1;
/// An event that never happens.
const PERF_COUNT_SW_DUMMY: u64 = 9;
/// `disabled`, `exclude_kernel` and `exclude_hv`: what everybody may have, of themselves.
const FLAGS: u64 = 1 | 1 << 5 | 1 << 6;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;

/// Offsets in `struct perf_event_mmap_page`.
const CAPABILITIES: usize = 40;
const TIME_SHIFT: usize = 50;
const TIME_MULT: usize = 52;
/// `cap_user_time`.
const HAS_TIME: u64 = 1 << 3;

const PAGE: usize = 4096;

/// The TSC's frequency in Hz by which the kernel keeps time, to some parts in a billion. `None` where
/// it does not keep time by the TSC, or lets this program not know.
pub fn frequency_hz() -> Option<u64> {
    let (mult, shift) = scale().ok().flatten()?;
    rate(mult, shift)
}

/// `nanoseconds = ticks * mult >> shift`.
fn rate(mult: u32, shift: u16) -> Option<u64> {
    let ticks = 1_000_000_000u128.checked_shl(shift.into()).filter(|_| shift < 64)?;
    u64::try_from(ticks.checked_div(mult.into())?).ok().filter(|&hz| hz > 0)
}

fn scale() -> Result<Option<(u32, u16)>> {
    let attr = PerfEventAttr {
        kind: PERF_TYPE_SOFTWARE,
        size: size_of::<PerfEventAttr>() as u32,
        config: PERF_COUNT_SW_DUMMY,
        flags: FLAGS,
        ..Default::default()
    };
    // SAFETY: the call reads the structure, as long as it says it is. It is about this thread (0), on
    // any processor (-1), in no group (-1).
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC)
    };
    let fd =
        libc::c_int::try_from(fd).ok().filter(|&fd| fd >= 0).ok_or_else(Error::last_os_error)?;
    // SAFETY: the descriptor was just made, and belongs to nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    // SAFETY: a new mapping, wherever there is room.
    let page = unsafe {
        libc::mmap(ptr::null_mut(), PAGE, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    if page == libc::MAP_FAILED {
        return Err(Error::last_os_error());
    }
    let page: *const u8 = page.cast();
    // SAFETY: the offsets are within the page, and aligned; each bit pattern is a number. The scale
    // stays the same as long as the kernel runs.
    let (capabilities, mult, shift) = unsafe {
        (
            page.add(CAPABILITIES).cast::<u64>().read_volatile(),
            page.add(TIME_MULT).cast::<u32>().read_volatile(),
            page.add(TIME_SHIFT).cast::<u16>().read_volatile(),
        )
    };
    // SAFETY: the mapping was made with this length, and nobody uses it any longer.
    unsafe { libc::munmap(page.cast_mut().cast(), PAGE) };
    Ok((capabilities & HAS_TIME != 0).then_some((mult, shift)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_a_rate() {
        assert_eq!(rate(1 << 31, 32), Some(2_000_000_000));
        assert_eq!(rate(976_128_930, 31), Some(2_200_000_002));
        assert_eq!((rate(0, 31), rate(1, 64), rate(u32::MAX, 0)), (None, None, None));
    }

    #[test]
    fn the_kernels_rate_is_what_is_measured() {
        match frequency_hz() {
            Some(hz) => {
                // On a busy machine a measurement may be interrupted, but not each.
                let measure = |_| crate::tsc::measure_hz(std::time::Duration::from_millis(20));
                let measured: Vec<u64> = (0..5).map(measure).collect();
                let is_right = |&measured: &u64| hz.abs_diff(measured) < hz / 1000;
                assert!(measured.iter().any(is_right), "{hz} {measured:?}");
            }
            None => eprintln!("SKIPPED: this kernel does not tell the rate of the TSC"),
        }
    }
}
