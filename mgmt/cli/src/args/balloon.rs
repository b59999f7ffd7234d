//! `lodge balloon`.

use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::{completion, size};

pub const EXAMPLES: &str = "\
Examples:
  lodge balloon web                what it has, and what it says of its memory
  lodge balloon web 512M           it is to do with 512 MiB; the rest goes back to this machine
  lodge balloon web 1G             and may have it again, if it was started with 1 GiB or more

A guest gives back what it can, which may be less, and takes memory again before it runs out. What it does not
use goes back to this machine by itself, without being asked for.";

/// `lodge balloon`.
#[derive(Args, Debug)]
pub struct BalloonArgs {
    /// The guest's name
    #[arg(value_name = "NAME", add = ArgValueCandidates::new(completion::names))]
    pub name: String,
    /// How much memory it is to have, as in 512M or 4G; a bare number is MiB
    #[arg(value_name = "SIZE", value_parser = size::parse_mib)]
    pub size: Option<u64>,
    /// Print JSON
    #[arg(long, conflicts_with = "size")]
    pub json: bool,
}
