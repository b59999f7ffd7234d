//! The names that the resolver knows itself: those of the network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::message::{Query, Rcode, encode_name, record};
use crate::user::dhcp::DOMAIN;
use crate::user::plan::Plan;

/// The host as its guest sees it.
const HOST: &str = "host";

/// The answer to a query about one of the network's own names or addresses.
pub fn answer(query: &Query<'_>, plan: &Plan, hostname: Option<&str>) -> Option<Vec<u8>> {
    if !query.internet {
        return None;
    }
    if query.name.ends_with(".arpa") {
        let address = reverse_address(&query.name)?;
        if !plan.is_ours(address) && !plan.is_guest(address) {
            return None;
        }
        return Some(answer_reverse(query, plan, hostname, address));
    }
    let addresses = match query.name.strip_suffix(DOMAIN).map(|name| name.strip_suffix('.')) {
        Some(Some(name)) => names(name, plan, hostname),
        // The domain alone.
        Some(None) if query.name == DOMAIN => Some((None, None)),
        // What systems call the gateway without a domain: no such name is public.
        _ if query.name == "gateway" => names(HOST, plan, hostname),
        _ => return None,
    };
    let Some((v4, v6)) = addresses else {
        return Some(query.answer(Rcode::NameError, &[]));
    };
    let asks = |kind| query.kind == kind || query.kind == record::ANY;
    let mut records = Vec::new();
    if let (Some(v4), true) = (v4, asks(record::A)) {
        records.push((record::A, v4.octets().to_vec()));
    }
    if let (Some(v6), true) = (v6, asks(record::AAAA)) {
        records.push((record::AAAA, v6.octets().to_vec()));
    }
    Some(query.answer(Rcode::NoError, &records))
}

/// The addresses of a name in the network's domain; `None` if there is no such name.
fn names(
    name: &str,
    plan: &Plan,
    hostname: Option<&str>,
) -> Option<(Option<Ipv4Addr>, Option<Ipv6Addr>)> {
    match name {
        HOST | "gateway" => Some((Some(plan.gateway), plan.v6.map(|v6| v6.gateway))),
        "dns" => Some((Some(plan.resolver), plan.v6.map(|v6| v6.resolver))),
        // The guest chooses its IPv6 addresses itself, and tells nobody.
        _ if hostname.is_some_and(|own| own.eq_ignore_ascii_case(name)) => {
            Some((Some(plan.guest), None))
        }
        _ => None,
    }
}

fn answer_reverse(
    query: &Query<'_>,
    plan: &Plan,
    hostname: Option<&str>,
    address: IpAddr,
) -> Vec<u8> {
    let resolver = address == plan.resolver || plan.v6.is_some_and(|v6| address == v6.resolver);
    let name = if resolver {
        Some("dns")
    } else if plan.is_ours(address) {
        Some(HOST)
    } else if address == plan.guest {
        hostname
    } else {
        None
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
        let answer = answer(&query, &plan, Some("Burrow"))?;
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
