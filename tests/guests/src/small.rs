//! Small Linux guests, which start in a moment: Debian's kernel, and one program that answers
//! (`programs/small`).

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::cpio::Archive;
use crate::{Lab, compile, debian_disk, skipped};

/// Where its program listens.
const PORT: u32 = 5000;
/// What its kernel is told. It prints nothing unless something is wrong.
pub const CMDLINE: &str = "console=ttyS0 quiet loglevel=4 panic=-1";
/// The least memory that Debian's kernel, which takes 45 MiB for itself, starts in with it.
pub const LEAST_MEMORY: &str = "72M";
/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often to look for somebody who does not listen yet.
const LOOK: Duration = Duration::from_micros(200);

/// Drivers, in an order in which they can be loaded.
const MODULES: [&str; 8] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "net/vmw_vsock/vsock",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common",
    "net/vmw_vsock/vmw_vsock_virtio_transport",
];

/// What small guests are made of.
#[derive(Clone, Debug)]
pub struct Small {
    /// The kernel, which is the image's.
    pub kernel: PathBuf,
    /// The initial RAM disk, with drivers and the program.
    pub initrd: PathBuf,
}

impl Small {
    /// Makes it in a lab that has an image. `None`, said loudly, if something is missing here.
    ///
    /// # Panics
    ///
    /// If the lab has no image, or cannot be written to.
    #[must_use]
    pub fn make(lab: &Lab) -> Option<Small> {
        let program = compile(lab, "small")?;
        let mut archive = Archive::default();
        archive.console();
        archive.program("init", &fs::read(&program).expect("the program"));
        archive.directory("modules");
        for (index, module) in MODULES.iter().enumerate() {
            let contents = match module_of(lab, module) {
                Ok(contents) => contents,
                Err(error) => {
                    skipped("small guests", &error.to_string());
                    return None;
                }
            };
            archive.program(&format!("modules/{index}.ko"), &contents);
        }
        let initrd = lab.file("small.img", archive.finish());
        Some(Small { kernel: lab.image().kernel().to_owned(), initrd })
    }

    /// The arguments of `lodge` that start a guest in the background, on Lodge's own engine.
    #[must_use]
    pub fn run<'a>(&'a self, name: &'a str, memory: &'a str) -> Vec<&'a str> {
        let path = |path: &'a Path| path.to_str().expect("a path of the lab's");
        let (kernel, initrd) = (path(&self.kernel), path(&self.initrd));
        let mut arguments = vec!["run", "-d", "--name", name, "--memory", memory];
        arguments.extend(["--kernel", kernel, "--initrd", initrd, "--cmdline", CMDLINE]);
        arguments.extend(["--accel", "soft", "--net", "none"]);
        arguments
    }
}

fn module_of(lab: &Lab, module: &str) -> io::Result<Vec<u8>> {
    let disk = lab.image().disk();
    let release = debian_disk::kernel_release(disk)?;
    let file = format!("/lib/modules/{release}/kernel/{module}.ko");
    debian_disk::read(disk, &file, &lab.path("module.ko"))
}

/// The process number of the VMM that runs the guest in this directory, or did.
#[must_use]
pub fn vmm(guest: &Path) -> Option<u32> {
    // The number, and when that process was started.
    let text = fs::read_to_string(guest.join("vmm.pid")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// A conversation with the program of a small guest, by the guest's socket device.
#[derive(Debug)]
pub struct Talk {
    stream: BufReader<UnixStream>,
}

/// What the program says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How many lines it has answered.
    pub count: u64,
    /// The sum over its memory, if that was asked for.
    pub sum: Option<String>,
}

impl Talk {
    /// With the guest in this directory, which is waited for.
    ///
    /// # Panics
    ///
    /// If it does not answer.
    #[must_use]
    #[track_caller]
    pub fn with(guest: &Path) -> Talk {
        let socket = guest.join("vsock.sock");
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Talk::connect(&socket) {
                Ok(talk) => return talk,
                Err(error) => assert!(Instant::now() < deadline, "{}: {error}", socket.display()),
            }
            thread::sleep(LOOK);
        }
    }

    fn connect(socket: &Path) -> io::Result<Talk> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        writeln!(stream, "CONNECT {PORT}")?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line)?;
        if line.starts_with("OK ") { Ok(Talk { stream }) } else { Err(io::Error::other("no OK")) }
    }

    /// Says a line.
    ///
    /// # Errors
    ///
    /// If the guest is gone.
    pub fn ask(&mut self, line: &str) -> io::Result<Answer> {
        writeln!(self.stream.get_mut(), "{line}")?;
        let mut said = String::new();
        self.stream.read_line(&mut said)?;
        let mut words = said.split_whitespace().map(str::to_owned);
        let count = words.next().and_then(|word| word.parse().ok());
        let count = count.ok_or_else(|| io::Error::other(format!("the guest said {said:?}")))?;
        Ok(Answer { count, sum: words.next() })
    }
}
