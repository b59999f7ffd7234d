//! Who may talk to whom: a table of nftables for each network.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use vmm_api::Failure;

use crate::{Network, Reach};

/// Where programs of root are, which `PATH` may leave out.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The table's name.
fn table(name: &str) -> String {
    format!("lodge_{}", name.replace('-', "_"))
}

/// The rules, which take the place of any that there are, all at once.
///
/// Frames within a bridge are no concern of these rules: they never reach the host's routing.
fn text(network: &Network) -> String {
    let (table, bridge, subnet) = (table(&network.name), network.bridge(), network.subnet);
    let mut rules =
        format!("table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n");
    let mut chain = |hook: &str, lines: &[String]| {
        rules +=
            &format!("chain {hook} {{ type filter hook {hook} priority filter; policy accept;\n");
        for line in lines {
            rules += &format!("{line}\n");
        }
        rules += "}\n";
    };
    // A host that routes between bridge ports by itself (br_netfilter) shows them here as well.
    let mut forward = vec![format!("iifname \"{bridge}\" oifname \"{bridge}\" accept")];
    if network.reach == Reach::Nat {
        forward.push(format!("iifname \"{bridge}\" ip saddr {subnet} accept"));
        forward.push(format!("oifname \"{bridge}\" ct state established,related accept"));
    }
    forward.push(format!("iifname \"{bridge}\" drop"));
    forward.push(format!("oifname \"{bridge}\" drop"));
    chain("forward", &forward);
    if network.reach == Reach::Isolated {
        chain("input", &[format!("iifname \"{bridge}\" drop")]);
        chain("output", &[format!("oifname \"{bridge}\" drop")]);
    }
    if network.reach == Reach::Nat {
        rules += &format!(
            "chain postrouting {{ type nat hook postrouting priority srcnat; policy accept;\n\
             ip saddr {subnet} oifname != \"{bridge}\" masquerade\n}}\n"
        );
    }
    rules + "}\n"
}

/// Puts the network's rules in place.
pub fn set(network: &Network) -> Result<(), Failure> {
    nft(&text(network))
}

/// Takes them away. Harmless if there are none.
pub fn remove(name: &str) -> Result<(), Failure> {
    let table = table(name);
    nft(&format!("table inet {table}\ndelete table inet {table}\n"))
}

/// Has `nft` carry out all of a text, or nothing.
fn nft(text: &str) -> Result<(), Failure> {
    let run = || -> io::Result<_> {
        let mut child = Command::new("nft")
            .args(["-f", "-"])
            .env("PATH", PATH)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read to the end says why.
            let _ = stdin.write_all(text.as_bytes());
        }
        child.wait_with_output()
    };
    let output = run().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failure::host(
            "nft is missing, by which networks are kept apart: install it (`apt install nftables`)",
        ),
        _ => Failure::host(format!("cannot run nft: {error}")),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::host(format!(
        "nft does not take the network's rules, which needs root (CAP_NET_ADMIN) and a kernel with nf_tables: {}",
        said.lines().next().unwrap_or("it says nothing")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_is_closed_but_for_what_it_reaches() {
        let of = |reach| {
            text(&Network {
                name: "my-web".into(),
                subnet: "10.88.0.0/24".parse().unwrap(),
                reach,
                leases: Vec::new(),
            })
        };
        for reach in [Reach::Isolated, Reach::Host, Reach::Nat] {
            let text = of(reach);
            assert!(text.starts_with("table inet lodge_my_web\ndelete table inet lodge_my_web\n"));
            assert!(text.contains("oifname \"br-my-web\" drop"), "{text}");
            assert_eq!(text.contains("masquerade"), reach == Reach::Nat);
            assert_eq!(text.contains("hook input"), reach == Reach::Isolated);
            assert_eq!(text.matches('{').count(), text.matches('}').count());
        }
    }
}
