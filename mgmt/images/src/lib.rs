//! Builds, imports and keeps guest images.
//!
//! An image is a disk with, usually, the kernel and the initial RAM disk to start it with, and a
//! manifest that says what they are and what they hash to. Images live in a [`Store`], one
//! directory each; once there, an image never changes. Guests write to an overlay of their own.

#![forbid(unsafe_code)]

mod build;
mod error;
mod hash;
mod import;
mod manifest;
mod name;
mod oci;
mod progress;
mod store;

pub use build::{BuildOptions, DEFAULT_DISK_BYTES, PackageName, releases};
pub use error::Error;
pub use import::ImportOptions;
pub use manifest::{Artifact, Login, MANIFEST_FORMAT, Manifest, Source};
pub use name::ImageName;
pub use progress::{Cancel, Progress, Quiet, Unit};
pub use store::{Check, Entry, Image, Store, home};
