//! Forbidden things are tried from within, in a process that has confined itself as a VMM does: the test
//! program, started once more for each of them.

use std::fs::File;
use std::io::{self, Error};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::ptr;

use runtime::thread::{Role, spawn};
use tempfile::TempDir;

use super::*;

/// Says to the test program which attempt it is to make, as which thread.
const ATTEMPT: &str = "LODGE_TEST_ATTEMPT";
const THREAD: &str = "LODGE_TEST_THREAD";
/// What a confined process says of an attempt.
const DONE: &str = "the attempt succeeded";
const REFUSED: &str = "the attempt was refused: ";

/// What is tried; the value is a system call's.
type Attempt = fn(&Path) -> io::Result<()>;

const ATTEMPTS: &[(&str, Attempt)] = &[
    ("read shadow", |_| File::open("/etc/shadow").map(drop)),
    ("read passwd", |_| File::open("/etc/passwd").map(drop)),
    ("read own", |own| File::open(own.join("kernel")).map(drop)),
    ("make elsewhere", |own| File::create(own.with_extension("elsewhere")).map(drop)),
    ("make own", |own| File::create(own.join("new")).map(drop)),
    // SAFETY: of all these: system calls that are expected to fail or to end the process, with arguments
    // that are valid.
    ("execve", |_| {
        result(unsafe {
            libc::execve(c"/bin/true".as_ptr(), [ptr::null()].as_ptr(), [ptr::null()].as_ptr())
        })
    }),
    ("fork", |_| match unsafe { libc::fork() } {
        0 => std::process::exit(0),
        child => result(child),
    }),
    ("ptrace", |_| result(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } as i32)),
    ("mount", |_| {
        result(unsafe {
            libc::mount(c"none".as_ptr(), c"/tmp".as_ptr(), c"tmpfs".as_ptr(), 0, ptr::null())
        })
    }),
    ("inet", |_| result(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) })),
    ("unix", |_| result(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) })),
    ("packet", |_| result(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) })),
    ("kill another", |_| result(unsafe { libc::kill(1, 0) })),
    ("signal another", |_| result(unsafe { libc::syscall(libc::SYS_tgkill, 1, 1, 0) } as i32)),
    ("setuid", |_| result(unsafe { libc::setuid(0) })),
    ("writable code", |_| {
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let at = unsafe { libc::mmap(ptr::null_mut(), 4096, all, flags, -1, 0) };
        result(if at == libc::MAP_FAILED { -1 } else { 0 })
    }),
    ("data as code", |_| {
        let page = [0u8; 8192];
        let at = page.as_ptr() as usize & !4095;
        result(unsafe { libc::mprotect(at as *mut _, 4096, libc::PROT_READ | libc::PROT_EXEC) })
    }),
    ("io_uring", |_| result(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, 0) } as i32)),
    ("thread", |_| std::thread::Builder::new().spawn(|| ()).map(drop)),
    ("capability", |_| match rustix::thread::capabilities(None)?.permitted.is_empty() {
        true => Err(Error::other("none")),
        false => Ok(()),
    }),
    ("limit", |_| {
        let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        result(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })
    }),
];

fn result(value: i32) -> io::Result<()> {
    if value < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// What is to come of an attempt.
#[derive(Clone, Copy, Debug)]
enum Expected {
    Done,
    Fails,
    /// The process ends, and names this system call.
    Ends(&'static str),
    /// The process ends, and cannot name the call: the C library blocks signals around it.
    EndsMutely,
}

fn role(name: &str) -> Option<Role> {
    Some(match name {
        "vcpu0" => Role::Processor,
        "virtqueue 0" => Role::Queue,
        "disk" => Role::Disk,
        "sockets" => Role::Sockets,
        "user-network" => Role::Network,
        "api" => Role::Api,
        "timers" => Role::Timers,
        "console" => Role::Console,
        _ => return None,
    })
}

/// In the process that is confined: makes the attempt.
fn attempt(name: &str, thread: &str) {
    let (_, attempt) = ATTEMPTS.iter().find(|(known, _)| *known == name).unwrap();
    let own = TempDir::new().unwrap();
    let header = [0x1bad_b002u32, 0x1_0000, 0xe451_4ffe, 0x10_0000, 0x10_0000, 0, 0, 0x10_0020];
    let kernel = own.path().join("kernel");
    std::fs::write(&kernel, header.map(u32::to_le_bytes).as_flattened()).unwrap();
    let nets = match thread {
        "user-network" => serde_json::json!([{}]),
        _ => serde_json::json!([]),
    };
    let config: VmConfig = serde_json::from_value(serde_json::json!({
        "name": "test", "cpus": 1, "memory_mib": 16, "boot": { "kernel": kernel }, "nets": nets,
    }))
    .unwrap();
    let sandbox = begin(&config, &SoftAccelerator::default()).unwrap();
    let files = Files::open(&config, None).unwrap();
    let directory = Directory::over(File::open(own.path()).unwrap().into());
    if let Some(missing) = complete(sandbox, &config, &files, &directory).unwrap() {
        eprintln!("{missing}");
    }
    let place = own.path().to_owned();
    let attempt = move || match attempt(&place) {
        Ok(()) => eprintln!("{DONE}"),
        Err(error) => eprintln!("{REFUSED}{error}"),
    };
    match role(thread) {
        Some(role) => spawn(role, thread, attempt).unwrap().join().unwrap(),
        None => attempt(),
    }
}

fn attempt_elsewhere(name: &str, thread: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "confinement::tests::forbidden_things_are_refused", "--nocapture"])
        .env(ATTEMPT, name)
        .env(THREAD, thread)
        .output()
        .unwrap()
}

#[test]
fn forbidden_things_are_refused() {
    use Expected::{Done, Ends, EndsMutely, Fails};
    if let (Ok(name), Ok(thread)) = (std::env::var(ATTEMPT), std::env::var(THREAD)) {
        return attempt(&name, &thread);
    }
    let main = "main";
    let attempts = [
        ("read shadow", main, Fails),
        ("read passwd", main, Fails),
        ("read own", main, Done),
        ("make elsewhere", main, Fails),
        ("make own", main, Done),
        ("execve", main, Ends("execve")),
        ("fork", main, Ends("clone")),
        ("ptrace", main, Ends("ptrace")),
        ("mount", main, Ends("mount")),
        ("inet", main, Ends("socket")),
        ("unix", main, Done),
        ("packet", main, Ends("socket")),
        ("kill another", main, Ends("kill")),
        ("signal another", main, Ends("tgkill")),
        ("setuid", main, Ends("setuid")),
        ("writable code", main, Ends("mmap")),
        ("data as code", main, Ends("mprotect")),
        ("io_uring", main, Ends("io_uring_setup")),
        ("thread", main, Done),
        ("capability", main, Fails),
        ("limit", main, Ends("prlimit64")),
        ("read own", "vcpu0", Fails),
        ("unix", "vcpu0", Ends("socket")),
        ("thread", "vcpu0", EndsMutely),
        ("execve", "vcpu0", Ends("execve")),
        ("capability", "vcpu0", Ends("capget")),
        ("read own", "virtqueue 0", Fails),
        ("unix", "virtqueue 0", Ends("socket")),
        ("unix", "disk", Ends("socket")),
        ("inet", "sockets", Ends("socket")),
        ("unix", "sockets", Done),
        ("inet", "user-network", Done),
        ("unix", "user-network", Ends("socket")),
        ("read shadow", "user-network", Fails),
        ("packet", "user-network", Ends("socket")),
        ("fork", "user-network", Ends("clone")),
        ("inet", "api", Ends("socket")),
        ("read shadow", "api", Fails),
        ("make own", "api", Done),
        ("read own", "timers", Fails),
        ("unix", "console", Ends("socket")),
    ];
    for (name, thread, expected) in attempts {
        let output = attempt_elsewhere(name, thread);
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("this host's kernel has ") && name.contains(' ') {
            eprintln!("SKIPPED: {name} from {thread}: this host has no Landlock, or an early one");
            continue;
        }
        let is_so = match expected {
            Done => output.status.success() && said.contains(DONE),
            Fails => output.status.success() && said.contains(REFUSED),
            EndsMutely => output.status.signal() == Some(libc::SIGSYS),
            Ends(call) => {
                output.status.signal() == Some(libc::SIGSYS)
                    && said.contains(&format!(" make the system call {call} ("))
                    && (thread == main || said.contains(&format!("the thread {thread} ")))
            }
        };
        assert!(is_so, "{name} from {thread}: {expected:?}, but {}: {said}", output.status);
    }
}
