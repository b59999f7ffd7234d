//! The host's resolvers.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};

use super::PORT;
use crate::user::config::Resolvers;

/// Where hosts keep the addresses of their resolvers: resolv.conf(5).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// How often to look whether the host has other resolvers now.
const INTERVAL: Duration = Duration::from_secs(2);

/// resolv.conf(5): more than this many resolvers are not used.
const MAX_RESOLVERS: usize = 3;

/// The resolvers that queries are passed on to.
#[derive(Debug)]
pub struct Upstream {
    addresses: Vec<SocketAddr>,
    /// When the file is to be looked at again, if the addresses come from it.
    next_look: Option<Instant>,
    modified: Option<SystemTime>,
}

impl Upstream {
    /// The resolvers of the configuration.
    pub fn new(resolvers: Resolvers, now: Instant) -> Self {
        match resolvers {
            Resolvers::System => {
                Self { addresses: Vec::new(), next_look: Some(now), modified: None }
            }
            Resolvers::Fixed(addresses) => Self { addresses, next_look: None, modified: None },
        }
    }

    /// The addresses, the preferred first.
    pub fn addresses(&mut self, now: Instant) -> &[SocketAddr] {
        if self.next_look.is_some_and(|look| look <= now) {
            self.next_look = Some(now + INTERVAL);
            self.look(Path::new(RESOLV_CONF));
        }
        &self.addresses
    }

    fn look(&mut self, path: &Path) {
        let modified = fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        if modified.is_some() && modified == self.modified {
            return;
        }
        match fs::read_to_string(path) {
            Ok(text) => {
                self.addresses = parse(&text);
                self.modified = modified;
            }
            // The old ones are better than none.
            Err(error) => tracing::debug!(%error, "cannot read {}", path.display()),
        }
    }
}

/// The resolvers in the text of a resolv.conf(5).
fn parse(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()).flatten()
        })
        .filter_map(address)
        .take(MAX_RESOLVERS)
        .collect()
}

/// Reads an address, which has a zone if it is link-local: `fe80::1%eth0` (RFC 4007 section 11).
fn address(text: &str) -> Option<SocketAddr> {
    if let Some((address, zone)) = text.split_once('%') {
        let address: Ipv6Addr = address.parse().ok()?;
        let index = zone.parse().ok().or_else(|| interface_index(zone))?;
        return Some(SocketAddrV6::new(address, PORT, 0, index).into());
    }
    let address: IpAddr = text.parse().ok()?;
    Some(SocketAddr::new(address, PORT))
}

fn interface_index(name: &str) -> Option<u32> {
    let socket = socket(AddressFamily::INET6, SocketType::DGRAM, None).ok()?;
    name_to_index(socket, name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_resolv_conf() {
        let text = "# nameserver 192.0.2.9\nsearch example.org\nnameserver 192.0.2.1\n\
                    \tnameserver   2001:db8::1 \nnameserver junk\nnameserver fe80::1%7\n\
                    nameserver 192.0.2.4\noptions edns0\n";
        let addresses: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%7]:53"]);
    }

    #[test]
    fn knows_the_loopback_interface() {
        assert_eq!(interface_index("lo"), Some(1));
        assert_eq!(interface_index("../lo"), None);
    }
}
