//! `--gdb`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use vmm_api::GdbAddress;

/// Where GDB may connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GdbArg(pub GdbAddress);

impl FromStr for GdbArg {
    type Err = String;

    fn from_str(text: &str) -> Result<GdbArg, String> {
        let form = "write PORT, ADDRESS:PORT or socket:PATH, as in 1234";
        if let Some(path) = text.strip_prefix("socket:").filter(|path| !path.is_empty()) {
            return Ok(GdbArg(GdbAddress::Socket(path.into())));
        }
        // Whoever can connect owns the guest: by default that is nobody from outside.
        let here = |port: u16| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let address = text.parse().map(here).or_else(|_| text.parse::<SocketAddr>());
        match address {
            Ok(address) => Ok(GdbArg(GdbAddress::Tcp(address))),
            Err(_) => Err(form.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_unless_asked_for() {
        let tcp = |text: &str| Ok(GdbArg(GdbAddress::Tcp(text.parse().unwrap())));
        assert_eq!("1234".parse(), tcp("127.0.0.1:1234"));
        assert_eq!("0.0.0.0:99".parse(), tcp("0.0.0.0:99"));
        assert_eq!("[::1]:0".parse(), tcp("[::1]:0"));
        assert_eq!("socket:/x".parse(), Ok(GdbArg(GdbAddress::Socket("/x".into()))));
        for bad in ["", "x", "65536", "socket:", "localhost:1", "1.2.3.4"] {
            assert!(bad.parse::<GdbArg>().is_err(), "{bad}");
        }
    }
}
