//! What can go wrong with images.

use std::io;
use std::path::{Path, PathBuf};

use vmm_api::FailureKind;

/// What went wrong with an image, why, and what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not a name that an image can have.
    #[error(
        "{0:?} is not an image name: use lower-case letters, digits, '.', '_' and '-', with an \
         optional tag behind ':', as in debian:12 or my-server"
    )]
    Name(String),
    /// No such image in the store.
    #[error("there is no image {name}; {hint}")]
    NotFound {
        /// The name asked for.
        name: String,
        /// What to do instead.
        hint: String,
    },
    /// There is one of that name already.
    #[error(
        "an image {name} exists already: choose another name, remove it with `lodge image rm \
         {name}`, or replace it with --force"
    )]
    Exists {
        /// The name.
        name: String,
    },
    /// Nobody knows how to build that.
    #[error("{name} is not something that Lodge can build; it can build: {known}")]
    UnknownRelease {
        /// The name asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A disk of a length that cannot be built.
    #[error("a disk of {} MiB cannot be built: give it from 1 GiB to 16 TiB", bytes >> 20)]
    DiskSize {
        /// The length asked for.
        bytes: u64,
    },
    /// An image's files are not what its manifest says.
    #[error(
        "the image {name} is damaged: {what}; remove it with `lodge image rm {name}` and build or \
         import it again"
    )]
    Damaged {
        /// The image.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// An image of a form that this program does not know.
    #[error(
        "the image {name} has manifest format {found}, and this lodge knows format {known}: use \
         the newer lodge that made it, or remove it with `lodge image rm {name}` and build it again"
    )]
    OtherVersion {
        /// The image.
        name: String,
        /// The form that it has.
        found: u32,
        /// The form that is known here.
        known: u32,
    },
    /// A program that does part of the work is not installed.
    #[error("{tool} is needed to build images and is not installed: apt-get install {package}")]
    Tool {
        /// The program.
        tool: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The archive cannot be reached.
    #[error(
        "Debian's archive cannot be reached: {detail}\ncheck this machine's network and the \
         sources of apt (`apt-get update` must work), then build again"
    )]
    Network {
        /// What the downloader said.
        detail: String,
    },
    /// No user namespaces, which a build without root needs.
    #[error(
        "building an image without root needs user namespaces, which do not work here: {detail}\n\
         install uidmap (apt-get install uidmap), see that /etc/subuid and /etc/subgid list this \
         user, or build as root (with sudo, and LODGE_HOME set to your own store)"
    )]
    NoUserNamespace {
        /// What was said when one was tried.
        detail: String,
    },
    /// Too little room.
    #[error(
        "{} has {} MiB free and {} MiB are needed: make room there, or choose another place \
         with {variable}", dir.display(), have >> 20, need >> 20
    )]
    Space {
        /// Where.
        dir: PathBuf,
        /// Bytes that are needed.
        need: u64,
        /// Bytes that are free.
        have: u64,
        /// The environment variable that moves it elsewhere.
        variable: &'static str,
    },
    /// A directory where nothing can be made.
    #[error(
        "{} cannot be written to: {source}; give its owner the right, or choose another place for \
         Lodge's files with LODGE_HOME", dir.display()
    )]
    Unwritable {
        /// The directory.
        dir: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// What an interrupted build left cannot be removed.
    #[error(
        "{} was left by an interrupted build and cannot be removed: unmount what `findmnt` shows \
         below it, then remove it", dir.display()
    )]
    Leftover {
        /// The directory.
        dir: PathBuf,
    },
    /// No home directory and nothing else that says where images go.
    #[error("there is no place for images: set LODGE_HOME (or HOME) to a directory of yours")]
    NoHome,
    /// A build step failed for a reason of its own.
    #[error("{step} failed:\n{log}")]
    Build {
        /// The step.
        step: String,
        /// The end of what it said.
        log: String,
    },
    /// A file to import is not what it should be.
    #[error("{} cannot be imported: {why}", path.display())]
    Import {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        why: String,
    },
    /// No kernel for guests that are made of OCI images.
    #[error(
        "guests that are made of OCI images run on the kernel of Debian's image, which is not here: \
         build it with `lodge image build debian:12`"
    )]
    NoKernel,
    /// An OCI image cannot be read.
    #[error(transparent)]
    Oci(oci::Error),
    /// Given up because someone asked for it. Nothing is left behind.
    #[error("given up; nothing was changed")]
    Cancelled,
    /// The system refused something.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was being done, "read", "rename".
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl Error {
    /// Where the cause lies.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Error::Name(_)
            | Error::NotFound { .. }
            | Error::Exists { .. }
            | Error::UnknownRelease { .. }
            | Error::DiskSize { .. }
            | Error::NoKernel => FailureKind::Configuration,
            Error::Oci(error) => error.kind(),
            Error::Damaged { .. } | Error::OtherVersion { .. } | Error::Import { .. } => {
                FailureKind::Artifact
            }
            Error::Tool { .. }
            | Error::Network { .. }
            | Error::NoUserNamespace { .. }
            | Error::Space { .. }
            | Error::Unwritable { .. }
            | Error::Leftover { .. }
            | Error::NoHome
            | Error::Build { .. }
            | Error::Cancelled
            | Error::Io { .. } => FailureKind::Host,
        }
    }

    /// For `map_err`: what was being done to which path.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { what, path, source }
    }
}

impl From<oci::Error> for Error {
    fn from(error: oci::Error) -> Error {
        match error {
            oci::Error::Cancelled => Error::Cancelled,
            error => Error::Oci(error),
        }
    }
}
