//! Connections to TCP ports of the guest's loopback interface.

use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpStream};
use std::thread;

use agent_protocol::Reply;

use crate::session::reply;

/// Connects `stream`, from which `rest` was read already, to the port, until both sides have ended.
pub fn run(mut stream: &File, rest: Vec<u8>, port: u16) -> io::Result<()> {
    let local = (Ipv4Addr::LOCALHOST, port);
    let target = TcpStream::connect(local)
        .or_else(|_| TcpStream::connect((Ipv6Addr::LOCALHOST, port)))
        .map_err(|e| io::Error::new(e.kind(), format!("port {port} of the guest: {e}")))?;
    reply(stream, &Reply::Started)?;
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = (&target).write_all(&rest);
            let _ = io::copy(&mut &*stream, &mut &target);
            let _ = target.shutdown(Shutdown::Write);
        });
        let _ = io::copy(&mut &target, &mut stream);
        // The connection of a program that is done may be closed: the other half ends with it.
        let _ = rustix::net::shutdown(stream, rustix::net::Shutdown::Write);
    });
    Ok(())
}
