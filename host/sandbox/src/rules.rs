//! Which system calls are made for what. Numbers and arguments are x86-64 Linux's.

use libc::{
    AF_INET, AF_INET6, AF_UNIX, CLONE_THREAD, PROT_EXEC, PROT_READ, SYS_accept4, SYS_access,
    SYS_bind, SYS_brk, SYS_clock_getres, SYS_clock_gettime, SYS_clock_nanosleep, SYS_clone,
    SYS_clone3, SYS_close, SYS_connect, SYS_copy_file_range, SYS_dup, SYS_epoll_create1,
    SYS_epoll_ctl, SYS_epoll_pwait, SYS_epoll_pwait2, SYS_epoll_wait, SYS_eventfd2, SYS_exit,
    SYS_exit_group, SYS_faccessat, SYS_faccessat2, SYS_fallocate, SYS_fchmod, SYS_fchmodat,
    SYS_fcntl, SYS_fdatasync, SYS_fgetxattr, SYS_flistxattr, SYS_flock, SYS_fremovexattr,
    SYS_fsetxattr, SYS_fstat, SYS_fstatfs, SYS_fsync, SYS_ftruncate, SYS_futex, SYS_getcwd,
    SYS_getdents64, SYS_getpeername, SYS_getpid, SYS_getrandom, SYS_getsockname, SYS_getsockopt,
    SYS_gettid, SYS_gettimeofday, SYS_ioctl, SYS_kill, SYS_landlock_add_rule,
    SYS_landlock_create_ruleset, SYS_landlock_restrict_self, SYS_link, SYS_linkat, SYS_listen,
    SYS_lseek, SYS_lstat, SYS_madvise, SYS_memfd_create, SYS_mkdir, SYS_mkdirat, SYS_mknodat,
    SYS_mmap, SYS_mprotect, SYS_mremap, SYS_munmap, SYS_nanosleep, SYS_newfstatat, SYS_open,
    SYS_openat, SYS_openat2, SYS_pkey_alloc, SYS_pkey_free, SYS_pkey_mprotect, SYS_poll, SYS_ppoll,
    SYS_prctl, SYS_pread64, SYS_preadv, SYS_preadv2, SYS_pwrite64, SYS_pwritev, SYS_pwritev2,
    SYS_read, SYS_readlink, SYS_readlinkat, SYS_readv, SYS_recvfrom, SYS_recvmsg, SYS_rename,
    SYS_renameat, SYS_renameat2, SYS_restart_syscall, SYS_rmdir, SYS_rseq, SYS_rt_sigaction,
    SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sched_getaffinity, SYS_sched_setaffinity,
    SYS_sched_yield, SYS_seccomp, SYS_sendmsg, SYS_sendto, SYS_set_robust_list, SYS_setsockopt,
    SYS_shutdown, SYS_sigaltstack, SYS_socket, SYS_socketpair, SYS_stat, SYS_statfs, SYS_statx,
    SYS_symlinkat, SYS_syncfs, SYS_sysinfo, SYS_tgkill, SYS_uname, SYS_unlink, SYS_unlinkat,
    SYS_utimensat, SYS_write, SYS_writev, c_long,
};

/// A system call that is allowed.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// Whatever its arguments are.
    Any(c_long),
    /// If an argument, by its number, has this value. Its lower half counts.
    Is(c_long, u8, u32),
    /// If an argument has these bits: the mask, and what they are.
    Bits(c_long, u8, u32, u32),
    /// If an argument is the number of this process.
    Own(c_long, u8),
}

use Rule::{Any, Bits, Is, Own};

/// Memory, time, waiting, and what is open already: every thread.
pub const BASIC: &[Rule] = &[
    Any(SYS_read),
    Any(SYS_write),
    Any(SYS_readv),
    Any(SYS_writev),
    Any(SYS_pread64),
    Any(SYS_pwrite64),
    Any(SYS_preadv),
    Any(SYS_pwritev),
    Any(SYS_preadv2),
    Any(SYS_pwritev2),
    Any(SYS_lseek),
    Any(SYS_close),
    Any(SYS_fcntl),
    Any(SYS_dup),
    Any(SYS_fstat),
    Any(SYS_newfstatat),
    Any(SYS_statx),
    Any(SYS_poll),
    Any(SYS_ppoll),
    Any(SYS_epoll_create1),
    Any(SYS_epoll_ctl),
    Any(SYS_epoll_wait),
    Any(SYS_epoll_pwait),
    Any(SYS_epoll_pwait2),
    Any(SYS_eventfd2),
    Any(SYS_futex),
    Any(SYS_set_robust_list),
    Any(SYS_rseq),
    Any(SYS_sched_yield),
    Any(SYS_sched_getaffinity),
    Any(SYS_getpid),
    Any(SYS_gettid),
    Own(SYS_tgkill, 0),
    Any(SYS_exit),
    Any(SYS_exit_group),
    Any(SYS_restart_syscall),
    Any(SYS_clock_gettime),
    Any(SYS_clock_getres),
    Any(SYS_clock_nanosleep),
    Any(SYS_gettimeofday),
    Any(SYS_nanosleep),
    Any(SYS_rt_sigaction),
    Any(SYS_rt_sigprocmask),
    Any(SYS_rt_sigreturn),
    Any(SYS_sigaltstack),
    Any(SYS_brk),
    Any(SYS_madvise),
    Any(SYS_mremap),
    Any(SYS_munmap),
    Bits(SYS_mmap, 2, PROT_EXEC as u32, 0),
    Bits(SYS_mprotect, 2, PROT_EXEC as u32, 0),
    Any(SYS_getrandom),
    Is(SYS_prctl, 0, libc::PR_SET_NAME as u32),
    Is(SYS_prctl, 0, libc::PR_GET_NAME as u32),
    Is(SYS_prctl, 0, libc::PR_SET_TIMERSLACK as u32),
    // Names of mappings, which the C library gives where the kernel can keep them.
    Is(SYS_prctl, 0, libc::PR_SET_VMA as u32),
    // Is refused without ending the process: the C library falls back to clone.
    Any(SYS_clone3),
];

/// Requests to KVM: all have its letter (Documentation/userspace-api/ioctl/ioctl-number.rst).
pub const KVM: &[Rule] = &[Bits(SYS_ioctl, 1, 0xff00, 0xae00)];

/// The interpreter helps KVM out, and generates code for what it has the host's processor do.
pub const ASSISTANCE: &[Rule] = &[Any(SYS_memfd_create), Any(SYS_ftruncate)];

/// Those of KVM's requests by which devices raise interrupts: a line, a message, and what messages are
/// led by (KVM_IRQ_LINE, KVM_SIGNAL_MSI, KVM_SET_GSI_ROUTING, KVM_IRQFD).
pub const INTERRUPTS: &[Rule] = &[
    Is(SYS_ioctl, 1, 0x4008_ae61),
    Is(SYS_ioctl, 1, 0x4020_aea5),
    Is(SYS_ioctl, 1, 0x4008_ae6a),
    Is(SYS_ioctl, 1, 0x4020_ae76),
];

/// Programs mirrored at their own addresses, under a protection key.
pub const MIRROR: &[Rule] = &[
    Any(SYS_pkey_alloc),
    Any(SYS_pkey_free),
    Bits(SYS_pkey_mprotect, 2, PROT_EXEC as u32, 0),
    Any(SYS_memfd_create),
    Any(SYS_ftruncate),
];

/// A thread chooses on which processors it runs.
pub const AFFINITY: &[Rule] = &[Is(SYS_sched_setaffinity, 0, 0)];

/// Generated code, which is never writable at the address where it runs.
pub const CODE: &[Rule] = &[Is(SYS_mmap, 2, (PROT_READ | PROT_EXEC) as u32)];

/// Contents of files that are open.
pub const DISK: &[Rule] = &[
    Any(SYS_fsync),
    Any(SYS_fdatasync),
    Any(SYS_fallocate),
    Any(SYS_ftruncate),
    Any(SYS_copy_file_range),
];

/// Files by their names, as far as Landlock lets them be opened.
pub const FILES: &[Rule] = &[
    Any(SYS_getdents64),
    Any(SYS_mkdir),
    Any(SYS_mkdirat),
    Any(SYS_rename),
    Any(SYS_renameat),
    Any(SYS_renameat2),
    Any(SYS_link),
    Any(SYS_linkat),
    Any(SYS_rmdir),
    Any(SYS_fchmod),
    Any(SYS_fchmodat),
    Any(SYS_flock),
    Any(SYS_statfs),
    Any(SYS_fstatfs),
    Any(SYS_memfd_create),
    Any(SYS_sysinfo),
    Any(SYS_uname),
];

/// Files are removed.
pub const REMOVAL: &[Rule] = &[Any(SYS_unlink), Any(SYS_unlinkat)];

/// Names of files are looked at. A thread that opens none fails to, and goes on: a panic looks for the
/// names of functions.
pub const NAMES: &[Rule] = &[
    Any(SYS_open),
    Any(SYS_openat),
    Any(SYS_stat),
    Any(SYS_lstat),
    Any(SYS_access),
    Any(SYS_faccessat),
    Any(SYS_faccessat2),
    Any(SYS_readlink),
    Any(SYS_readlinkat),
    Any(SYS_getcwd),
];

/// Sockets that are open, and those who connect to them.
pub const SOCKETS: &[Rule] = &[
    Any(SYS_accept4),
    Any(SYS_sendto),
    Any(SYS_recvfrom),
    Any(SYS_sendmsg),
    Any(SYS_recvmsg),
    Any(SYS_shutdown),
    Any(SYS_getsockname),
    Any(SYS_getpeername),
    Any(SYS_getsockopt),
    Any(SYS_setsockopt),
    Is(SYS_ioctl, 1, libc::FIONBIO as u32),
    Is(SYS_ioctl, 1, libc::FIONREAD as u32),
];

/// Programs of this host are reached by their Unix sockets.
pub const UNIX: &[Rule] =
    &[Is(SYS_socket, 0, AF_UNIX as u32), Is(SYS_socketpair, 0, AF_UNIX as u32), Any(SYS_connect)];

/// Other hosts.
pub const INET: &[Rule] = &[
    Is(SYS_socket, 0, AF_INET as u32),
    Is(SYS_socket, 0, AF_INET6 as u32),
    Any(SYS_bind),
    Any(SYS_listen),
    Any(SYS_connect),
    // The number of a network interface.
    Is(SYS_ioctl, 1, libc::SIOCGIFINDEX as u32),
];

/// Terminals.
pub const TERMINAL: &[Rule] = &[
    Is(SYS_ioctl, 1, libc::TCGETS as u32),
    Is(SYS_ioctl, 1, libc::TCSETS as u32),
    Is(SYS_ioctl, 1, libc::TCSETSW as u32),
    Is(SYS_ioctl, 1, libc::TCSETSF as u32),
    Is(SYS_ioctl, 1, libc::TIOCGWINSZ as u32),
];

/// Threads, but no processes.
pub const THREADS: &[Rule] = &[Bits(SYS_clone, 0, CLONE_THREAD as u32, CLONE_THREAD as u32)];

/// Files of a folder that is shared with the guest: all that can be done with them by descriptors and single
/// names. Landlock says in which folders.
pub const FOLDER: &[Rule] = &[
    Any(SYS_openat2),
    Any(SYS_getdents64),
    Any(SYS_mkdirat),
    Any(SYS_mknodat),
    Any(SYS_symlinkat),
    Any(SYS_linkat),
    Any(SYS_renameat2),
    Any(SYS_unlinkat),
    Any(SYS_fchmodat),
    Any(SYS_utimensat),
    Any(SYS_fstatfs),
    Any(SYS_fsync),
    Any(SYS_fdatasync),
    Any(SYS_syncfs),
    Any(SYS_ftruncate),
    Any(SYS_fallocate),
    Any(SYS_copy_file_range),
    Any(SYS_fgetxattr),
    Any(SYS_flistxattr),
    Any(SYS_fsetxattr),
    Any(SYS_fremovexattr),
];

/// A thread is confined more than the one that made it.
pub const CONFINEMENT: &[Rule] = &[
    Any(SYS_landlock_create_ruleset),
    Any(SYS_landlock_add_rule),
    Any(SYS_landlock_restrict_self),
    Is(SYS_seccomp, 0, libc::SECCOMP_SET_MODE_FILTER),
    Is(SYS_prctl, 0, libc::PR_SET_NO_NEW_PRIVS as u32),
    Is(SYS_prctl, 0, libc::PR_CAP_AMBIENT as u32),
    Any(libc::SYS_capget),
    Any(libc::SYS_capset),
];

/// The process ends itself as by Ctrl-C.
pub const OWN_END: &[Rule] = &[Own(SYS_kill, 0)];
