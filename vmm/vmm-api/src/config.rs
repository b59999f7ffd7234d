//! The configuration of one guest.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{CloudInitConfig, DiskLimits, FolderConfig, Limits, NetLimits};

/// Everything that makes up one guest. Written by people as TOML or JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// The guest's name: letters, digits, `-`, `_` and `.`; unique among running guests.
    pub name: String,
    /// Number of virtual processors, 1 to 64.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Take the memory from the host's reserve of huge pages (2 MiB each).
    #[serde(default)]
    pub hugepages: bool,
    /// The guest has a balloon: it gives back to the host what it does not use, and what it is asked for.
    #[serde(default = "yes")]
    pub balloon: bool,
    /// What runs the processors.
    #[serde(default)]
    pub accelerator: Accelerator,
    /// Which processor the guest sees.
    #[serde(default)]
    pub cpu_model: CpuModel,
    /// Declare Hyper-V's enlightenments, which Windows makes use of. KVM serves them.
    #[serde(default)]
    pub hyperv: bool,
    /// What the guest starts with.
    pub boot: BootConfig,
    /// Disks, in the order in which the guest sees them (`/dev/vda`, `/dev/vdb`, ...).
    #[serde(default)]
    pub disks: Vec<BlockConfig>,
    /// Network cards.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// Folders of the host that it shares, in the order of their tags (`folder0`, `folder1`, ...).
    #[serde(default)]
    pub folders: Vec<FolderConfig>,
    /// Where the first serial port (`ttyS0`) leads.
    #[serde(default)]
    pub serial: ConsoleConfig,
    /// Where the second serial port (`ttyS1`) leads.
    #[serde(default)]
    pub serial2: ConsoleConfig,
    /// Where the virtio console (`hvc0`) leads. `None`: the guest has none.
    #[serde(default)]
    pub virtio_console: Option<ConsoleConfig>,
    /// What its cloud-init is told, on a disk behind all others. `None`: nothing.
    #[serde(default)]
    pub cloud_init: Option<CloudInitConfig>,
    /// A port (0xf8) by which the guest ends with an exit status, that of its only program.
    #[serde(default)]
    pub exit_port: bool,
    /// Devices that only test kernels want.
    #[serde(default)]
    pub debug: DebugDevices,
    /// Where GDB may connect to. `None`: nowhere.
    #[serde(default)]
    pub gdb: Option<GdbConfig>,
    /// How far the VMM confines itself.
    #[serde(default)]
    pub sandbox: SandboxConfig,
    /// What the guest may take of the host. Whoever starts the VMM sees to processors and memory, the VMM to
    /// the affinity of its threads.
    #[serde(default)]
    pub limits: Limits,
}

/// How far the VMM confines itself, before the guest's first instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SandboxConfig {
    /// Whether.
    pub mode: SandboxMode,
    /// Directories in which it may open, make and remove files besides the guest's own.
    pub allow: Vec<PathBuf>,
}

/// Whether the VMM confines itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxMode {
    /// As far as this host can do it.
    #[default]
    On,
    /// Fully, or there is no guest.
    Require,
    /// Not at all.
    Off,
}

fn yes() -> bool {
    true
}

/// What runs the guest's processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The best that this host offers.
    #[default]
    Auto,
    /// Lodge's own engine.
    Soft,
    /// The kernel's KVM.
    Kvm,
}

/// Which processor the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuModel {
    /// All that the host's processor has and the accelerator can honour.
    #[default]
    Host,
    /// The baseline of the psABI, x86-64: up to SSE2. Every host has it under every accelerator.
    #[serde(rename = "x86-64")]
    X86_64,
    /// The x86-64-v2 level of the psABI: up to SSE4.2 and POPCNT.
    X86_64V2,
    /// The x86-64-v3 level of the psABI: AVX2, BMI, FMA.
    X86_64V3,
}

/// What the guest starts with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootConfig {
    /// A Linux bzImage, an ELF kernel (PVH or the 64-bit Linux protocol) or a multiboot 1 kernel;
    /// which one is told by the file itself.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default)]
    pub cmdline: String,
    /// Modules for a multiboot kernel.
    #[serde(default)]
    pub modules: Vec<GuestModule>,
}

/// A file that a multiboot kernel is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestModule {
    /// The file.
    pub path: PathBuf,
    /// The string that the kernel sees with it.
    #[serde(default)]
    pub cmdline: String,
}

/// A virtio block device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockConfig {
    /// The image file or block device on the host.
    pub path: PathBuf,
    /// Its format.
    #[serde(default)]
    pub format: DiskFormat,
    /// The guest may only read.
    #[serde(default)]
    pub readonly: bool,
    /// Where the guest's writes go instead of to `path`: a qcow2 file whose backing file is
    /// `path`. The VMM makes it if it does not exist and opens it if it does; `path` is only ever
    /// read, so that several guests may share it. Whoever wrote the configuration removes it.
    #[serde(default)]
    pub overlay: Option<PathBuf>,
    /// The serial number that the guest sees, at most 20 bytes of ASCII.
    #[serde(default)]
    pub serial: Option<String>,
    /// What happens when the host has no room for what the guest writes.
    #[serde(default)]
    pub on_full: OnFull,
    /// How much the guest may ask of it.
    #[serde(default, skip_serializing_if = "DiskLimits::is_none")]
    pub limits: DiskLimits,
    /// The slot that it is in, of [`HOT_SLOTS`](crate::HOT_SLOTS): one whose device can be detached while
    /// the guest runs. `None`: it is there for as long as the guest is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u8>,
}

/// What happens when the host has no room for what a guest writes to a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFull {
    /// The guest stands still until there is room, and notices nothing.
    #[default]
    Pause,
    /// The guest is told of an I/O error.
    Report,
}

/// The format of a disk image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// A file that begins as a qcow2 image is one; all else is raw.
    #[default]
    Auto,
    /// The bytes of the disk as they are.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

/// A virtio network card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// The card's address, `52:54:00:12:34:56`. By default made from the guest's name.
    #[serde(default)]
    pub mac: Option<String>,
    /// Host ports that lead into the guest. A card can have some on the user-mode network, and on one
    /// that gives it its address ([`NetConfig::lease`]).
    #[serde(default)]
    pub forwards: Vec<ForwardedPort>,
    /// What the card is connected to.
    #[serde(default)]
    pub network: NetworkConfig,
    /// How much may pass.
    #[serde(default, skip_serializing_if = "NetLimits::is_none")]
    pub limits: NetLimits,
    /// What the VMM tells the guest by DHCP and DNS on a bridge. `lodge` fills it in, each time the
    /// guest starts, for networks that it has made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// The slot that it is in, of [`HOT_SLOTS`](crate::HOT_SLOTS): one whose device can be detached while
    /// the guest runs. `None`: it is there for as long as the guest is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u8>,
}

/// An address that a card has on a network, and what there is to know on that network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// The length of the network's prefix in bits, 8 to 29.
    pub prefix: u8,
    /// Where the VMM answers DHCP and DNS: an address on the network that no machine has.
    pub server: Ipv4Addr,
    /// The host's address on the network. `None`: the host is not reached.
    #[serde(default)]
    pub host: Option<Ipv4Addr>,
    /// The host is the way out, and its resolvers are asked about names that nobody here has.
    #[serde(default)]
    pub nat: bool,
    /// The names of the network's guests: a file as hosts(5) describes it, which changes as guests come
    /// and go.
    pub names: PathBuf,
}

/// What a network card is connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkConfig {
    /// A private network with a way out, which needs no privilege.
    #[default]
    User,
    /// A bridge of the host, by the name of its interface. The VMM makes a tap and connects it, which
    /// needs CAP_NET_ADMIN.
    Bridge(String),
    /// A tap of the host, by the name of its interface, which somebody has made for the VMM's user.
    Tap(String),
}

impl NetworkConfig {
    /// Whether it is the one that needs no privilege.
    #[must_use]
    pub fn is_user(&self) -> bool {
        *self == Self::User
    }
}

/// A host port that leads into the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardedPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The host address to listen at; by default loopback only.
    pub host_addr: IpAddr,
    /// The port on the host.
    pub host_port: u16,
    /// The port in the guest.
    pub guest_port: u16,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// Where a console leads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleConfig {
    /// Nowhere: output is dropped.
    #[default]
    Null,
    /// Standard input and output of the VMM.
    Stdio,
    /// An already connected stream socket that the VMM inherits.
    Fd(i32),
    /// Whoever attaches to it by the API; what the guest writes is kept in a log that is bounded.
    /// For the first serial port only.
    Api,
    /// A pseudo terminal, whose name the VMM reports.
    Pty,
    /// A Unix socket that the VMM listens at; one client at a time.
    Socket(PathBuf),
    /// A file that output is appended to; no input.
    Log(PathBuf),
}

/// How a guest is debugged. Whoever can connect can read and change all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GdbConfig {
    /// Where the VMM listens.
    pub at: GdbAddress,
    /// The guest's processors wait for GDB before their first instruction.
    #[serde(default)]
    pub wait: bool,
}

/// Where the VMM listens for GDB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GdbAddress {
    /// A TCP address, `127.0.0.1:1234`. With port 0 the host chooses one, which the VMM reports.
    Tcp(SocketAddr),
    /// A Unix socket, which must not exist.
    Socket(PathBuf),
}

/// Devices that only test kernels want, as QEMU has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DebugDevices {
    /// The debug console at port 0xe9, which writes to the VMM's standard output.
    pub debugcon: bool,
    /// isa-debug-exit at port 0xf4: a write of N ends the VMM with status `(N << 1) | 1`.
    pub debug_exit: bool,
    /// pc-testdev: kvm-unit-tests' interrupt, I/O and exit ports.
    pub testdev: bool,
}
