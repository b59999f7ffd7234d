//! The taps of network cards that lead to networks of the host.

use std::sync::Arc;

use net::{Backend, Tap};
use vmm_api::{Failure, NetworkConfig, VmConfig, card_mac};

/// What a card leads to, by its number; `None`: to no network of the host.
pub type Taps = Vec<Option<Arc<dyn Backend>>>;

/// Opens them, once: they stay open over resets, and a VMM that has confined itself could not.
pub fn open(config: &VmConfig) -> Result<Taps, Failure> {
    let mut taps = Taps::new();
    for (index, card) in config.nets.iter().enumerate() {
        let tap = match &card.network {
            NetworkConfig::User => None,
            NetworkConfig::Bridge(bridge) => {
                let mac = card_mac(&config.name, index, card).map_err(Failure::configuration)?;
                Some(Tap::on_bridge(bridge, mac).map_err(failure)?)
            }
            NetworkConfig::Tap(name) => Some(Tap::existing(name).map_err(failure)?),
        };
        taps.push(tap.map(|tap| {
            tracing::info!(tap = tap.name(), mac = card.mac, "network card {index}");
            Arc::new(tap) as Arc<dyn Backend>
        }));
    }
    Ok(taps)
}

fn failure(error: links::Error) -> Failure {
    if error.is_configuration() { Failure::configuration(error) } else { Failure::host(error) }
}
