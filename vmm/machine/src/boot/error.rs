//! Why a guest's kernel could not be loaded.

use std::io;
use std::path::PathBuf;

use vmm_api::{Failure, FailureKind};

/// Why a guest's kernel could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be opened or read.
    #[error("cannot read the {what} {}: {source}; check that the file is there and readable", path.display())]
    Read {
        /// Which of the guest's files it is.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A directory, pipe or device where a file belongs.
    #[error("the {what} {} is not a regular file: give the path of the file itself", path.display())]
    NotAFile {
        /// Which of the guest's files it is.
        what: &'static str,
        /// Its path.
        path: PathBuf,
    },
    /// A file that is something else.
    #[error(
        "{} is not a kernel that Lodge can start: {why}; give a Linux bzImage, an x86 ELF kernel \
         or a multiboot 1 kernel", path.display()
    )]
    NotAKernel {
        /// Its path.
        path: PathBuf,
        /// What speaks against it.
        why: String,
    },
    /// A file that contradicts itself or ends too early.
    #[error("the {what} {} is damaged: {why}; get a fresh copy of it", path.display())]
    Damaged {
        /// Which of the guest's files it is.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// No room in the guest's memory.
    #[error(
        "{what} ({len} bytes) finds no room in the guest's memory{place}; give the guest more \
         memory, or a smaller file"
    )]
    NoRoom {
        /// What was to be loaded.
        what: String,
        /// How much of it.
        len: u64,
        /// Where it wanted to be.
        place: String,
    },
    /// A command line that the kernel cannot take.
    #[error("the command line cannot be used: {0}; change it")]
    CommandLine(String),
    /// Modules for something other than a multiboot kernel.
    #[error("modules are for multiboot kernels, and this kernel is none: leave the modules out")]
    ModulesNotWanted,
    /// Guest memory does not have the layout that the memory map says: a mistake in Lodge.
    #[error("cannot write guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

impl BootError {
    /// Where the cause lies.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Read { source, .. } if source.kind() != io::ErrorKind::NotFound => {
                FailureKind::Host
            }
            Self::Read { .. }
            | Self::NotAFile { .. }
            | Self::NotAKernel { .. }
            | Self::Damaged { .. } => FailureKind::Artifact,
            Self::NoRoom { .. } | Self::CommandLine(_) | Self::ModulesNotWanted => {
                FailureKind::Configuration
            }
            Self::Memory(_) => FailureKind::Internal,
        }
    }
}

impl From<BootError> for Failure {
    fn from(error: BootError) -> Self {
        Failure::new(error.kind(), error)
    }
}
