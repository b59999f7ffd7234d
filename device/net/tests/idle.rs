//! What an idle network costs. Alone in its process, because it looks at all the network's
//! threads there.

#[path = "user/guest.rs"]
#[allow(dead_code)]
mod guest;

use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use guest::{GATEWAY, Guest};
use net::user::UserNetworkConfig;

/// The processor time that the network's threads have taken, in hundredths of a second: fields
/// 14 and 15 of proc_pid_stat(5).
fn ticks() -> u64 {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).ok())
        .filter_map(|stat| {
            let (name, fields) = stat.rsplit_once(") ")?;
            let fields: Vec<&str> = fields.split(' ').collect();
            let ticks = fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?;
            name.ends_with("(user-network").then_some(ticks)
        })
        .reduce(|a, b| a + b)
        .expect("a network's thread")
}

#[test]
fn idle_connections_cost_no_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = SocketAddr::new(GATEWAY.into(), listener.local_addr().unwrap().port());
    let mut guest = Guest::new(UserNetworkConfig::default());
    let handles: Vec<_> = (0..50).map(|i| guest.connect(to, 40000 + i, 4096)).collect();
    for handle in handles {
        guest.until("a connection", |guest| guest.tcp(handle).send_slice(b"hello").ok());
        guest.until("the data to go", |guest| (guest.tcp(handle).send_queue() == 0).then_some(()));
    }
    thread::sleep(Duration::from_millis(100));
    let before = ticks();
    thread::sleep(Duration::from_secs(2));
    let after = ticks();
    assert!(after - before <= 2, "{before} to {after}");
}
