//! Reads OCI images (opencontainers.org, image-spec): local layouts, archives of them, what `docker
//! save` writes, and registries.
//!
//! An [`Image`] is one image for Linux on x86-64, as a [`Reference`] names it. Its layers are put
//! together in a [`Tree`], which exists nowhere but in this process: no name and no link in a layer
//! can lead out of it. What comes out is one archive without whiteouts, duplicates or surprises.
//!
//! All of it may be hostile. Documents and trees are bounded, digests are checked, and what
//! does not fit is refused with the place of the damage.

#![forbid(unsafe_code)]

mod compression;
mod digest;
mod docker;
mod document;
mod error;
mod files;
mod image;
mod layout;
mod reference;
mod registry;
mod tree;

pub use digest::Digest;
pub use error::Error;
pub use image::{Config, Image};
pub use reference::Reference;
pub use registry::Access;
pub use tree::{Limits, Tree, Usage};
