//! What can go wrong with OCI images.

use std::io;
use std::path::{Path, PathBuf};

use vmm_api::FailureKind;

/// What went wrong with an OCI image, why, and what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not a name that an OCI image can have.
    #[error(
        "{text:?} names no OCI image: {why}; write oci:PATH[:TAG] for a layout or an archive on \
         this machine, or docker://[HOST/]NAME[:TAG] for one in a registry"
    )]
    Reference {
        /// The name.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file or directory that holds no image.
    #[error("{} is no OCI image: {why}", path.display())]
    NotAnImage {
        /// Where.
        path: PathBuf,
        /// What is missing or wrong, and what to do.
        why: String,
    },
    /// No image of that tag.
    #[error("there is no {tag} in {place}, which has: {known}")]
    NoTag {
        /// Where.
        place: String,
        /// The tag asked for.
        tag: String,
        /// What there is.
        known: String,
    },
    /// Several images, and nobody said which.
    #[error("there are several images in {place}: name one of {known} behind a colon")]
    WhichTag {
        /// Where.
        place: String,
        /// What there is.
        known: String,
    },
    /// A registry that cannot be reached, or does not give what it is asked for.
    #[error(
        "the registry {host} gives nothing: {why}; check the name of the image and this machine's network"
    )]
    Registry {
        /// Which.
        host: String,
        /// What it or the network said.
        why: String,
    },
    /// A registry that wants to know who asks, or does not let that person read the image.
    #[error("the registry {host} {why}")]
    NoAccess {
        /// Which.
        host: String,
        /// What it wants, and what to do.
        why: String,
    },
    /// A file of logins or certificates that makes no sense.
    #[error("{} cannot be used: {why}; mend it, or remove it", path.display())]
    Logins {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A registry that has no such image.
    #[error("there is no image {image} in its registry: check its name and its tag")]
    NotInRegistry {
        /// The image.
        image: String,
    },
    /// Contents that are not what their digest or their form says.
    #[error("{blob} is damaged: {why}; get the image again")]
    Damaged {
        /// What is damaged: a digest, or a file in an archive.
        blob: String,
        /// How.
        why: String,
    },
    /// A layer with something that no layer may have.
    #[error("the layer {layer} is refused: its entry {path:?} {why}")]
    Refused {
        /// The layer.
        layer: String,
        /// The entry.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something of the specification, or beyond it, that is not understood here.
    #[error("{what}, which Lodge does not read; {hint}")]
    Unsupported {
        /// What it is.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// An image for other machines.
    #[error("{image} is for {found}, and guests of Lodge are linux/amd64: get it for that")]
    Platform {
        /// Which.
        image: String,
        /// What it is for.
        found: String,
    },
    /// More than is taken.
    #[error("{what} is too large: there may be {limit}")]
    TooLarge {
        /// What.
        what: String,
        /// How much there may be.
        limit: String,
    },
    /// Given up because someone asked for it.
    #[error("given up")]
    Cancelled,
    /// The system refused something.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was being done, "read", "open".
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
            Error::Reference { .. }
            | Error::NoTag { .. }
            | Error::WhichTag { .. }
            | Error::NoAccess { .. }
            | Error::Logins { .. }
            | Error::NotInRegistry { .. } => FailureKind::Configuration,
            Error::NotAnImage { .. }
            | Error::Damaged { .. }
            | Error::Refused { .. }
            | Error::Unsupported { .. }
            | Error::Platform { .. }
            | Error::TooLarge { .. } => FailureKind::Artifact,
            Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                FailureKind::Artifact
            }
            Error::Cancelled | Error::Registry { .. } | Error::Io { .. } => FailureKind::Host,
        }
    }

    /// For `map_err`: what was being done to which path.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { what, path, source }
    }

    /// Contents that are not what they should be.
    pub(crate) fn damaged(blob: impl ToString, why: impl ToString) -> Error {
        Error::Damaged { blob: blob.to_string(), why: why.to_string() }
    }
}
