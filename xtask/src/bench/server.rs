//! The server that network workloads talk to (`bench/micro/network.c`).

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use anyhow::Context;

/// How much is read and written at once.
const CHUNK: usize = 256 << 10;

/// Starts the server, which lives as long as this program; its port on the loopback interface.
pub fn start() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port to listen at")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // What goes wrong shows at the other end.
            thread::spawn(move || serve(stream));
        }
    });
    Ok(port)
}

/// Takes one request: which way data goes, as the client sees it, and how many bytes.
fn serve(mut stream: TcpStream) -> io::Result<()> {
    let (mut way, mut bytes) = ([0], [0; 8]);
    stream.read_exact(&mut way)?;
    stream.read_exact(&mut bytes)?;
    let bytes = u64::from_ne_bytes(bytes);
    let mut buffer = vec![0; CHUNK];
    let mut left = bytes;
    if way == *b"r" {
        while left > 0 {
            let chunk = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            stream.write_all(&buffer[..chunk])?;
            left -= chunk as u64;
        }
        return Ok(());
    }
    while left > 0 {
        match stream.read(&mut buffer)? {
            0 => break,
            count => left = left.saturating_sub(count as u64),
        }
    }
    stream.write_all(&(bytes - left).to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(way: u8, bytes: u64) -> TcpStream {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, start().unwrap())).unwrap();
        stream.write_all(&[way]).unwrap();
        stream.write_all(&bytes.to_ne_bytes()).unwrap();
        stream
    }

    #[test]
    fn bytes_go_either_way() {
        let mut received = Vec::new();
        ask(b'r', 1_000_000).read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), 1_000_000);
        let mut stream = ask(b's', 1_000_000);
        stream.write_all(&received).unwrap();
        let mut came = [0; 8];
        stream.read_exact(&mut came).unwrap();
        assert_eq!(u64::from_ne_bytes(came), 1_000_000);
    }
}
