//! Serves a directory of the host by the FUSE protocol (linux/fuse.h, fuse(4)), as a virtio file system
//! device carries it. The client is a guest's kernel, or whoever has taken the guest over.
//!
//! ```text
//!   request bytes -> wire: fields, checked -> an operation -> system calls, by descriptors -> reply bytes
//! ```
//!
//! What keeps a client in the directory:
//!
//! - It names files by numbers of nodes, which it was given, and by single names in a node. A name is one
//!   component: no slash, not `.` or `..`.
//! - A node is a descriptor that is good for no I/O (`O_PATH`), or the way to it from its parent's. It is
//!   opened by one name in its parent's descriptor, without following links, and stays on the directory's
//!   file system (openat2(2)). So nothing that is renamed meanwhile leads anywhere else. Nodes whose
//!   descriptor was given back are found again by their names, and only if they are still the same file.
//! - Contents are opened by the node's descriptor (`/proc/self/fd`), and only those of regular files and
//!   directories: nothing waits for a pipe, nothing wakes up a device.
//! - No device nodes are made, no set-user-ID or set-group-ID programs, and only attributes named `user.*`
//!   are served.
//!
//! All that the client makes this crate remember is bounded ([`Limits`]).

#![forbid(unsafe_code)]

mod attributes;
mod contents;
mod directories;
mod handles;
mod names;
mod nodes;
mod root;
mod serve;
mod snapshot;
mod spec;
mod wire;
mod xattrs;

pub use root::{OpenError, Root};
pub use serve::{Folder, Limits, MAX_REQUEST, Options, Outcome, REPLY_HEADER, REQUEST_HEADER};
pub use snapshot::{BadState, State};
