//! Forbidden things are tried from within, in a process that has confined itself as a VMM does: the test
//! program, started once more for each of them.

use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use runtime::thread::{Role, spawn};
use tempfile::TempDir;

use super::*;

/// Says to the test program which attempt it is to make, as which thread.
const ATTEMPT: &str = "LODGE_TEST_ATTEMPT";
const THREAD: &str = "LODGE_TEST_THREAD";
/// What a confined process says of an attempt.
const DONE: &str = "the attempt succeeded";
const REFUSED: &str = "the attempt was refused: ";

/// What is tried, where the guest's own directory is at a path.
type Attempt = fn(&Path) -> io::Result<()>;

const ATTEMPTS: &[(&str, Attempt)] = &[
    ("read shadow", |_| File::open("/etc/shadow").map(drop)),
    ("read passwd", |_| File::open("/etc/passwd").map(drop)),
    ("read own", |own| File::open(own.join("kernel")).map(drop)),
    ("make elsewhere", |own| File::create(own.with_extension("elsewhere")).map(drop)),
    ("make own", |own| File::create(own.join("new")).map(drop)),
    ("make in folder", |own| File::create(shared(own).join("new")).map(drop)),
    ("link in folder", |own| {
        Ok(rustix::fs::symlinkat("/", rustix::fs::CWD, shared(own).join("new"))?)
    }),
    ("make in folder for reading", |own| File::create(for_reading(own).join("new")).map(drop)),
    ("read in folder for reading", |own| File::open(for_reading(own)).map(drop)),
    ("thread", |_| std::thread::Builder::new().spawn(|| ()).map(drop)),
    ("execve", |_| call(libc::SYS_execve, [c"/bin/true".as_ptr() as i64, 0, 0])),
    ("fork", |_| call(libc::SYS_fork, [0; 3])),
    ("clone", |_| call(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0])),
    ("ptrace", |_| call(libc::SYS_ptrace, [libc::PTRACE_TRACEME.into(), 0, 0])),
    ("mount", |_| call(libc::SYS_mount, [0; 3])),
    ("inet", |_| socket(libc::AF_INET)),
    ("unix", |_| socket(libc::AF_UNIX)),
    ("packet", |_| socket(libc::AF_PACKET)),
    ("kill another", |_| call(libc::SYS_kill, [1, 0, 0])),
    ("signal another", |_| call(libc::SYS_tgkill, [1, 1, 0])),
    ("setuid", |_| call(libc::SYS_setuid, [0; 3])),
    ("writable code", |_| call(libc::SYS_mmap, [0, 4096, ALL.into()])),
    ("data as code", |_| call(libc::SYS_mprotect, [0, 0, ALL.into()])),
    ("io_uring", |_| call(libc::SYS_io_uring_setup, [1, 0, 0])),
    ("limit", |_| call(libc::SYS_prlimit64, [0, libc::RLIMIT_NOFILE.into(), 0])),
    ("capability", |_| match rustix::thread::capabilities(None)?.permitted.is_empty() {
        true => Err(io::Error::other("none")),
        false => Ok(()),
    }),
];

const ALL: i32 = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;

fn call(number: libc::c_long, [a, b, c]: [i64; 3]) -> io::Result<()> {
    // SAFETY: none of the calls above changes memory: addresses are null, or lengths are. (If one
    // succeeds that makes a process, both are about to end.)
    match unsafe { libc::syscall(number, a, b, c, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A folder that the guest shares.
fn shared(own: &Path) -> PathBuf {
    own.with_extension("shared")
}

/// One that it can only read.
fn for_reading(own: &Path) -> PathBuf {
    own.with_extension("for-reading")
}

fn socket(family: i32) -> io::Result<()> {
    call(libc::SYS_socket, [family.into(), libc::SOCK_STREAM.into(), 0])
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
        "folder" => Role::Folder,
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
    let folders = [shared(own.path()), for_reading(own.path())];
    folders.iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
    let config: VmConfig = serde_json::from_value(serde_json::json!({
        "name": "test", "cpus": 1, "memory_mib": 16, "boot": { "kernel": kernel }, "nets": nets,
        "folders": [
            { "path": folders[0], "guest": "/a" },
            { "path": folders[1], "guest": "/b", "readonly": true },
        ],
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

/// `place` is for its files, which it may not remove itself.
fn attempt_elsewhere(name: &str, thread: &str, place: &Path) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "confinement::tests::forbidden_things_are_refused", "--nocapture"])
        .env(ATTEMPT, name)
        .env(THREAD, thread)
        .env("TMPDIR", place)
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
        ("fork", main, Ends("fork")),
        ("clone", main, Ends("clone")),
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
        ("make in folder", main, Done),
        ("make in folder", "folder", Done),
        ("link in folder", "folder", Done),
        ("read in folder for reading", "folder", Done),
        ("make in folder for reading", "folder", Fails),
        ("make in folder for reading", main, Fails),
        ("make in folder", "virtqueue 0", Fails),
        ("make in folder", "disk", Fails),
        ("read own", "folder", Fails),
        ("make own", "folder", Fails),
        ("read passwd", "folder", Fails),
        ("unix", "folder", Ends("socket")),
        ("execve", "folder", Ends("execve")),
        ("thread", "folder", EndsMutely),
        ("inet", "sockets", Ends("socket")),
        ("unix", "sockets", Done),
        ("inet", "user-network", Done),
        ("unix", "user-network", Ends("socket")),
        ("read shadow", "user-network", Fails),
        ("packet", "user-network", Ends("socket")),
        ("clone", "user-network", Ends("clone")),
        ("inet", "api", Ends("socket")),
        ("read shadow", "api", Fails),
        ("make own", "api", Done),
        ("read own", "timers", Fails),
        ("unix", "console", Ends("socket")),
    ];
    let place = TempDir::new().unwrap();
    for (name, thread, expected) in attempts {
        let output = attempt_elsewhere(name, thread, place.path());
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
