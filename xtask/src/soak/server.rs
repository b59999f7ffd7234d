//! The other end of the guest's TCP connections.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// More than this is never sent at once.
const MOST: u64 = 64 << 20;

/// A server on the loopback address, which guests reach as 10.0.2.2.
pub struct Server {
    /// Its port.
    pub port: u16,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    bytes: AtomicU64,
    damaged: AtomicU64,
}

impl Server {
    /// Listens until the program ends.
    pub fn start() -> io::Result<Server> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let counts = Arc::new(Counts::default());
        let server = Server { port, counts: counts.clone() };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counts = counts.clone();
                // What is wrong with a connection is for the guest to tell.
                thread::spawn(move || serve(stream, &counts));
            }
        });
        Ok(server)
    }

    /// The bytes that went either way.
    pub fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::Relaxed)
    }

    /// How often something else came than was sent.
    pub fn damaged(&self) -> u64 {
        self.counts.damaged.load(Ordering::Relaxed)
    }
}

/// Takes a length (8 bytes, little endian), so many bytes, and their checksum (4 bytes). Answers `+`
/// or `-`, as many other bytes, and theirs.
fn serve(mut stream: TcpStream, counts: &Counts) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    stream.set_write_timeout(Some(Duration::from_secs(120)))?;
    let mut number = [0; 8];
    stream.read_exact(&mut number)?;
    let length = u64::from_le_bytes(number);
    if length > MOST {
        return Err(io::Error::other("a length that no client of ours sends"));
    }
    let mut data = vec![0; length as usize];
    stream.read_exact(&mut data)?;
    let mut sum = [0; 4];
    stream.read_exact(&mut sum)?;
    let is_right = crc32(&data) == u32::from_le_bytes(sum);
    if !is_right {
        counts.damaged.fetch_add(1, Ordering::Relaxed);
    }
    // Other bytes, which depend on those that came.
    for (i, byte) in data.iter_mut().enumerate() {
        *byte = byte.wrapping_add(i as u8) ^ 0x5a;
    }
    stream.write_all(if is_right { b"+" } else { b"-" })?;
    stream.write_all(&data)?;
    stream.write_all(&crc32(&data).to_le_bytes())?;
    counts.bytes.fetch_add(2 * length, Ordering::Relaxed);
    Ok(())
}

/// The CRC of Ethernet, ZIP and Python's zlib (RFC 1952, 8).
fn crc32(data: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 != 0 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    let table: [u32; 256] = std::array::from_fn(|i| (0..8).fold(i as u32, |crc, _| step(crc)));
    !data.iter().fold(!0, |crc, &byte| crc >> 8 ^ table[((crc ^ u32::from(byte)) & 0xff) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_the_usual_ones() {
        assert_eq!(crc32(b""), 0);
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn damage_is_noticed() {
        let server = Server::start().unwrap();
        for (sum, answer) in [(crc32(b"abc"), b'+'), (7, b'-')] {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap();
            stream.write_all(&3u64.to_le_bytes()).unwrap();
            stream.write_all(b"abc").unwrap();
            stream.write_all(&sum.to_le_bytes()).unwrap();
            let mut reply = Vec::new();
            stream.read_to_end(&mut reply).unwrap();
            assert_eq!((reply.len(), reply[0]), (8, answer));
            assert_eq!(crc32(&reply[1..4]).to_le_bytes(), reply[4..]);
        }
        assert_eq!((server.damaged(), server.bytes()), (1, 12));
    }
}
