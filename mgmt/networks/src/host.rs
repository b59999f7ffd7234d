//! What the host has of a network: bridge, address, rules, routing.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use links::Links;
use vmm_api::Failure;

use crate::network::bridge;
use crate::{Network, Reach, Subnet, rules};

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Whether the network's bridge is there.
pub fn is_up(name: &str) -> bool {
    has_interface(&bridge(name)).unwrap_or(false)
}

/// Whether there is an interface of that name.
pub fn has_interface(name: &str) -> Result<bool, Failure> {
    let links = Links::new().map_err(failure)?;
    Ok(links.index(name).map_err(failure)?.is_some())
}

/// Makes what is missing. `marks`: where it is noted what was changed for all networks together.
pub fn up(network: &Network, marks: &Path) -> Result<(), Failure> {
    let links = Links::new().map_err(failure)?;
    let bridge = network.bridge();
    // First the rules: there is no moment in which the network is open.
    rules::set(network)?;
    links.add_bridge(&bridge).map_err(failure)?;
    links.set_hardware_address(&bridge, address_of(network)).map_err(failure)?;
    links
        .set_address(&bridge, network.subnet.gateway(), network.subnet.netmask())
        .map_err(failure)?;
    links.set_up(&bridge, true).map_err(failure)?;
    if network.reach == Reach::Nat {
        forward_packets(&forwarding_mark(marks))?;
    }
    Ok(())
}

/// Takes away what there is. `last_nat`: no other network needs packets to be forwarded.
pub fn down(network: &Network, last_nat: bool, marks: &Path) -> Result<(), Failure> {
    let links = Links::new().map_err(failure)?;
    let bridge = network.bridge();
    if links.index(&bridge).map_err(failure)?.is_some() {
        links.set_up(&bridge, false).map_err(failure)?;
        links.remove_bridge(&bridge).map_err(failure)?;
    }
    rules::remove(&network.name)?;
    let mark = forwarding_mark(marks);
    if last_nat && mark.exists() {
        write(Path::new(FORWARDING), "0\n")?;
        fs::remove_file(&mark).map_err(|error| cannot_write(&mark, &error))?;
    }
    Ok(())
}

/// The destinations that this host has routes to, but for the default one.
pub fn routes() -> Vec<Subnet> {
    // Interface, destination, gateway, flags, three counts, mask; numbers in hexadecimal, addresses in
    // the order of the network's bytes as the processor sees them (proc(5) leaves that out).
    let table = fs::read_to_string("/proc/self/net/route").unwrap_or_default();
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let address = |index: usize| {
            let number = u32::from_str_radix(fields.get(index)?, 16).ok()?;
            Some(Ipv4Addr::from(number.to_ne_bytes()))
        };
        let (base, mask) = (address(1)?, address(7)?);
        (!mask.is_unspecified()).then(|| Subnet::of_route(base, mask))
    };
    table.lines().skip(1).filter_map(route).collect()
}

/// Notes that it was Lodge who had the host forward packets.
fn forwarding_mark(marks: &Path) -> std::path::PathBuf {
    marks.join("forwarding")
}

fn forward_packets(mark: &Path) -> Result<(), Failure> {
    let setting = Path::new(FORWARDING);
    let now = fs::read_to_string(setting).unwrap_or_default();
    if now.trim() != "0" {
        return Ok(());
    }
    write(mark, "")?;
    write(setting, "1\n")
}

/// The bridge's own address: without one it would change with its ports.
fn address_of(network: &Network) -> [u8; 6] {
    vmm_api::default_mac(&network.bridge(), 0)
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|error| cannot_write(path, &error))
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    Failure::host(format!("cannot change {}: {error}", path.display()))
}

fn failure(error: links::Error) -> Failure {
    if error.is_configuration() { Failure::configuration(error) } else { Failure::host(error) }
}
