//! The guest's network: each Ethernet card by DHCP, as Lodge's networks and most others serve it.

mod dhcp;
mod interface;

use std::fs;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use super::files;
use dhcp::Lease;
use interface::Interface;

/// How long the program waits for an address. It gets one later as well.
const PATIENCE: Duration = Duration::from_secs(10);
/// ARPHRD_ETHER (Linux, include/uapi/linux/if_arp.h).
const ETHERNET: &str = "1";

/// Makes the loopback interface and all cards work, and waits a while for their addresses.
pub fn start() {
    if let Ok(loopback) = Interface::named("lo") {
        let _ = loopback.up();
    }
    let (sender, receiver) = channel();
    let cards = cards();
    let count = cards.len();
    for (index, name) in cards.into_iter().enumerate() {
        let sender = sender.clone();
        // The first card's is the way out.
        thread::spawn(move || serve(&name, index == 0, &sender));
    }
    for _ in 0..count {
        if receiver.recv_timeout(PATIENCE).is_err() {
            break;
        }
    }
}

fn cards() -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        let kind = fs::read_to_string(entry.path().join("type")).unwrap_or_default();
        if kind.trim() == ETHERNET {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort();
    names
}

/// Keeps a card's address.
fn serve(name: &str, is_first: bool, has_one: &Sender<()>) {
    let Ok(interface) = Interface::named(name) else { return };
    if interface.up().is_err() {
        return;
    }
    let mut lease: Option<Lease> = None;
    let mut has_said = false;
    loop {
        match dhcp::obtain(&interface, lease.as_ref().map(|lease| lease.address)) {
            Ok(new) => {
                if lease.as_ref().is_none_or(|old| !new.is_like(old)) {
                    configure(&interface, &new, is_first);
                }
                if !std::mem::replace(&mut has_said, true) {
                    let _ = has_one.send(());
                }
                thread::sleep(new.renew_after());
                lease = Some(new);
            }
            // Nobody answers: perhaps later.
            Err(_) => thread::sleep(Duration::from_secs(1)),
        }
    }
}

fn configure(interface: &Interface, lease: &Lease, is_first: bool) {
    if interface.set_address(lease.address, lease.netmask).is_err() {
        return;
    }
    if let Some(router) = lease.router.filter(|_| is_first) {
        let _ = interface.add_default_route(router);
    }
    if is_first {
        files::name_servers(&lease.name_servers, lease.domain.as_deref());
    }
}
