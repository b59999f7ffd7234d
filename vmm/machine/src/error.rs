//! Why a machine could not be built.

use std::io;
use std::path::PathBuf;

use vmm_api::{Failure, FailureKind};

use crate::acpi;
use crate::boot::BootError;

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The kernel and what belongs to it.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A disk image.
    #[error(transparent)]
    Disk(#[from] block::Error),
    /// A shared folder.
    #[error(transparent)]
    Folder(#[from] folder::OpenError),
    /// A network.
    #[error(transparent)]
    Network(#[from] net::user::Error),
    /// A virtio device.
    #[error(transparent)]
    Virtio(#[from] virtio::Error),
    /// The PCI bus.
    #[error(transparent)]
    Pci(#[from] pci::AddError),
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] acpi::TooManyProcessors),
    /// A network card's address.
    #[error(transparent)]
    Configuration(#[from] vmm_api::ConfigError),
    /// The host has no descriptor to give.
    #[error("cannot make an event: {0}; raise the limit on open files")]
    Event(io::Error),
    /// Devices contradict each other.
    #[error("the machine's devices contradict each other: {0}")]
    Wiring(String),
    /// A file could not be put in its place.
    #[error("cannot arrange {} in its directory: {source}", path.display())]
    Place {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The host gives no random bytes.
    #[error("this host gives no random bytes: {0}")]
    Random(io::Error),
    /// The disk for cloud-init could not be made.
    #[error("the disk for cloud-init cannot be made: {0}")]
    Seed(io::Error),
    /// The last data could not be written.
    #[error(
        "cannot write the last data to the disk {}: {source}; check the host's file system, and \
         the guest's with fsck", path.display()
    )]
    Flush {
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

impl From<bus::Conflict> for BuildError {
    fn from(conflict: bus::Conflict) -> Self {
        Self::Wiring(conflict.to_string())
    }
}

impl From<chipset::fw_cfg::Error> for BuildError {
    fn from(error: chipset::fw_cfg::Error) -> Self {
        Self::Wiring(error.to_string())
    }
}

impl From<vm_memory::GuestMemoryError> for BuildError {
    fn from(error: vm_memory::GuestMemoryError) -> Self {
        Self::Boot(error.into())
    }
}

impl BuildError {
    /// Where the cause lies.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Boot(error) => error.kind(),
            Self::Disk(error) => match error.origin() {
                block::Origin::Host => FailureKind::Host,
                block::Origin::Artifact => FailureKind::Artifact,
                block::Origin::Configuration => FailureKind::Configuration,
            },
            Self::Folder(folder::OpenError::Directory { .. }) => FailureKind::Artifact,
            Self::Folder(folder::OpenError::Processes { .. }) => FailureKind::Configuration,
            Self::Folder(folder::OpenError::NoProc(_))
            | Self::Network(_)
            | Self::Virtio(virtio::Error::Doorbell(_))
            | Self::Event(_)
            | Self::Place { .. }
            | Self::Random(_)
            | Self::Flush { .. } => FailureKind::Host,
            Self::Virtio(virtio::Error::Serial(_))
            | Self::Pci(_)
            | Self::Acpi(_)
            | Self::Configuration(_) => FailureKind::Configuration,
            Self::Wiring(_) | Self::Seed(_) | Self::Virtio(virtio::Error::Tag(_)) => {
                FailureKind::Internal
            }
        }
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        Failure::new(error.kind(), error)
    }
}
