//! Prints how fast TCP data goes through the user-mode network, from a guest to the host and
//! back. The guest is smoltcp's stack in this process, so this is a lower bound.

#[path = "../tests/user/guest.rs"]
#[allow(dead_code, unreachable_pub)]
mod guest;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Instant;

use guest::{GATEWAY, Guest};
use net::user::UserNetworkConfig;

const TOTAL: usize = 1 << 30;
const BUFFER: usize = 1 << 20;

fn main() {
    for mtu in [1500, 9000, 65521] {
        let up = measure(mtu, true);
        let down = measure(mtu, false);
        println!("mtu {mtu:5}: guest to host {up:6.0} MB/s, host to guest {down:6.0} MB/s");
    }
}

fn measure(mtu: u16, up: bool) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let port = listener.local_addr().expect("its address").port();
    let host = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a guest");
        let mut buffer = vec![0; BUFFER];
        let mut count = 0;
        while count < TOTAL {
            count += if up { stream.read(&mut buffer) } else { stream.write(&buffer) }
                .expect("an open connection");
        }
    });
    let mut guest = Guest::new(UserNetworkConfig { mtu, ..UserNetworkConfig::default() });
    let handle = guest.connect(SocketAddr::new(GATEWAY.into(), port), 40000, BUFFER);
    guest.until("a connection", |guest| guest.tcp(handle).may_send().then_some(()));
    let start = Instant::now();
    let chunk = vec![0; BUFFER];
    let mut count = 0;
    while count < TOTAL {
        let socket = guest.tcp(handle);
        if up && socket.can_send() {
            count += socket.send_slice(&chunk).expect("an open connection");
        }
        while !up && socket.can_recv() {
            count += socket.recv(|data| (data.len(), data.len())).expect("an open connection");
        }
        guest.poll();
    }
    while up && !host.is_finished() {
        guest.poll();
    }
    let seconds = start.elapsed().as_secs_f64();
    host.join().expect("the host's thread");
    count as f64 / seconds / 1e6
}
