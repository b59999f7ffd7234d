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

/// Has the host give this process's own memory no transparent huge pages: where it gives them unasked, as Debian's
/// kernel does, a heap of some 100 KiB grows to 2 MiB whenever the host finds the time. Guest RAM, which asks
/// for them (`MADV_HUGEPAGE`), still gets them. To be called before there are other threads.
pub fn refuse_huge_pages() {
    /// Since Linux 6.18: but for mappings that ask.
    const EXCEPT_ADVISED: libc::c_ulong = 1 << 1;
    // Before, it is all or nothing. Guest RAM is shared memory, which has a switch of its own.
    const SWITCH: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let refuse = |flags: libc::c_ulong| {
        // SAFETY: the call touches no memory.
        0 == unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1 as libc::c_ulong, flags, 0, 0) }
    };
    if !refuse(EXCEPT_ADVISED)
        && std::fs::read_to_string(SWITCH)
            .is_ok_and(|choices| choices.contains("[never]") || choices.contains("[deny]"))
    {
        refuse(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_refused() {
        // SAFETY: the call touches no memory.
        let is_refused = || unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0) };
        assert_eq!(is_refused(), 0);
        refuse_huge_pages();
        if is_refused() == 0 {
            eprintln!("SKIPPED: this host's kernel would refuse guest RAM its huge pages as well");
        }
    }
}
