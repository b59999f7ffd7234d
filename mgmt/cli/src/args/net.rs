//! Network cards on the command line.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use vmm_api::{ForwardedPort, NetConfig, NetLimits, NetworkConfig, Protocol, Rate, parse_mac};

use super::rate::{BURST_ALONE, parse_bandwidth, parse_bytes};
use super::split_commas;

/// `--net`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetArg {
    /// No network card.
    None,
    /// A card.
    Card(NetConfig),
    /// A card on the network of this name, which `lodge network create` has made.
    Named(String, NetConfig),
}

impl FromStr for NetArg {
    type Err = String;

    fn from_str(text: &str) -> Result<NetArg, String> {
        let mut parts = split_commas(text).into_iter();
        let first = parts.next().unwrap_or_default();
        let mut named = None;
        let network = match first.split_once('=') {
            None if first == "none" => match parts.next() {
                None => return Ok(NetArg::None),
                Some(_) => return Err("none is no card, and has no options".into()),
            },
            None if first == "user" => NetworkConfig::User,
            Some(("bridge", name)) if !name.is_empty() => NetworkConfig::Bridge(name.into()),
            Some(("tap", name)) if !name.is_empty() => NetworkConfig::Tap(name.into()),
            None if !first.is_empty() => {
                named = Some(first);
                NetworkConfig::User
            }
            _ => {
                return Err(format!(
                    "there is no network {first:?}: use user, none, bridge=NAME, tap=NAME or the name \
                     of one that `lodge network create` has made"
                ));
            }
        };
        let mut card = NetConfig { network, ..NetConfig::default() };
        let (mut receive, mut send, mut burst) = (None, None, None);
        for part in parts {
            match part.split_once('=') {
                Some(("mac", mac)) => {
                    parse_mac(mac).map_err(|error| error.to_string())?;
                    card.mac = Some(mac.to_owned());
                }
                Some(("rate", rate)) => {
                    receive = Some(parse_bandwidth(rate)?);
                    send = receive;
                }
                Some(("rate-in", rate)) => receive = Some(parse_bandwidth(rate)?),
                Some(("rate-out", rate)) => send = Some(parse_bandwidth(rate)?),
                Some(("burst", bytes)) => burst = Some(parse_bytes(bytes)?),
                _ => {
                    return Err(format!(
                        "{part:?} means nothing here: use mac=, rate=, rate-in=, rate-out= or burst="
                    ));
                }
            }
        }
        if burst.is_some() && receive.or(send).is_none() {
            return Err(BURST_ALONE.into());
        }
        let limit = |rate: Option<u64>| rate.map(|per_second| Rate { per_second, burst });
        card.limits = NetLimits { receive: limit(receive), send: limit(send) };
        Ok(match named {
            Some(name) => NetArg::Named(name, card),
            None => NetArg::Card(card),
        })
    }
}

/// `-p`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardArg(pub ForwardedPort);

impl FromStr for ForwardArg {
    type Err = String;

    fn from_str(text: &str) -> Result<ForwardArg, String> {
        let (ports, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some((_, other)) => {
                return Err(format!("there is no protocol {other:?}: use tcp or udp"));
            }
        };
        let form = "write [ADDRESS:]PORT:GUESTPORT, as in 2222:22";
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port) if port != 0 => Ok(port),
            _ => Err(format!("{text:?} is not a port from 1 to 65535; {form}")),
        };
        let (rest, guest) = ports.rsplit_once(':').ok_or(form)?;
        let (address, host) = match rest.rsplit_once(':') {
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), rest),
            Some((address, host)) => {
                let bare = address
                    .strip_prefix('[')
                    .and_then(|inner| inner.strip_suffix(']'))
                    .unwrap_or(address);
                let parsed =
                    bare.parse::<IpAddr>().ok().filter(|ip| ip.is_ipv4() || bare != address);
                let problem = || {
                    format!(
                        "{address:?} is not an IP address; write IPv6 in brackets, as in [::1]:2222:22"
                    )
                };
                (parsed.ok_or_else(problem)?, host)
            }
        };
        Ok(ForwardArg(ForwardedPort {
            protocol,
            host_addr: address,
            host_port: port(host)?,
            guest_port: port(guest)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read() {
        let net = |text: &str| text.parse::<NetArg>();
        let card = |text: &str| match net(text) {
            Ok(NetArg::Card(card)) => card,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(net("none"), Ok(NetArg::None));
        assert_eq!(card("user"), NetConfig::default());
        assert_eq!(card("bridge=br0").network, NetworkConfig::Bridge("br0".into()));
        let tap = card("tap=t,mac=52:54:00:00:00:01");
        assert_eq!(tap.network, NetworkConfig::Tap("t".into()));
        assert_eq!(tap.mac.as_deref(), Some("52:54:00:00:00:01"));
        let Ok(NetArg::Named(name, web)) = net("web,mac=52:54:00:00:00:02") else { panic!("web") };
        assert_eq!((name.as_str(), web.mac.is_some()), ("web", true));
        for bad in ["", "vlan=1", "bridge=", "tap=", "none,mac=52:54:00:00:00:01", "user,"] {
            assert!(net(bad).is_err(), "{bad:?}");
        }

        let rate = |per_second, burst| Some(Rate { per_second, burst });
        let limits = |text: &str| card(text).limits;
        let both = rate(12_500_000, None);
        assert_eq!(limits("user,rate=100mbit"), NetLimits { receive: both, send: both });
        assert_eq!(
            limits("bridge=br0,burst=64K,rate-out=8kbit,rate-in=1M"),
            NetLimits { receive: rate(1 << 20, Some(65536)), send: rate(1000, Some(65536)) }
        );
        assert_eq!(
            limits("user,rate-in=1M"),
            NetLimits { receive: rate(1 << 20, None), send: None }
        );
        for bad in [
            "user,mac=",
            "user,mac=53:54:00:00:00:01",
            "bridge=br0,rate",
            "user,burst=1K",
            "user,rate=0",
        ] {
            assert!(net(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn forwarded_ports_are_read() {
        let forward = |text: &str| text.parse::<ForwardArg>().map(|arg| arg.0);
        let plain = forward("2222:22").unwrap();
        assert_eq!((plain.host_port, plain.guest_port), (2222, 22));
        assert_eq!((plain.protocol, plain.host_addr), (Protocol::Tcp, Ipv4Addr::LOCALHOST.into()));
        let udp = forward("0.0.0.0:53:5353/udp").unwrap();
        assert_eq!((udp.protocol, udp.host_addr), (Protocol::Udp, Ipv4Addr::UNSPECIFIED.into()));
        assert!(forward("[::1]:80:80").unwrap().host_addr.is_ipv6());
        for bad in ["", "22", "0:22", "22:0", "70000:1", "a:b", "::1:80:80", "1:2/sctp", "x:1:2"] {
            assert!(forward(bad).is_err(), "{bad:?}");
        }
    }
}
