//! Devices that come and go while a guest runs.
//!
//! Its VMM has confined itself and opens no files, so that this program opens what a device needs, and hands
//! the descriptors over.

mod definition;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use block::{Format, OpenOptions};
use serde_json::{Value, json};
use vmm_api::{
    AttachRequest, BlockConfig, DetachRequest, Device, DiskFormat, Failure, NetConfig,
    NetworkConfig, VmConfig, default_mac,
};

use crate::args::NetArg;
use crate::args::hotplug::{AttachArgs, AttachCardArgs, AttachDiskArgs, DetachArgs};
use crate::{failure, guests, network, output};

/// `lodge disk attach`; the value is the exit status.
pub fn attach_disk(args: &AttachDiskArgs) -> Result<u8, Failure> {
    let mut disk = args.disk.0.clone();
    disk.path = std::path::absolute(&disk.path).map_err(failure::io("find", &disk.path))?;
    // What is wrong with the guest is said before what is wrong with the image.
    guests::client(&args.name)?;
    if disk.overlay.is_some() {
        return Err(Failure::configuration(
            "a disk that is attached has no overlay=: make one with `lodge disk create --backing`, and \
             attach that",
        ));
    }
    let files = block::files(&options(&disk)).map_err(failure::disk)?;
    let files = files.into_iter().map(|it| (it.path, it.file.into())).collect();
    attach(&args.name, Device::Disk(disk), files, args.how)
}

fn options(disk: &BlockConfig) -> OpenOptions {
    let format = match disk.format {
        DiskFormat::Auto => Format::Auto,
        DiskFormat::Raw => Format::Raw,
        DiskFormat::Qcow2 => Format::Qcow2,
    };
    OpenOptions::new(&disk.path).format(format).readonly(disk.readonly)
}

/// `lodge network attach`; the value is the exit status.
pub fn attach_card(args: &AttachCardArgs) -> Result<u8, Failure> {
    let mut card = match &args.net {
        NetArg::None => return Err(Failure::configuration("none is no card")),
        NetArg::Card(card) => card.clone(),
        NetArg::Named(name, card) => {
            let network = NetworkConfig::Bridge(network::store()?.get(name)?.bridge());
            NetConfig { network, ..card.clone() }
        }
    };
    card.forwards = args.publish.iter().map(|arg| arg.0).collect();
    let config = guests::client(&args.name)?.config().map_err(|error| error.about(&args.name))?;
    let mac = match &card.mac {
        Some(mac) => vmm_api::parse_mac(mac).map_err(failure::config)?,
        None => free_mac(&config)?,
    };
    card.mac = Some(vmm_api::format_mac(mac));
    let tap = match &card.network {
        NetworkConfig::User => None,
        NetworkConfig::Bridge(bridge) => {
            card.lease = network::lease(&args.name, bridge, mac)?;
            Some(networks::tap_on_bridge(bridge, mac)?)
        }
        NetworkConfig::Tap(name) => Some(networks::existing_tap(name)?),
    };
    let taps = tap.into_iter().map(|(name, fd)| (name.into(), fd)).collect();
    attach(&args.name, Device::Net(card), taps, args.how)
}

/// An address that none of the guest's cards has: not one of those either that cards have which it is started
/// with.
fn free_mac(config: &VmConfig) -> Result<[u8; 6], Failure> {
    let taken = macs(config);
    let first = usize::from(*vmm_api::HOT_SLOTS.end()) + 1;
    let mut free = (first..256).map(|number| default_mac(&config.name, number));
    free.find(|mac| !taken.contains(mac)).ok_or_else(|| Failure::internal("no address is free"))
}

/// The addresses of the guest's cards.
fn macs(config: &VmConfig) -> Vec<[u8; 6]> {
    let cards = (0..).zip(&config.nets);
    cards.filter_map(|(index, card)| vmm_api::card_mac(&config.name, index, card).ok()).collect()
}

/// The guest does not get this card: its address on a network is free again, unless another card has it.
fn give_back_address(name: &str, card: &NetConfig) -> Result<(), Failure> {
    let (Some(mac), Some(_)) = (&card.mac, &card.lease) else { return Ok(()) };
    let mac = vmm_api::parse_mac(mac).map_err(failure::config)?;
    let config = guests::client(name)?.config().map_err(|error| error.about(name))?;
    if macs(&config).contains(&mac) { Ok(()) } else { network::release(name, mac) }
}

fn attach(
    name: &str,
    device: Device,
    files: Vec<(PathBuf, OwnedFd)>,
    how: AttachArgs,
) -> Result<u8, Failure> {
    let definition = how.persist.then(|| definition::of(name)).transpose()?;
    let (descriptors, fds): (Vec<_>, Vec<_>) = files.into_iter().unzip();
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(OwnedFd::as_fd).collect();
    let request = AttachRequest { device, descriptors };
    let attached = guests::client(name)?.attach(&request, &fds);
    if let (Err(vmm_client::Error::Refused(_)), Device::Net(card)) = (&attached, &request.device) {
        give_back_address(name, card)?;
    }
    let device = attached.map_err(|error| error.about(name))?;
    if let Some(definition) = definition {
        definition.add(&device)?;
    }
    let id = device.id().unwrap_or_default();
    let text = if how.json { format!("{:#}\n", described(&device)?) } else { id + "\n" };
    output::print(text)?;
    Ok(0)
}

/// `lodge disk detach` and `lodge network detach`; the value is the exit status.
pub fn detach(args: &DetachArgs, is_kind: impl Fn(&Device) -> bool) -> Result<u8, Failure> {
    let DetachArgs { name, device: called, force, timeout, persist, json } = args;
    let config = guests::client(name)?.config().map_err(|error| error.about(name))?;
    let path = std::path::absolute(called).unwrap_or_default();
    let is_it = |device: &Device| {
        is_kind(device) && (device.is_called(called) || device.is_called(&path.to_string_lossy()))
    };
    let mut devices = config.devices();
    let device = devices.by_ref().find(is_it).ok_or_else(|| {
        let ids = config.devices().filter(|it| is_kind(it)).filter_map(|it| it.id());
        let ids = ids.collect::<Vec<_>>().join(", ");
        let there = if ids.is_empty() { "none that can be detached" } else { &ids };
        Failure::configuration(format!("the guest {name} has no {called}; it has {there}"))
    })?;
    let definition = persist.then(|| definition::of(name)).transpose()?;
    let id = device.id().unwrap_or_else(|| called.clone());
    let request = DetachRequest { id, force: *force, timeout_s: *timeout };
    guests::client(name)?.detach(&request).map_err(|error| error.about(name))?;
    if let Device::Net(NetConfig { mac: Some(mac), lease: Some(_), .. }) = &device {
        network::release(name, vmm_api::parse_mac(mac).map_err(failure::config)?)?;
    }
    if let Some(definition) = definition {
        definition.remove(&device)?;
    }
    if *json {
        output::print(format!("{:#}\n", described(&device)?))?;
    }
    Ok(0)
}

/// What is said of a device.
fn described(device: &Device) -> Result<Value, Failure> {
    let mut value = serde_json::to_value(device).map_err(Failure::internal)?;
    value["id"] = json!(device.id());
    Ok(value)
}
