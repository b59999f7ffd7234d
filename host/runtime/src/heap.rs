//! Memory of this process's own.

/// Gives memory back to the host that was freed, of which the allocator keeps much otherwise. What a VMM
/// needs at its start, its configuration and the guest's kernel above all, is many times what it needs later. It takes
/// some microseconds for each MiB. Other allocators than glibc's are left to themselves.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing but what the allocator knows to be free, and locks that.
    unsafe {
        libc::malloc_trim(0);
    }
}
