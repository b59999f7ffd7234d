//! The agent in a guest: it runs commands and copies files for `lodge`, to which it listens at a
//! port of the virtio socket device. Whoever can reach that port is the guest's owner on the host,
//! so nobody is asked for a password.
//!
//! It is a program of its own that needs nothing of the guest but a kernel: it is linked statically,
//! so that it also runs in an initial RAM disk. Each connection has a thread.
//!
//! As the first process of a guest it is that guest's [`init`], and starts itself as the agent.

mod exec;
mod forward;
mod init;
mod interface;
mod renew;
mod session;
mod spawn;
mod users;

use std::io;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener, VsockStream};

/// How often, and how far apart, the host is told that the agent is there, until it is heard.
const ATTEMPTS: u32 = 600;
const PAUSE: Duration = Duration::from_millis(100);

/// Tells the host that the agent is there, by a connection that the host refuses.
fn announce() {
    for _ in 0..ATTEMPTS {
        match VsockStream::connect_with_cid_port(VMADDR_CID_HOST, agent_protocol::PORT) {
            // The driver of the device may not be loaded yet.
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => thread::sleep(PAUSE),
            _ => return,
        }
    }
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        init::run();
    }
    if std::env::args_os().len() > 1 {
        eprintln!("lodge-agent {}: takes no arguments", env!("CARGO_PKG_VERSION"));
        return ExitCode::from(2);
    }
    let listener = match VsockListener::bind_with_cid_port(VMADDR_CID_ANY, agent_protocol::PORT) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("lodge-agent: cannot listen for lodge: {error}");
            return ExitCode::FAILURE;
        }
    };
    thread::spawn(announce);
    loop {
        match listener.accept() {
            // Other programs in the guest are not its owner.
            Ok((_, peer)) if peer.cid() != VMADDR_CID_HOST => {}
            Ok((stream, _)) => {
                let serve = move || session::serve(stream.into());
                if let Err(error) = thread::Builder::new().spawn(serve) {
                    eprintln!("lodge-agent: no thread for a connection: {error}");
                }
            }
            Err(error) => {
                eprintln!("lodge-agent: cannot accept a connection: {error}");
                thread::sleep(PAUSE);
            }
        }
    }
}
