//! The names that the resolver knows itself: those of the network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use super::hosts::Hosts;
use super::message::{Query, Rcode, encode_name, record};
use crate::user::dhcp::DOMAIN;
use crate::user::plan::Plan;

/// The host as its guest sees it.
const HOST: &str = "host";

/// The names of guests.
#[derive(Debug)]
pub struct Names {
    /// That of the guest itself.
    hostname: Option<String>,
    /// Those of all guests of a network.
    hosts: Option<Hosts>,
}

/// The addresses of a name. Guests choose their IPv6 addresses themselves, and tell nobody.
type Addresses = (Vec<Ipv4Addr>, Option<Ipv6Addr>);

impl Names {
    /// The name of one guest, and those in a file, if there is one.
    pub fn new(hostname: Option<String>, hosts: Option<PathBuf>) -> Self {
        Self { hostname, hosts: hosts.map(Hosts::at) }
    }

    /// The answer to a query about one of the network's own names or addresses.
    pub fn answer(&mut self, query: &Query<'_>, plan: &Plan) -> Option<Vec<u8>> {
        if !query.internet {
            return None;
        }
        if query.name.ends_with(".arpa") {
            let address = reverse_address(&query.name)?;
            if !plan.is_ours(address) && !plan.is_guest(address) {
                return None;
            }
            return Some(self.answer_reverse(query, plan, address));
        }
        let addresses = match query.name.strip_suffix(DOMAIN).map(|name| name.strip_suffix('.')) {
            Some(Some(name)) => self.addresses(name, plan),
            // The domain alone.
            Some(None) if query.name == DOMAIN => Some((Vec::new(), None)),
            // What systems call the gateway without a domain: no such name is public.
            _ if query.name == "gateway" => self.addresses(HOST, plan),
            // Not every system adds the domain to a guest's name.
            _ => Some((self.in_hosts(&query.name)?, None)),
        };
        let Some((v4, v6)) = addresses else {
            return Some(query.answer(Rcode::NameError, &[]));
        };
        let asks = |kind| query.kind == kind || query.kind == record::ANY;
        let mut records = Vec::new();
        if asks(record::A) {
            records.extend(v4.iter().map(|v4| (record::A, v4.octets().to_vec())));
        }
        if let (Some(v6), true) = (v6, asks(record::AAAA)) {
            records.push((record::AAAA, v6.octets().to_vec()));
        }
        Some(query.answer(Rcode::NoError, &records))
    }

    /// The addresses of a name in the network's domain; `None` if there is no such name.
    fn addresses(&mut self, name: &str, plan: &Plan) -> Option<Addresses> {
        match name {
            HOST | "gateway" => Some((vec![plan.host?], plan.v6.map(|v6| v6.gateway))),
            "dns" => Some((vec![plan.resolver], plan.v6.map(|v6| v6.resolver))),
            _ => {
                let is_own =
                    self.hostname.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(name));
                let own = || is_own.then(|| vec![plan.guest]);
                Some((self.in_hosts(name).or_else(own)?, None))
            }
        }
    }

    fn in_hosts(&mut self, name: &str) -> Option<Vec<Ipv4Addr>> {
        self.hosts.as_mut().map(|hosts| hosts.addresses(name)).filter(|found| !found.is_empty())
    }

    fn answer_reverse(&mut self, query: &Query<'_>, plan: &Plan, address: IpAddr) -> Vec<u8> {
        let resolver = address == plan.resolver || plan.v6.is_some_and(|v6| address == v6.resolver);
        let host = plan.is_ours(address) || plan.host.is_some_and(|host| address == host);
        let name = match (address, self.hosts.as_mut()) {
            _ if resolver => Some("dns"),
            _ if host => Some(HOST),
            (IpAddr::V4(address), Some(hosts)) => hosts.name(address),
            _ if address == plan.guest => self.hostname.as_deref(),
            _ => None,
        };
        match name {
            Some(name) if query.kind == record::PTR || query.kind == record::ANY => {
                let name = encode_name(&format!("{name}.{DOMAIN}"));
                query.answer(Rcode::NoError, &[(record::PTR, name)])
            }
            Some(_) => query.answer(Rcode::NoError, &[]),
            None => query.answer(Rcode::NameError, &[]),
        }
    }
}

/// The address in a name under in-addr.arpa (RFC 1035 section 3.5) or ip6.arpa (RFC 3596
/// section 2.5).
fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let octets: Option<Vec<u8>> = digits.rsplit('.').map(|part| part.parse().ok()).collect();
        let octets: [u8; 4] = octets?.try_into().ok()?;
        return Some(octets.into());
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let mut bits: u128 = 0;
    let mut count = 0;
    for digit in digits.rsplit('.') {
        let value = u128::from_str_radix(digit, 16).ok().filter(|&value| value < 16)?;
        bits = bits << 4 | value;
        count += 1;
    }
    (count == 32).then(|| Ipv6Addr::from_bits(bits).into())
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::query;
    use super::*;
    use crate::user::config::UserNetworkConfig;

    fn ask(name: &str, kind: u16) -> Option<Vec<u8>> {
        let message = query(name, kind);
        let plan = Plan::new(&UserNetworkConfig::default());
        let query = Query::parse(&message)?;
        let answer = Names::new(Some("Burrow".into()), None).answer(&query, &plan)?;
        Some(answer[message.len()..].to_vec())
    }

    fn ends_with(answer: Option<Vec<u8>>, data: &[u8]) {
        let answer = answer.unwrap();
        assert!(answer.ends_with(data), "{answer:?}");
    }

    #[test]
    fn knows_its_own_names() {
        ends_with(ask("host.lodge", record::A), &[0, 4, 10, 0, 2, 2]);
        ends_with(ask("gateway", record::A), &[0, 4, 10, 0, 2, 2]);
        ends_with(ask("burrow.lodge", record::A), &[0, 4, 10, 0, 2, 15]);
        let gateway: Ipv6Addr = "fd00::2".parse().unwrap();
        ends_with(ask("host.lodge", record::AAAA), &gateway.octets());
        assert_eq!(ask("host.lodge", record::PTR), Some(vec![]));
        assert_eq!(ask("burrow.lodge", record::AAAA), Some(vec![]));
        assert_eq!(ask("other.lodge", record::A), Some(vec![]));
    }

    #[test]
    fn knows_its_own_addresses() {
        ends_with(ask("2.2.0.10.in-addr.arpa", record::PTR), b"\x04host\x05lodge\0");
        ends_with(ask("3.2.0.10.in-addr.arpa", record::PTR), b"\x03dns\x05lodge\0");
        ends_with(ask("15.2.0.10.in-addr.arpa", record::PTR), b"\x06Burrow\x05lodge\0");
        let zeros = "0.".repeat(27);
        ends_with(ask(&format!("2.{zeros}0.0.d.f.ip6.arpa"), record::PTR), b"\x05lodge\0");
    }

    #[test]
    fn leaves_other_names_to_others() {
        for name in ["example.org", "lodge.example.org", "dislodge", "8.8.8.8.in-addr.arpa", ""] {
            assert_eq!(ask(name, record::A), None, "{name}");
        }
    }
}
