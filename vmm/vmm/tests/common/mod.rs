//! A VMM whose API is served, with a guest of a few instructions.

#![allow(dead_code)] // Each test program uses a part of it.

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmm_api::Event;
use vmm_client::Client;

/// How long things may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// hlt; jmp back
pub const SLEEPS: &[u8] = &[0xf4, 0xeb, 0xfd];
/// again: mov dx, 0x3fd; in al, dx; test al, 1; jz again; mov dx, 0x3f8; in al, dx; out dx, al;
/// jmp again
pub const ECHOES: &[u8] = &[
    0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0xeb,
    0xef,
];
/// mov dx, 0x602; mov ax, 0x100; out dx, ax (PWRBTN_EN); mov dx, 0x3f8; mov al, 'r'; out dx, al;
/// again: mov dx, 0x600; in ax, dx; test ah, 1; jz again; mov dx, 0x604; mov ax, 0x3400; out dx, ax;
/// hlt; jmp back
pub const HEEDS_POWER_BUTTON: &[u8] = &[
    0x66, 0xba, 0x02, 0x06, 0x66, 0xb8, 0x00, 0x01, 0x66, 0xef, 0x66, 0xba, 0xf8, 0x03, 0xb0, b'r',
    0xee, 0x66, 0xba, 0x00, 0x06, 0x66, 0xed, 0xf6, 0xc4, 0x01, 0x74, 0xf5, 0x66, 0xba, 0x04, 0x06,
    0x66, 0xb8, 0x00, 0x34, 0x66, 0xef, 0xf4, 0xeb, 0xfd,
];
/// The same beginning, and then hlt; jmp back: listens to the button and does nothing.
pub const IGNORES_POWER_BUTTON: &[u8] = &[
    0x66, 0xba, 0x02, 0x06, 0x66, 0xb8, 0x00, 0x01, 0x66, 0xef, 0x66, 0xba, 0xf8, 0x03, 0xb0, b'r',
    0xee, 0xf4, 0xeb, 0xfd,
];
/// mov dx, 0x3fd; again: in al, dx; test al, 0x20; jz again; mov dx, 0x3f8; mov al, 'x'; out dx,
/// al; jmp to the beginning: writes for ever
pub const WRITES: &[u8] = &[
    0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xfb, 0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee,
    0xeb, 0xee,
];

/// xor ebx, ebx; again: mov dx, 0x3fd; in al, dx; test al, 1; jz again; mov dx, 0x3f8; in al, dx;
/// inc bl; inc byte [0x200000]; mov al, bl; out dx, al; mov al, [0x200000]; out dx, al; jmp again:
/// counts what it reads, in a register and in memory, and writes both
pub const COUNTS: &[u8] = &[
    0x31, 0xdb, 0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec,
    0xfe, 0xc3, 0xfe, 0x05, 0x00, 0x00, 0x20, 0x00, 0x88, 0xd8, 0xee, 0xa0, 0x00, 0x00, 0x20, 0x00,
    0xee, 0xeb, 0xdf,
];

/// mov dx, 0x628; mov al, 3; out dx, al (GPEs 0 and 1); mov dx, 0x3f8; mov al, 'r'; out dx, al;
/// again: mov dx, 0x644; in eax, dx; mov dx, 0x648; out dx, eax; jmp again:
/// lets go of each device as soon as it is asked to
pub const LETS_GO: &[u8] = &[
    0x66, 0xba, 0x28, 0x06, 0xb0, 0x03, 0xee, 0x66, 0xba, 0xf8, 0x03, 0xb0, b'r', 0xee, 0x66, 0xba,
    0x44, 0x06, 0xed, 0x66, 0xba, 0x48, 0x06, 0xef, 0xeb, 0xf4,
];
/// The same beginning, and then hlt; jmp back: lets go of nothing
pub const CLINGS: &[u8] = &[
    0x66, 0xba, 0x28, 0x06, 0xb0, 0x03, 0xee, 0x66, 0xba, 0xf8, 0x03, 0xb0, b'r', 0xee, 0xf4, 0xeb,
    0xfd,
];

/// A running VMM. Dropped, it is killed.
pub struct Vmm {
    pub child: Child,
    pub events: BufReader<ChildStdout>,
    pub dir: TempDir,
}

impl Vmm {
    /// Starts a guest whose kernel is `code`, as a flat multiboot kernel, with two processors.
    /// `change` is JSON that replaces fields of the configuration.
    pub fn start(code: &[u8], change: serde_json::Value) -> Vmm {
        let mut vmm = Vmm::start_in(tempfile::tempdir().unwrap(), code, change);
        let event = vmm.event();
        assert!(matches!(event, Some(Event::Started { .. })), "{event:?}");
        vmm
    }

    pub fn start_in(dir: TempDir, code: &[u8], change: serde_json::Value) -> Vmm {
        Vmm::start_from(dir, code, change, None)
    }

    /// Starts a guest that goes on from the snapshot in a directory, if there is one.
    pub fn start_from(
        dir: TempDir,
        code: &[u8],
        change: serde_json::Value,
        snapshot: Option<&Path>,
    ) -> Vmm {
        let header = [0x1bad_b002u32, 0x1_0000, 0xe451_4ffe, 0x10_0000, 0x10_0000, 0, 0, 0x10_0020];
        let kernel = dir.path().join("kernel");
        let header = header.map(u32::to_le_bytes);
        std::fs::write(&kernel, [header.as_flattened(), code].concat()).unwrap();
        let mut config = serde_json::json!({
            "name": "test", "cpus": 2, "memory_mib": 16, "serial": "api",
            "boot": { "kernel": kernel }, "debug": { "debug_exit": true },
        });
        if let (Some(config), Some(change)) = (config.as_object_mut(), change.as_object()) {
            config.extend(change.clone());
        }
        let path = dir.path().join("config");
        std::fs::write(&path, config.to_string()).unwrap();
        let socket = dir.path().join("api.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(socket).unwrap();
        let restore = if snapshot.is_some() { "--restore-fd 7 7<\"$3\"" } else { "" };
        let script = format!(
            "exec \"$0\" --config-fd 3 --status-fd 4 --api-fd 5 --directory-fd 6 --detached \
             {restore} 5<&0 3<\"$1\" 4>&1 6<\"$2\" </dev/null 1>&2"
        );
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .arg(env!("CARGO_BIN_EXE_lodge-vmm"))
            .arg(path)
            .arg(dir.path())
            .arg(snapshot.unwrap_or(Path::new("")))
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let events = BufReader::new(child.stdout.take().unwrap());
        Vmm { child, events, dir }
    }

    pub fn event(&mut self) -> Option<Event> {
        let mut line = String::new();
        self.events.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path()).unwrap()
    }

    pub fn client(&self) -> Client {
        Client::new(self.connect()).unwrap()
    }

    /// Waits until the guest has said that it listens: to its power button, or to devices.
    pub fn wait_until_it_listens(&self) {
        let log = self.dir.path().join("console.log");
        wait("a guest that listens", || std::fs::read(&log).is_ok_and(|log| log == b"r"));
    }

    /// Waits for the end; the exit status.
    pub fn end(&mut self) -> i32 {
        let mut status = None;
        wait("the VMM's end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.and_then(|status| status.code()).expect("ended by a signal")
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something is so.
#[track_caller]
pub fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} does not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}
