//! `lodge network`.

use clap::Subcommand;
use clap_complete::ArgValueCandidates;
use networks::{Reach, Subnet};

use super::hotplug::{ATTACH_CARD, AttachCardArgs, DETACH_CARD, DetachArgs};
use crate::completion;

#[derive(Subcommand, Debug)]
pub enum NetworkCommand {
    /// Make a network that connects guests
    #[command(after_help = "\
Examples:
  lodge network create lab                      guests reach each other and this machine
  lodge network create web --nat                and what this machine reaches, with its address
  lodge network create closed --isolated        each other only
  lodge network create db --subnet 192.168.7.0/24
  lodge run debian:12 --name db --net web       a guest on it, which others reach as db
  lodge run debian:12 --net web -p 8080:80      a port of this machine that leads into a guest

Guests have their addresses by DHCP, and keep them while they are there. `lodge network inspect`
shows them.

Needs root (CAP_NET_ADMIN) and nft. After a reboot, the first guest on a network makes it anew. So
does the same command again, where a bridge or rules were removed; it changes nothing otherwise.")]
    Create {
        /// Its name: small letters, digits and '-', 12 at most
        name: String,
        /// The addresses of its guests; the first is this machine's [default: one of 10.88.0.0/16]
        #[arg(long, value_name = "SUBNET")]
        subnet: Option<Subnet>,
        /// Guests reach what this machine reaches, with its address
        #[arg(long)]
        nat: bool,
        /// Guests reach each other only, not even this machine
        #[arg(long, conflicts_with = "nat")]
        isolated: bool,
    },
    /// Give a running guest a network card
    #[command(after_help = ATTACH_CARD)]
    Attach(AttachCardArgs),
    /// Take a network card from a running guest
    #[command(after_help = DETACH_CARD)]
    Detach(DetachArgs),
    /// List networks
    Ls {
        /// Print JSON
        #[arg(long, conflicts_with = "quiet")]
        json: bool,
        /// Print names only
        #[arg(long, short)]
        quiet: bool,
    },
    /// Print all that is known of networks as JSON
    Inspect {
        /// Their names
        #[arg(required = true, value_name = "NAME", add = ArgValueCandidates::new(completion::networks))]
        names: Vec<String>,
    },
    /// Remove networks and all that this machine has of them
    Rm {
        /// Their names
        #[arg(required = true, value_name = "NAME", add = ArgValueCandidates::new(completion::networks))]
        names: Vec<String>,
        /// Remove even one that running guests are connected to
        #[arg(long, short)]
        force: bool,
    },
}

/// Whom guests reach.
pub fn reach(nat: bool, isolated: bool) -> Reach {
    match (nat, isolated) {
        (true, _) => Reach::Nat,
        (_, true) => Reach::Isolated,
        _ => Reach::Host,
    }
}
