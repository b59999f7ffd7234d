//! What a configuration may ask for.

use std::collections::HashSet;

use crate::{
    BlockConfig, CloudInitConfig, CloudInitError, FolderError, ForwardedPort, Lease, Limits,
    MAX_HOST_CPUS, NetConfig, NetworkConfig, VmConfig, folder,
};

/// The most virtual processors that a guest can have.
pub const MAX_CPUS: u32 = 64;
/// The least memory that a guest can have, in MiB.
pub const MIN_MEMORY_MIB: u64 = 1;
/// The most memory that a guest can have, in MiB: 1 TiB.
pub const MAX_MEMORY_MIB: u64 = 1 << 20;
/// The most disks and the most network cards that a guest can have.
pub const MAX_DEVICES: usize = 8;

/// A configuration that asks for what cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The name cannot serve as part of a file name.
    #[error(
        "the guest's name {0:?} cannot be used: a name has 1 to 64 letters, digits, '-', '_' or \
         '.', and begins with a letter or digit"
    )]
    Name(String),
    /// Too few or too many processors.
    #[error("{0} processors cannot be had: a guest has 1 to {MAX_CPUS}")]
    Cpus(u32),
    /// Too little or too much memory.
    #[error(
        "{0} MiB of memory cannot be had: a guest has {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} MiB"
    )]
    Memory(u64),
    /// Too many devices of a kind.
    #[error("{count} {what} cannot be had: a guest has at most {MAX_DEVICES}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many were asked for.
        count: usize,
    },
    /// A serial number that virtio block cannot carry.
    #[error(
        "the disk serial number {0:?} cannot be used: it is at most 20 bytes of printable ASCII"
    )]
    DiskSerial(String),
    /// A disk that is both.
    #[error("the disk {0} is read-only and has an overlay for writes: give one or the other")]
    ReadonlyOverlay(String),
    /// One file twice, which would ruin its contents.
    #[error("the disk {0} is given twice: make one of them read-only, or make a copy")]
    SameDisk(String),
    /// Not an Ethernet address for a card.
    #[error(
        "the network card address {0:?} cannot be used: write six bytes as in 52:54:00:12:34:56, \
         the first of them even (not a multicast address)"
    )]
    Mac(String),
    /// A name that no interface of the host can have.
    #[error(
        "the network interface {0:?} cannot be: a name has 1 to 15 characters without '/', ':' and \
         spaces"
    )]
    Interface(String),
    /// One tap for two cards.
    #[error("the tap {0} is given twice: each card needs one of its own")]
    SameTap(String),
    /// Ports that lead into a guest on a network that has no way to do so.
    #[error(
        "ports are led into a guest by the user-mode network and by networks that `lodge network \
         create` has made, and the card on {0} is on neither: the guest is reached there by its own \
         address"
    )]
    ForwardElsewhere(String),
    /// An address that no guest can have on the network that it is for.
    #[error(
        "the lease of {address}/{prefix} with the server {server} cannot be: a network has a prefix of 8 \
         to 29 bits, and guest, server and host have different addresses on it"
    )]
    Lease {
        /// The address.
        address: std::net::Ipv4Addr,
        /// The length of the network's prefix.
        prefix: u8,
        /// The server's address.
        server: std::net::Ipv4Addr,
    },
    /// A lease for a card that is on no bridge.
    #[error(
        "a lease was given to a card that is not on a bridge: leave it out, it is Lodge's to fill in"
    )]
    LeaseElsewhere,
    /// A host port twice.
    #[error("the host port {0} is forwarded twice: choose another host port for one of them")]
    SameForward(String),
    /// A slot that is not for devices that come and go.
    #[error("slot {0} cannot be chosen: devices that can be detached are in slots {first} to {last}; without \
             a slot, a device has one for as long as the guest is there",
        first = crate::HOT_SLOTS.start(), last = crate::HOT_SLOTS.end())]
    Slot(u8),
    /// One slot twice.
    #[error("slot {0} is given to two devices: choose another for one of them")]
    SameSlot(u8),
    /// More than there are slots for devices that stay.
    #[error("{0} disks, cards and folders cannot be had for as long as the guest is there: {most} at most; \
             give some disks or cards a slot, so that they can be detached, or leave some out",
        most = crate::MAX_FIXED)]
    TooManyFixed(usize),
    /// A limit that lets nothing pass.
    #[error("a rate of 0 lets nothing pass: leave the disk or the card out, or the limit")]
    RateZero,
    /// A processor that the guest does not have.
    #[error(
        "the guest's processor {vcpu} is to run on certain processors of the host, but the guest has \
         {cpus}: they are numbered from 0"
    )]
    AffinityOfNone {
        /// Its number.
        vcpu: usize,
        /// How many there are.
        cpus: u32,
    },
    /// A processor that no host has.
    #[error("no host has a processor {0}: --cpu-affinity has numbers up to {max}", max = MAX_HOST_CPUS - 1)]
    AffinityTo(u32),
    /// A limit below what is there from the beginning.
    #[error(
        "{limit} MiB of the host's memory are too little for a guest with {memory} MiB: the VMM needs some \
         itself, so that the limit must be at least {least} MiB"
    )]
    MemoryLimit {
        /// What the limit is.
        limit: u64,
        /// What the guest has.
        memory: u64,
        /// What the limit must be.
        least: u64,
    },
    /// What cloud-init cannot be told.
    #[error(transparent)]
    CloudInit(#[from] CloudInitError),
    /// A folder that cannot be shared like this.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A port that does not exist.
    #[error("port 0 cannot be forwarded: give a port from 1 to 65535")]
    PortZero,
}

impl VmConfig {
    /// Checks everything that can be told from the configuration alone, without the host.
    ///
    /// # Errors
    ///
    /// The first thing that cannot be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        validate_name(&self.name)?;
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(ConfigError::Cpus(self.cpus));
        }
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(ConfigError::Memory(self.memory_mib));
        }
        for (what, count) in [("disks", self.disks.len()), ("network cards", self.nets.len())] {
            if count > MAX_DEVICES {
                return Err(ConfigError::TooMany { what, count });
            }
        }
        validate_limits(&self.limits, self)?;
        validate_disks(&self.disks)?;
        validate_nets(&self.nets)?;
        crate::hotplug::validate_slots(self)?;
        folder::validate(&self.folders)?;
        self.cloud_init.as_ref().map_or(Ok(()), CloudInitConfig::validate).map_err(Into::into)
    }
}

/// Checks a guest's name: it becomes part of file names.
///
/// # Errors
///
/// [`ConfigError::Name`].
pub fn validate_name(name: &str) -> Result<(), ConfigError> {
    let first_is_good = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let all_are_good = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if first_is_good && all_are_good && name.len() <= 64 {
        Ok(())
    } else {
        Err(ConfigError::Name(name.to_owned()))
    }
}

/// Reads an Ethernet address as people write it, `52:54:00:12:34:56`. A card's own address is
/// never a multicast one (IEEE 802: the lowest bit of the first byte).
///
/// # Errors
///
/// [`ConfigError::Mac`].
pub fn parse_mac(text: &str) -> Result<[u8; 6], ConfigError> {
    let bad = || ConfigError::Mac(text.to_owned());
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().ok_or_else(bad)?;
        if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
    }
    if parts.next().is_some() || mac[0] & 1 != 0 || mac == [0; 6] {
        return Err(bad());
    }
    Ok(mac)
}

fn validate_disks(disks: &[BlockConfig]) -> Result<(), ConfigError> {
    let mut written = HashSet::new();
    let mut read = HashSet::new();
    for disk in disks {
        if let Some(serial) = &disk.serial
            && (serial.len() > 20 || !serial.bytes().all(|b| (0x20..0x7f).contains(&b)))
        {
            return Err(ConfigError::DiskSerial(serial.clone()));
        }
        disk.limits.validate()?;
        if disk.readonly && disk.overlay.is_some() {
            return Err(ConfigError::ReadonlyOverlay(disk.path.display().to_string()));
        }
        if disk.readonly || disk.overlay.is_some() {
            read.insert(&disk.path);
        }
        let target = match &disk.overlay {
            Some(overlay) => Some(overlay),
            None if disk.readonly => None,
            None => Some(&disk.path),
        };
        if let Some(target) = target
            && !written.insert(target)
        {
            return Err(ConfigError::SameDisk(target.display().to_string()));
        }
    }
    match written.intersection(&read).next() {
        Some(both) => Err(ConfigError::SameDisk(both.display().to_string())),
        None => Ok(()),
    }
}

/// What the VMM needs of the host's memory besides the guest's, in MiB: its program, and translated code.
const VMM_MEMORY_MIB: u64 = 64;

fn validate_limits(limits: &Limits, config: &VmConfig) -> Result<(), ConfigError> {
    let Limits { cpu: _, memory_mib, affinity } = limits;
    if affinity.len() > config.cpus as usize {
        return Err(ConfigError::AffinityOfNone { vcpu: affinity.len() - 1, cpus: config.cpus });
    }
    if let Some(&cpu) = affinity.iter().flatten().find(|&&cpu| cpu >= MAX_HOST_CPUS) {
        return Err(ConfigError::AffinityTo(cpu));
    }
    let least = config.memory_mib + VMM_MEMORY_MIB;
    match *memory_mib {
        Some(limit) if limit < least => {
            Err(ConfigError::MemoryLimit { limit, memory: config.memory_mib, least })
        }
        _ => Ok(()),
    }
}

/// Checks the name of an interface of the host, as its kernel does (`dev_valid_name`).
fn validate_interface(name: &str) -> Result<(), ConfigError> {
    let bad = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > 15 || name.contains(bad) || name == "." || name == ".." {
        return Err(ConfigError::Interface(name.to_owned()));
    }
    Ok(())
}

fn validate_lease(lease: &Lease) -> Result<(), ConfigError> {
    let &Lease { address, prefix, server, host, .. } = lease;
    let host_bits = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
    let base = address.to_bits() & !host_bits;
    let is_a_machines = |it: std::net::Ipv4Addr| {
        let own = it.to_bits() & host_bits;
        it.to_bits() & !host_bits == base && own != 0 && own != host_bits
    };
    let good = (8..=29).contains(&prefix)
        && is_a_machines(address)
        && is_a_machines(server)
        && host.is_none_or(|host| is_a_machines(host) && host != address && host != server)
        && address != server;
    if good { Ok(()) } else { Err(ConfigError::Lease { address, prefix, server }) }
}

fn validate_nets(nets: &[NetConfig]) -> Result<(), ConfigError> {
    let mut listening = HashSet::new();
    let mut taps = HashSet::new();
    for net in nets {
        if let NetworkConfig::Bridge(name) | NetworkConfig::Tap(name) = &net.network {
            validate_interface(name)?;
        }
        if let NetworkConfig::Tap(name) = &net.network {
            if !taps.insert(name) {
                return Err(ConfigError::SameTap(name.clone()));
            }
            if !net.forwards.is_empty() {
                return Err(ConfigError::ForwardElsewhere(name.clone()));
            }
        }
        net.limits.validate()?;
        match (&net.lease, &net.network) {
            (Some(lease), NetworkConfig::Bridge(_)) => validate_lease(lease)?,
            (Some(_), _) => return Err(ConfigError::LeaseElsewhere),
            (None, _) => {}
        }
        if let Some(mac) = &net.mac {
            parse_mac(mac)?;
        }
        for &ForwardedPort { protocol, host_addr, host_port, guest_port } in &net.forwards {
            if host_port == 0 || guest_port == 0 {
                return Err(ConfigError::PortZero);
            }
            if !listening.insert((protocol, host_addr, host_port)) {
                let suffix = match protocol {
                    crate::Protocol::Tcp => "",
                    crate::Protocol::Udp => "/udp",
                };
                return Err(ConfigError::SameForward(format!("{host_addr}:{host_port}{suffix}")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BootConfig, Protocol};

    fn config() -> VmConfig {
        VmConfig {
            name: "guest".into(),
            cpus: 2,
            memory_mib: 512,
            accelerator: Default::default(),
            cpu_model: Default::default(),
            hugepages: false,
            balloon: true,
            hyperv: false,
            boot: BootConfig {
                kernel: "/boot/vmlinuz".into(),
                initrd: None,
                cmdline: String::new(),
                modules: Vec::new(),
            },
            disks: Vec::new(),
            nets: Vec::new(),
            folders: Vec::new(),
            serial: Default::default(),
            serial2: Default::default(),
            virtio_console: None,
            exit_port: false,
            debug: Default::default(),
            cloud_init: None,
            gdb: None,
            sandbox: Default::default(),
            limits: Default::default(),
        }
    }

    fn disk(path: &str) -> BlockConfig {
        BlockConfig { path: path.into(), ..Default::default() }
    }

    #[test]
    fn limits_fit_the_guest() {
        let with = |limits: Limits| VmConfig { cpus: 2, limits, ..config() }.validate();
        let affinity = |affinity: Vec<Vec<u32>>| Limits { affinity, ..Limits::default() };
        assert_eq!(with(affinity(vec![vec![0], vec![MAX_HOST_CPUS - 1]])), Ok(()));
        let error = with(affinity(vec![vec![], vec![], vec![1]]));
        assert_eq!(error, Err(ConfigError::AffinityOfNone { vcpu: 2, cpus: 2 }));
        let error = with(affinity(vec![vec![MAX_HOST_CPUS]]));
        assert_eq!(error, Err(ConfigError::AffinityTo(MAX_HOST_CPUS)));
        let memory = |limit| Limits { memory_mib: Some(limit), ..Limits::default() };
        let least = config().memory_mib + VMM_MEMORY_MIB;
        assert_eq!(with(memory(least)), Ok(()));
        assert!(matches!(with(memory(least - 1)), Err(ConfigError::MemoryLimit { .. })));
    }

    #[test]
    fn a_plain_configuration_is_good() {
        assert_eq!(config().validate(), Ok(()));
    }

    #[test]
    fn absurd_sizes_are_refused() {
        for cpus in [0, 65, u32::MAX] {
            assert_eq!(VmConfig { cpus, ..config() }.validate(), Err(ConfigError::Cpus(cpus)));
        }
        for memory_mib in [0, MAX_MEMORY_MIB + 1, u64::MAX] {
            assert_eq!(
                VmConfig { memory_mib, ..config() }.validate(),
                Err(ConfigError::Memory(memory_mib))
            );
        }
        let disks = (0..9).map(|n| disk(&n.to_string())).collect();
        assert!(matches!(
            VmConfig { disks, ..config() }.validate(),
            Err(ConfigError::TooMany { what: "disks", count: 9 })
        ));
    }

    #[test]
    fn names_cannot_leave_their_directory() {
        for bad in ["", ".", "..", "../x", "a/b", "-v", "a b", "ä", &"x".repeat(65)] {
            assert!(validate_name(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "web-1", "debian_12.x", "9"] {
            assert!(validate_name(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn macs_are_read_strictly() {
        assert_eq!(parse_mac("52:54:00:12:34:Ff"), Ok([0x52, 0x54, 0, 0x12, 0x34, 0xff]));
        for bad in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "53:54:00:12:34:56",
            "+2:54:00:12:34:56",
            "00:00:00:00:00:00",
            "52-54-00-12-34-56",
        ] {
            assert!(parse_mac(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_disk_is_written_by_one_card_only() {
        let twice = VmConfig { disks: vec![disk("a"), disk("a")], ..config() };
        assert_eq!(twice.validate(), Err(ConfigError::SameDisk("a".into())));

        let reader = BlockConfig { readonly: true, ..disk("a") };
        let mixed = VmConfig { disks: vec![disk("a"), reader.clone()], ..config() };
        assert_eq!(mixed.validate(), Err(ConfigError::SameDisk("a".into())));

        let over = |name: &str| BlockConfig { overlay: Some(name.into()), ..disk("a") };
        let shared = VmConfig { disks: vec![over("x"), over("y"), reader], ..config() };
        assert_eq!(shared.validate(), Ok(()));
        let same_overlay = VmConfig { disks: vec![over("x"), over("x")], ..config() };
        assert_eq!(same_overlay.validate(), Err(ConfigError::SameDisk("x".into())));
    }

    #[test]
    fn cards_on_networks_of_the_host() {
        let with = |network: &[NetworkConfig]| {
            let card = |network: &NetworkConfig| NetConfig {
                network: network.clone(),
                ..Default::default()
            };
            VmConfig { nets: network.iter().map(card).collect(), ..config() }
        };
        let bridge = || NetworkConfig::Bridge("br0".into());
        let tap = || NetworkConfig::Tap("tap0".into());
        assert_eq!(with(&[bridge(), bridge(), tap(), NetworkConfig::User]).validate(), Ok(()));
        assert_eq!(with(&[tap(), tap()]).validate(), Err(ConfigError::SameTap("tap0".into())));
        for bad in ["", "..", "a/b", "a b", "tap%d", "sixteen-letters!"] {
            let refused = Err(ConfigError::Interface(bad.into()));
            assert_eq!(with(&[NetworkConfig::Bridge(bad.into())]).validate(), refused);
        }
        let mut led = with(&[tap()]);
        led.nets[0].forwards.push(ForwardedPort {
            protocol: Protocol::Tcp,
            host_addr: [127, 0, 0, 1].into(),
            host_port: 1,
            guest_port: 1,
        });
        assert_eq!(led.validate(), Err(ConfigError::ForwardElsewhere("tap0".into())));
    }

    #[test]
    fn leases_are_addresses_of_one_network() {
        let lease = |address: &str, prefix, server: &str, host: Option<&str>| Lease {
            address: address.parse().unwrap(),
            prefix,
            server: server.parse().unwrap(),
            host: host.map(|host| host.parse().unwrap()),
            nat: false,
            names: "/names".into(),
        };
        let check = |network, lease| {
            let card = NetConfig { network, lease: Some(lease), ..Default::default() };
            VmConfig { nets: vec![card], ..config() }.validate()
        };
        let bridge = || NetworkConfig::Bridge("br-lab".into());
        let good = lease("10.88.0.16", 24, "10.88.0.2", Some("10.88.0.1"));
        assert_eq!(check(bridge(), good.clone()), Ok(()));
        assert_eq!(check(bridge(), lease("10.0.0.3", 29, "10.0.0.2", None)), Ok(()));
        assert_eq!(check(NetworkConfig::User, good), Err(ConfigError::LeaseElsewhere));
        for bad in [
            lease("10.88.1.16", 24, "10.88.0.2", None),
            lease("10.88.0.2", 24, "10.88.0.2", None),
            lease("10.88.0.0", 24, "10.88.0.2", None),
            lease("10.88.0.255", 24, "10.88.0.2", None),
            lease("10.88.0.16", 24, "10.88.0.2", Some("10.88.0.16")),
            lease("10.88.0.16", 24, "10.88.0.2", Some("10.99.0.1")),
            lease("10.88.0.16", 7, "10.88.0.2", None),
            lease("10.88.0.16", 255, "10.88.0.2", None),
        ] {
            assert!(matches!(check(bridge(), bad), Err(ConfigError::Lease { .. })));
        }
    }

    #[test]
    fn a_host_port_leads_to_one_place() {
        let forward = |protocol, host_port| ForwardedPort {
            protocol,
            host_addr: [127, 0, 0, 1].into(),
            host_port,
            guest_port: 22,
        };
        let with = |forwards| VmConfig {
            nets: vec![NetConfig { forwards, ..Default::default() }],
            ..config()
        };
        assert_eq!(
            with(vec![forward(Protocol::Tcp, 2222), forward(Protocol::Udp, 2222)]).validate(),
            Ok(())
        );
        assert_eq!(
            with(vec![forward(Protocol::Udp, 53), forward(Protocol::Udp, 53)]).validate(),
            Err(ConfigError::SameForward("127.0.0.1:53/udp".into()))
        );
        assert_eq!(with(vec![forward(Protocol::Tcp, 0)]).validate(), Err(ConfigError::PortZero));
    }
}
