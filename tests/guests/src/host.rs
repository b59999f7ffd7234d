//! What the host has to be compared with.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use sha2::{Digest, Sha256};

/// Where tools for file systems are, which `PATH` may leave out.
pub(crate) const TOOL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Whether a program is installed.
#[must_use]
pub fn has_tool(name: &str) -> bool {
    TOOL_PATH.split(':').any(|directory| Path::new(directory).join(name).is_file())
}

/// Runs a program of the host to its end.
///
/// # Panics
///
/// If it cannot be started.
#[must_use]
pub fn tool(name: &str, arguments: &[&str]) -> Output {
    Command::new(name)
        .args(arguments)
        .env("PATH", TOOL_PATH)
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"))
}

/// The SHA-256 of a stream, in hexadecimal.
///
/// # Panics
///
/// If it cannot be read.
#[must_use]
pub fn sha256(mut stream: impl Read) -> String {
    let mut hash = Sha256::new();
    let mut bytes = vec![0; 1 << 20];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => hash.update(&bytes[..count]),
            Err(error) => panic!("what is to be hashed cannot be read: {error}"),
        }
    }
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A TCP port of the loopback address that nobody uses.
///
/// # Panics
///
/// If the host has no loopback network.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// Sends back what comes, by TCP and UDP, until the test ends.
#[derive(Clone, Copy, Debug)]
pub struct EchoServer {
    /// Its port, the same for both.
    pub port: u16,
}

impl EchoServer {
    /// Listens on an address of the host.
    ///
    /// # Errors
    ///
    /// If the host does not have the address.
    pub fn start(address: IpAddr) -> io::Result<EchoServer> {
        let listener = TcpListener::bind((address, 0))?;
        let port = listener.local_addr()?.port();
        let socket = UdpSocket::bind(SocketAddr::new(address, port))?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || echo(&stream));
            }
        });
        thread::spawn(move || {
            let mut bytes = [0; 2048];
            while let Ok((count, from)) = socket.recv_from(&mut bytes) {
                let _ = socket.send_to(&bytes[..count], from);
            }
        });
        Ok(EchoServer { port })
    }
}

fn echo(stream: &TcpStream) {
    let (mut reader, mut writer) = (stream, stream);
    let mut bytes = [0; 16384];
    while let Ok(count @ 1..) = reader.read(&mut bytes) {
        if writer.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
}
