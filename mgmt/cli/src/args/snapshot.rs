//! What is said about snapshots and clones.

use clap::{Args, Subcommand};
use clap_complete::ArgValueCandidates;

use super::AccelArg;
use crate::completion;

pub const EXAMPLES: &str = "\
Examples:
  lodge snapshot create web before-upgrade   while it runs; it stands still for a moment
  lodge snapshot ls web
  lodge snapshot restore web before-upgrade  it goes on from there; what it did since is gone
  lodge snapshot restore web --accel kvm     on KVM, wherever it ran until then
  lodge snapshot rm web before-upgrade";

pub const CLONE_EXAMPLES: &str = "\
Examples:
  lodge clone web test              a guest test that goes on where web is now
  lodge clone web --count 5         web-1 to web-5
  lodge clone web test --snapshot before-upgrade

A clone has a name, a network address (MAC) and a disk of its own, and is told that it is a copy, so that
it draws new random numbers. It shares with the others what none of them has changed, in memory and on
disk. No ports of this machine lead into it.";

/// `lodge snapshot`.
#[derive(Subcommand, Debug)]
pub enum SnapshotCommand {
    /// Keep a running guest as it is now
    Create(CreateArgs),
    /// List a guest's snapshots
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Have a guest go on from a snapshot: what it did since is gone
    Restore(RestoreArgs),
    /// Remove snapshots; the guest, and those that were made later, stay as they are
    Rm(RemoveArgs),
}

/// `lodge snapshot create`.
#[derive(Args, Debug)]
pub struct CreateArgs {
    /// The guest's name
    #[arg(add = ArgValueCandidates::new(completion::names))]
    pub name: String,
    /// The snapshot's name [default: the time of day]
    pub snapshot: Option<String>,
}

/// `lodge snapshot ls`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// The guest's name
    #[arg(add = ArgValueCandidates::new(completion::names))]
    pub name: String,
    /// Print names only
    #[arg(long, short)]
    pub quiet: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
}

/// `lodge snapshot restore`.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// The guest's name
    #[arg(add = ArgValueCandidates::new(completion::names))]
    pub name: String,
    /// The snapshot's name [default: the newest]
    pub snapshot: Option<String>,
    /// End the guest first if it runs, at once
    #[arg(long, short)]
    pub force: bool,
    /// What runs the processors, until the guest is started anew [default: as before]. Guests with
    /// --cpu x86-64 go on under either
    #[arg(long, value_enum)]
    pub accel: Option<AccelArg>,
}

/// `lodge snapshot rm`.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// The guest's name
    #[arg(add = ArgValueCandidates::new(completion::names))]
    pub name: String,
    /// The snapshots' names
    #[arg(required = true, value_name = "SNAPSHOT")]
    pub snapshots: Vec<String>,
}

/// `lodge clone`.
#[derive(Args, Debug)]
pub struct CloneArgs {
    /// The guest's name
    #[arg(add = ArgValueCandidates::new(completion::names))]
    pub name: String,
    /// The clone's name [default: the guest's, and a number]
    #[arg(conflicts_with = "count")]
    pub new_name: Option<String>,
    /// How many clones to make
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub count: u32,
    /// Go on from this snapshot [default: from now, if the guest runs]
    #[arg(long, value_name = "SNAPSHOT")]
    pub snapshot: Option<String>,
}
