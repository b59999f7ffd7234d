//! qcow2 images: QEMU's copy-on-write format, versions 2 and 3.
//!
//! The mapping of guest to host clusters is imago's. What this module adds is what imago leaves
//! to others:
//!
//! - `header` and `check` read an image before imago does and refuse what is damaged or can't be
//!   served, so that imago only ever sees consistent metadata: it trusts the refcounts, and would
//!   for instance give the guest the header's own cluster if the refcounts call it free;
//! - `chain` opens backing files, with limits;
//! - `storage` orders what imago writes, so that a crash at any moment leaves at worst leaked
//!   clusters;
//! - `disk` serialises the requests that imago can't take concurrently;
//! - `create` makes new images, and `info` tells what one is made of.
//!
//! Sections in comments are those of the specification, docs/interop/qcow2.txt of QEMU.

mod chain;
mod check;
mod create;
mod disk;
#[cfg(test)]
mod full;
mod header;
mod info;
#[cfg(test)]
mod power_loss;
mod refcount;
mod storage;

pub use create::{Backing, create_qcow2};

pub use info::{BackingInfo, Qcow2Info};

pub(crate) use chain::{backing_files, open, require_backing, resize};
pub(crate) use create::{check_size, empty_image};
pub(crate) use info::info;
