//! The taps of network cards that lead to networks of the host.

use std::sync::Arc;

use net::edge::{Edge, EdgeConfig};
use net::user::Resolvers;
use net::{Backend, Tap};
use vmm_api::{
    ConfigError, Failure, Lease, NetConfig, NetworkConfig, VmConfig, card_mac, host_name,
};

/// What a card leads to; `None`: to no network of the host.
pub type End = Option<Arc<dyn Backend>>;
/// What cards lead to, by their numbers.
pub type Taps = Vec<End>;

/// Opens them, once: they stay open over resets, and a VMM that has confined itself could not.
pub fn open(config: &VmConfig) -> Result<Vec<Option<Tap>>, Failure> {
    let mut taps = Vec::new();
    for (index, card) in config.nets.iter().enumerate() {
        let mac = card_mac(&config.name, index, card).map_err(Failure::configuration)?;
        taps.push(match &card.network {
            NetworkConfig::User => None,
            NetworkConfig::Bridge(bridge) => Some(Tap::on_bridge(bridge, mac).map_err(failure)?),
            NetworkConfig::Tap(name) => Some(Tap::existing(name).map_err(failure)?),
        });
    }
    Ok(taps)
}

/// Has cards lead to them, and starts the services that some networks have: in a VMM that has confined itself,
/// since they speak with the guest.
pub fn connect(config: &VmConfig, open: Vec<Option<Tap>>) -> Result<Taps, Failure> {
    let cards = config.nets.iter().enumerate().zip(open);
    cards.map(|(card, tap)| lead(&config.name, card, tap)).collect()
}

/// Does the same for one card of a guest.
pub fn lead(
    guest: &str,
    (index, card): (usize, &NetConfig),
    tap: Option<Tap>,
) -> Result<End, Failure> {
    let mac = card_mac(guest, index, card).map_err(Failure::configuration)?;
    let tap = tap.map(|tap| {
        tracing::info!(tap = tap.name(), mac = card.mac, "network card {index}");
        Arc::new(tap) as Arc<dyn Backend>
    });
    match (tap, &card.lease, &card.network) {
        (Some(tap), Some(lease), _) => edge(tap, guest, card, mac, lease).map(Some),
        (_, None, NetworkConfig::Bridge(name)) if !card.forwards.is_empty() => {
            Err(Failure::configuration(ConfigError::ForwardElsewhere(name.clone())))
        }
        (tap, ..) => Ok(tap),
    }
}

/// Puts DHCP, DNS and forwarded ports before a tap.
fn edge(
    tap: Arc<dyn Backend>,
    guest: &str,
    card: &NetConfig,
    mac: [u8; 6],
    lease: &Lease,
) -> Result<Arc<dyn Backend>, Failure> {
    let config = EdgeConfig {
        card: mac,
        address: lease.address,
        prefix_len: lease.prefix,
        server: lease.server,
        host: lease.host,
        router: lease.host.filter(|_| lease.nat),
        resolvers: if lease.nat { Resolvers::System } else { Resolvers::Fixed(Vec::new()) },
        hostname: host_name(guest),
        hosts: lease.names.clone(),
        forwards: machine::forwards(card),
    };
    Ok(Arc::new(Edge::new(tap, config).map_err(Failure::host)?))
}

fn failure(error: links::Error) -> Failure {
    if error.is_configuration() { Failure::configuration(error) } else { Failure::host(error) }
}
