//! `lodge network`, and the networks of guests that are started.

use std::fmt::Write;

use networks::{Network, Store};
use serde::Serialize;
use vmm_api::{Device, Failure, Lease, NetworkConfig, VmConfig, card_mac};

use crate::args::{NetworkCommand, reach};
use crate::guests::{self, lock};
use crate::{failure, hotplug, output};

/// What is said of a network.
#[derive(Serialize)]
struct Entry {
    #[serde(flatten)]
    network: Network,
    /// The bridge's interface.
    bridge: String,
    /// This machine's address; guests' way out.
    gateway: std::net::Ipv4Addr,
    /// Whether this machine has it now: after a reboot, the first guest makes it anew.
    up: bool,
    /// The running guests that are connected to it.
    guests: Vec<String>,
}

/// Does what was asked for; the value is the exit status.
pub fn run(command: &NetworkCommand) -> Result<u8, Failure> {
    let store = store()?;
    sweep();
    match command {
        NetworkCommand::Create { name, subnet, nat, isolated } => {
            let network = store.create(name, *subnet, reach(*nat, *isolated))?;
            output::print(format!("{}\n", network.name))?;
            Ok(0)
        }
        NetworkCommand::Attach(args) => hotplug::attach_card(args),
        NetworkCommand::Detach(args) => {
            hotplug::detach(args, |device| matches!(device, Device::Net(_)))
        }
        NetworkCommand::Ls { json, quiet } => list(&store, *json, *quiet),
        NetworkCommand::Inspect { names } => {
            let networks: Vec<_> =
                names.iter().map(|name| store.get(name)).collect::<Result<_, _>>()?;
            print_json(&entries(&store, networks)?)
        }
        NetworkCommand::Rm { names, force } => {
            for name in names {
                let network = store.get(name)?;
                let users = guests_on(&network)?;
                if !users.is_empty() && !force {
                    return Err(Failure::configuration(format!(
                        "the network {name} is in use by {}: stop what is on it, or cut it off with --force",
                        users.join(", ")
                    )));
                }
                store.remove(name)?;
            }
            Ok(0)
        }
    }
}

/// The networks of this user.
pub fn store() -> Result<Store, Failure> {
    Ok(Store::at(&images::home().map_err(failure::image)?))
}

/// Sees to it that the networks that a guest is to be connected to are there, and that its cards have
/// addresses on them: the configuration with all that its VMM tells it of them.
pub fn connect(config: &VmConfig) -> Result<VmConfig, Failure> {
    let mut connected = config.clone();
    for (index, card) in connected.nets.iter_mut().enumerate() {
        // That of another time, or of another guest.
        card.lease = None;
        let NetworkConfig::Bridge(bridge) = &card.network else { continue };
        let mac = card_mac(&config.name, index, card).map_err(failure::config)?;
        card.lease = lease(&config.name, bridge, mac)?;
    }
    Ok(connected)
}

/// Has a guest's card have an address on a bridge, if that is of a network that Lodge has made.
pub fn lease(guest: &str, bridge: &str, mac: [u8; 6]) -> Result<Option<Lease>, Failure> {
    let store = store()?;
    let Some(network) = store.with_bridge(bridge)? else { return Ok(None) };
    sweep();
    store.connect(&network.name, guest, mac).map(Some)
}

/// Gives back the address of a guest's card that is gone, so that the guest's name leads there no more.
pub fn release(guest: &str, mac: [u8; 6]) -> Result<(), Failure> {
    let its = |lease: &networks::Lease| {
        lease.guest == guest && vmm_api::parse_mac(&lease.mac).is_ok_and(|its| its == mac)
    };
    store()?.change_leases(|leases| {
        let before = leases.len();
        leases.retain(|lease| !its(lease));
        leases.len() != before
    })
}

/// Gives back the addresses of guests that are gone. Whatever cannot be done now is done by the next
/// guest that is started.
pub fn sweep() {
    let swept = guests::names().and_then(|names| {
        store()?.change_leases(|leases| {
            let before = leases.len();
            leases.retain(|lease| names.contains(&lease.guest));
            leases.len() != before
        })
    });
    if let Err(failure) = swept {
        eprintln!("lodge: addresses of guests that are gone stay taken: {failure}");
    }
}

/// Has a guest's addresses be those of its new name.
pub fn rename(old: &str, new: &str) -> Result<(), Failure> {
    store()?.change_leases(|leases| {
        let its = leases.iter_mut().filter(|lease| lease.guest == old);
        its.map(|lease| new.clone_into(&mut lease.guest)).count() > 0
    })
}

fn list(store: &Store, json: bool, quiet: bool) -> Result<u8, Failure> {
    let networks = store.all()?;
    if quiet {
        let names = networks.iter().fold(String::new(), |names, it| names + &it.name + "\n");
        output::print(names)?;
        return Ok(0);
    }
    let entries = entries(store, networks)?;
    if json {
        return print_json(&entries);
    }
    let mut table = format!(
        "{:<13} {:<19} {:<9} {:<6} {:<16} GUESTS\n",
        "NAME", "SUBNET", "REACHES", "STATE", "BRIDGE"
    );
    for Entry { network, bridge, up, guests, .. } in &entries {
        let state = if *up { "up" } else { "down" };
        let (reach, guests) = (network.reach.name(), guests.join(", "));
        let guests = if guests.is_empty() { "-" } else { &guests };
        let subnet = network.subnet.to_string();
        let _ = writeln!(
            table,
            "{:<13} {subnet:<19} {reach:<9} {state:<6} {bridge:<16} {guests}",
            network.name
        );
    }
    output::print(table)?;
    Ok(0)
}

fn entries(store: &Store, networks: Vec<Network>) -> Result<Vec<Entry>, Failure> {
    let entry = |network: Network| {
        Ok(Entry {
            bridge: network.bridge(),
            gateway: network.subnet.gateway(),
            up: store.is_up(&network),
            guests: guests_on(&network)?,
            network,
        })
    };
    networks.into_iter().map(entry).collect()
}

/// The running guests that are connected to a network, as their VMMs say.
fn guests_on(network: &Network) -> Result<Vec<String>, Failure> {
    let is_its = |name: &String| {
        let running = guests::directory_of(name).is_ok_and(|directory| lock::is_held(&directory));
        let config = || guests::client(name).ok()?.config().ok();
        running
            && config().is_some_and(|config| {
                let bridge = NetworkConfig::Bridge(network.bridge());
                config.nets.iter().any(|card| card.network == bridge)
            })
    };
    Ok(guests::names()?.into_iter().filter(is_its).collect())
}

fn print_json(entries: &[Entry]) -> Result<u8, Failure> {
    let text = serde_json::to_string_pretty(entries).map_err(Failure::internal)?;
    output::print(text + "\n")?;
    Ok(0)
}
