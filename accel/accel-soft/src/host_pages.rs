//! Pages of the host that are mapped at more than one place.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// An anonymous file whose pages may be mapped executable.
pub fn memory_file(name: &CStr, size: usize) -> io::Result<OwnedFd> {
    // Kernels before 6.3 do not know MFD_EXEC and refuse it.
    let create = |flags| {
        // SAFETY: `name` is a C string that outlives the call.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that memfd_create just returned belongs to nobody else.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    let file = create(libc::MFD_CLOEXEC | libc::MFD_EXEC).or_else(|_| create(libc::MFD_CLOEXEC))?;
    let size = libc::off_t::try_from(size).map_err(io::Error::other)?;
    // SAFETY: a system call on a descriptor that we own; it touches no memory of ours.
    if unsafe { libc::ftruncate(file.as_raw_fd(), size) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// Maps all of a file.
pub fn map(file: &OwnedFd, size: usize, protection: i32) -> io::Result<NonNull<u8>> {
    // SAFETY: a new mapping at an address of the kernel's choice disturbs no other memory.
    let at = unsafe {
        libc::mmap(std::ptr::null_mut(), size, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mmap returned address 0"))
}

/// Takes back what [`map`] gave.
pub fn unmap(at: NonNull<u8>, size: usize) {
    // SAFETY: `map` made this mapping with this size, and its owner goes away.
    unsafe { libc::munmap(at.as_ptr().cast(), size) };
}
