//! What is said about devices that come and go while a guest runs.

use clap::Args;
use clap_complete::ArgValueCandidates;

use super::{DiskArg, ForwardArg, NetArg};
use crate::completion;

pub const ATTACH_DISK: &str = "\
Examples:
  lodge disk attach web data.qcow2               prints what it is called: disk-24
  lodge disk attach web data.qcow2 --persist     the guest has it at its next start, too
  lodge disk attach web backup.raw,readonly,format=raw
  lodge disk attach web /dev/sdb,serial=backup,iops=500

The guest finds it as /dev/disk/by-id/virtio-disk-24, or by the serial number that is given. What the guest writes
goes to the image itself. A disk that is attached without --persist is gone when the guest is stopped.";

pub const DETACH_DISK: &str = "\
Examples:
  lodge disk detach web disk-24
  lodge disk detach web data.qcow2 --persist     the guest does not have it at its next start, either
  lodge disk detach web disk-24 --force --timeout 5     pull it out if the guest has not let go by then

Unmount it in the guest first. The guest is asked to let go of the disk; its image can be used elsewhere once this
command ends. With --force, what the guest has not written by then is lost.";

pub const ATTACH_CARD: &str = "\
Examples:
  lodge network attach web lab                   a card on the network lab; prints what it is called: net-24
  lodge network attach web user -p 8080:80       one on a user-mode network, with a port that leads there
  lodge network attach web bridge=br0,mac=52:54:00:12:34:56 --persist

A card that is attached without --persist is gone when the guest is stopped.";

pub const DETACH_CARD: &str = "\
Examples:
  lodge network detach web net-24
  lodge network detach web 52:54:00:12:34:56 --persist
  lodge network detach web net-24 --force        even if the guest does not let go of it";

#[derive(Args, Debug)]
pub struct AttachDiskArgs {
    /// The guest, which runs
    #[arg(add = ArgValueCandidates::new(completion::names))]
    pub name: String,
    /// The image: FILE[,format=raw|qcow2] [,readonly] [,serial=TEXT] [,on-full=pause|report] [,iops=N]
    /// [,bandwidth=RATE] [,burst=SIZE]
    #[arg(value_name = "DISK")]
    pub disk: DiskArg,
    #[command(flatten)]
    pub how: AttachArgs,
}

#[derive(Args, Debug)]
pub struct AttachCardArgs {
    /// The guest, which runs
    #[arg(add = ArgValueCandidates::new(completion::names))]
    pub name: String,
    /// What the card leads to: user, NAME, bridge=NAME or tap=NAME, each with [,mac=ADDRESS] [,rate=RATE]
    /// [,rate-in=RATE] [,rate-out=RATE] [,burst=SIZE]
    #[arg(value_name = "NETWORK", add = ArgValueCandidates::new(completion::networks))]
    pub net: NetArg,
    /// Lead a port of this machine to the card: [ADDRESS:]PORT:GUESTPORT[/udp]; repeatable
    #[arg(short = 'p', long = "publish", value_name = "PORTS")]
    pub publish: Vec<ForwardArg>,
    #[command(flatten)]
    pub how: AttachArgs,
}

#[derive(Args, Clone, Copy, Debug)]
pub struct AttachArgs {
    /// Have the guest have it at its next start, too
    #[arg(long)]
    pub persist: bool,
    /// Print what the guest then has as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct DetachArgs {
    /// The guest, which runs
    #[arg(add = ArgValueCandidates::new(completion::names))]
    pub name: String,
    /// What it is called, as in disk-24 or net-25; a disk also by its image or serial number, a card by its address
    #[arg(value_name = "DEVICE")]
    pub device: String,
    /// Take it away if the guest has not let go of it in time
    #[arg(long, short)]
    pub force: bool,
    /// For how many seconds to wait until the guest lets go of it
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub timeout: u32,
    /// Have the guest not have it at its next start, either
    #[arg(long)]
    pub persist: bool,
    /// Print what the guest had as JSON
    #[arg(long)]
    pub json: bool,
}
