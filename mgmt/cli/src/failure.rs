//! Errors of the layers below, as what a person is told.

use std::fmt;
use std::io;
use std::path::Path;

use vmm_api::Failure;

/// An error of the image store.
pub fn image(error: images::Error) -> Failure {
    Failure::new(error.kind(), error)
}

/// An error of a disk image.
pub fn disk(error: block::Error) -> Failure {
    match error.origin() {
        block::Origin::Host => Failure::host(error),
        block::Origin::Artifact => Failure::artifact(error),
        block::Origin::Configuration => Failure::configuration(error),
    }
}

/// A configuration that asks for what cannot be.
pub fn config(error: impl fmt::Display) -> Failure {
    Failure::configuration(error)
}

/// The system refused something: `what` was to be done to `path`.
pub fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let path = path.to_owned();
    move |error| Failure::host(format!("cannot {what} {}: {error}", path.display()))
}
