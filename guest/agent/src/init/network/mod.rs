//! The guest's network: each Ethernet card by DHCP, as Lodge's networks and most others serve it.

mod changes;
mod dhcp;

use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use super::files;
use crate::interface::Interface;
use changes::Changes;
use dhcp::Lease;

/// How long the program waits for an address. It gets one later as well.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes the loopback interface and all cards work, and waits a while for their addresses.
pub fn start() {
    if let Ok(loopback) = Interface::named("lo") {
        let _ = loopback.up();
    }
    let (sender, receiver) = channel();
    let cards = Interface::of_cards();
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

/// Keeps a card's address.
fn serve(name: &str, is_first: bool, has_one: &Sender<()>) {
    let Ok(interface) = Interface::named(name) else { return };
    if interface.up().is_err() {
        return;
    }
    let changes = Changes::watch();
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
                let is_another = changes.wait(&interface, new.renew_after());
                lease = Some(new).filter(|_| !is_another);
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
