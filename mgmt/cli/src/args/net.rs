//! Network cards on the command line.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use vmm_api::{ForwardedPort, NetConfig, NetworkConfig, Protocol, parse_mac};

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
        for part in parts {
            match part.split_once('=') {
                Some(("mac", mac)) => {
                    parse_mac(mac).map_err(|error| error.to_string())?;
                    card.mac = Some(mac.to_owned());
                }
                _ => return Err(format!("{part:?} means nothing here: use mac=ADDRESS")),
            }
        }
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
        for bad in ["user,mac=", "user,mac=53:54:00:00:00:01", "bridge=br0,rate"] {
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
