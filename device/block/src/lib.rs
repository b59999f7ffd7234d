//! Disk image back ends: raw and qcow2.
//!
//! A [`Disk`] is what a block device reads and writes. Calls block, so they come from a queue's
//! worker thread, never from a vCPU.
//!
//! [`open`] opens an image, [`create_qcow2`] and [`create_raw`] make one, and [`open_overlay`] gives a
//! guest a disk whose writes stay away from the base image. [`info`], [`resize`] and [`convert`] are
//! for images that no guest uses. An open image is locked (`lock.rs`) in the way that
//! QEMU's tools understand, so two programs never write one image at a time.
//!
//! # The format of an image
//!
//! Whoever knows an image's format should say so. With [`Format::Auto`] the first bytes decide,
//! and those bytes belong to the guest when the image is raw: a guest could turn its raw disk into
//! a qcow2 image that names any host file as its backing file, and would be given that file at the
//! next start. Hence the rule, which is also QEMU's: while an image is open as raw *because it was
//! guessed so*, a write that would make its first sector the header of an image format fails. With
//! [`Format::Raw`] every write is obeyed. A backing file whose format the overlay does not record
//! is guessed too, and then may not have a backing file of its own.

#![deny(unsafe_code)]

mod convert;
mod create;
mod disk;
mod error;
mod file;
mod given;
mod info;
mod lock;
mod memory;
mod open;
mod partial;
mod probe;
mod qcow2;
mod raw;
mod resize;
mod switch;

pub use convert::convert;
pub use create::create_raw;
pub use disk::Disk;
pub use error::{Cause, Error, Origin};
pub use given::{GivenFile, files, open_given};
pub use info::{Info, info};
pub use memory::MemoryDisk;
pub use open::{Format, OpenOptions, backing_files, open, open_overlay};
pub use qcow2::{Backing, BackingInfo, Qcow2Info, create_qcow2};
pub use resize::resize;
pub use switch::Switch;
