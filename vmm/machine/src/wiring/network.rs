//! Network cards.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use mem::GuestMemory;
use net::Backend;
use net::user::{Forward, Transport, UserNetwork, UserNetworkConfig};
use virtio::{NetCounters, NetOptions, VirtioPci};
use vmm_api::{
    ForwardedPort, NetConfig, NetworkConfig, Protocol, card_mac, card_number, host_name,
};

use super::{Board, rate};
use crate::{BuildError, Parts};

/// Puts the cards on the bus, and starts a user-mode network for each that is to be on one. What they
/// count.
pub fn attach(board: &Board) -> Result<Vec<Arc<NetCounters>>, BuildError> {
    let Parts { config, taps, memory, .. } = board.parts;
    let mut all = Vec::new();
    for (index, card) in config.nets.iter().enumerate() {
        let tap = taps.get(index).cloned().flatten();
        let (device, counters) = device(&config.name, (index, card), tap, memory)?;
        board.pci.add(card.slot, Box::new(device))?;
        all.push(counters);
    }
    Ok(all)
}

/// A card of a guest, to be put on the bus, and what it counts.
pub fn device(
    guest: &str,
    (index, card): (usize, &NetConfig),
    tap: Option<Arc<dyn Backend>>,
    memory: &GuestMemory,
) -> Result<(VirtioPci, Arc<NetCounters>), BuildError> {
    let backend = match &card.network {
        NetworkConfig::User => Arc::new(UserNetwork::new(network(guest, index, card))?),
        NetworkConfig::Bridge(name) | NetworkConfig::Tap(name) => {
            tap.ok_or_else(|| BuildError::Wiring(format!("no tap is open for {name}")))?
        }
    };
    let counters = Arc::<NetCounters>::default();
    let options = NetOptions {
        mac: card_mac(guest, index, card)?,
        receive: card.limits.receive.map(rate),
        send: card.limits.send.map(rate),
        counters: counters.clone(),
    };
    Ok((virtio::net(backend, options, memory.clone())?, counters))
}

fn network(name: &str, index: usize, card: &NetConfig) -> UserNetworkConfig {
    // Each card has a network of its own: 10.0.2.0 and fd00::/64, 10.0.3.0 and fd00:0:0:1::/64, ...
    let number = card_number(index, card) as u8; // `VmConfig::validate` allows only a few cards
    UserNetworkConfig {
        ipv4_network: Ipv4Addr::new(10, 0, 2 + number, 0),
        ipv6_prefix: Some(Ipv6Addr::new(0xfd00, 0, 0, number.into(), 0, 0, 0, 0)),
        hostname: host_name(name),
        forwards: forwards(card),
        ..Default::default()
    }
}

/// The host ports that lead to a card.
pub fn forwards(card: &NetConfig) -> Vec<Forward> {
    let forward = |forward: &ForwardedPort| Forward {
        transport: match forward.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
        },
        host: SocketAddr::new(forward.host_addr, forward.host_port),
        guest_port: forward.guest_port,
    };
    card.forwards.iter().map(forward).collect()
}
