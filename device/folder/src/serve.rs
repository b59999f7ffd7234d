//! Requests as a whole: their headers, and which operation they are.

use std::os::fd::AsFd;

use rustix::fs::OFlags;
use rustix::io::{Errno, Result};

use crate::handles::Handles;
use crate::nodes::Nodes;
use crate::root::Root;
use crate::spec::{self, KERNEL_MINOR_VERSION, KERNEL_VERSION, OLDEST_MINOR_VERSION, init, opcode};
use crate::wire::{Fields, Reply};

/// The length of `struct fuse_in_header`, in bytes.
pub const REQUEST_HEADER: usize = 40;
/// The length of `struct fuse_out_header`, in bytes.
pub const REPLY_HEADER: usize = 16;
/// The most bytes that are written at once, and read: what 256 pages hold.
pub(crate) const MAX_DATA: usize = 1 << 20;
const MAX_PAGES: u16 = 256;
/// The longest request: data, and what is before it.
pub const MAX_REQUEST: usize = MAX_DATA + 4096;
/// How many requests the client has under way at once, when nobody waits for them.
const MAX_BACKGROUND: u16 = 32;
const CONGESTION_THRESHOLD: u16 = 24;

/// What is used of the protocol. There are no locks in it: the client's programs see each other's, and no
/// others. What is written is passed on at once.
const FLAGS: u32 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    // The host's kernel does that for a process without privileges.
    | init::HANDLE_KILLPRIV_V2;

/// How a directory is shared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Nothing is changed.
    pub readonly: bool,
    /// Who the files of this process's user belong to, as the client sees it.
    pub uid: u32,
    /// Which group the files of this process's group belong to, as the client sees it.
    pub gid: u32,
    /// How much is remembered.
    pub limits: Limits,
}

/// What a client can make this process hold at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Files that it knows.
    pub nodes: usize,
    /// Descriptors for these. Others are opened again when they are needed.
    pub node_descriptors: usize,
    /// Files and directories that it has open, each with a descriptor.
    pub handles: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self::with_descriptors(512)
    }
}

impl Limits {
    /// For so many descriptors in all.
    #[must_use]
    pub fn with_descriptors(count: usize) -> Self {
        Self { nodes: 1 << 19, node_descriptors: count / 2, handles: count / 2 }
    }
}

/// What became of a request, for those who count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was carried out, or answered as a file system does: there is no such file, and so on.
    Done,
    /// So many bytes were read.
    Read(usize),
    /// So many bytes were written.
    Written(usize),
    /// It made no sense, or the host could not do it.
    Failed,
}

/// A directory of the host, as one client sees it.
pub struct Folder {
    // Configuration.
    pub(crate) options: Options,
    // Wiring.
    pub(crate) root: Root,
    // Volatile state.
    pub(crate) nodes: Nodes,
    pub(crate) handles: Handles,
    /// The client has introduced itself.
    pub(crate) is_ready: bool,
}

/// `struct fuse_in_header`, as far as it is used.
struct Header {
    len: u32,
    opcode: u32,
    unique: u64,
    node: u64,
}

impl Header {
    fn read(request: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(request.get(..REQUEST_HEADER)?);
        let mut read = || {
            Ok::<_, Errno>(Self {
                len: fields.u32()?,
                opcode: fields.u32()?,
                unique: fields.u64()?,
                node: fields.u64()?,
            })
        };
        read().ok()
    }
}

impl Folder {
    /// Shares a directory.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn new(root: Root, options: Options) -> std::io::Result<Self> {
        let Limits { nodes, node_descriptors, handles } = options.limits;
        Ok(Self {
            options,
            nodes: Nodes::new(&root, nodes, node_descriptors)?,
            handles: Handles::new(handles),
            root,
            is_ready: false,
        })
    }

    /// Forgets all that the client has been told and has open, as if it had never been there.
    pub fn reset(&mut self) {
        self.nodes.clear();
        self.handles.clear();
        self.is_ready = false;
    }

    /// Serves a request. What `reply` holds afterwards is the answer, of at most `room` bytes; if it is
    /// empty, there is none.
    pub fn serve(&mut self, request: &[u8], room: usize, reply: &mut Vec<u8>) -> Outcome {
        reply.clear();
        let Some(header) = Header::read(request) else { return Outcome::Failed };
        let body = request.get(REQUEST_HEADER..).unwrap_or_default();
        match header.opcode {
            opcode::FORGET => return self.forget(header.node, body),
            opcode::BATCH_FORGET => return self.batch_forget(body),
            // Nobody waits for those whose answers do not come; and nothing takes so long here.
            opcode::INTERRUPT => return Outcome::Done,
            _ if room < REPLY_HEADER => return Outcome::Failed,
            _ => {}
        }
        reply.resize(REPLY_HEADER, 0);
        let is_whole = header.len as usize == request.len() && request.len() <= MAX_REQUEST;
        let result = if is_whole {
            self.operate(&header, Fields::new(body), &mut Reply::new(reply, room))
        } else {
            Err(Errno::INVAL)
        };
        let (error, outcome) = match result {
            Ok(outcome) => (0, outcome),
            Err(error) => {
                reply.truncate(REPLY_HEADER);
                (-error.raw_os_error(), outcome_of(error))
            }
        };
        // At most MAX_REQUEST.
        let len = (reply.len() as u32).to_le_bytes();
        let head = [&len[..], &error.to_le_bytes(), &header.unique.to_le_bytes()].concat();
        if let Some(place) = reply.get_mut(..REPLY_HEADER) {
            place.copy_from_slice(&head);
        }
        outcome
    }

    fn operate(
        &mut self,
        header: &Header,
        mut fields: Fields,
        reply: &mut Reply,
    ) -> Result<Outcome> {
        if header.opcode != opcode::INIT && !self.is_ready {
            return Err(Errno::IO);
        }
        let (node, fields) = (header.node, &mut fields);
        match header.opcode {
            opcode::INIT => self.init(fields, reply),
            opcode::DESTROY => {
                self.reset();
                Ok(())
            }
            opcode::LOOKUP => self.look_up(node, fields, reply),
            opcode::GETATTR => self.get_attributes(node, reply),
            opcode::SETATTR => self.set_attributes(node, fields, reply),
            opcode::READLINK => self.read_link(node, reply),
            opcode::SYMLINK => self.make_link(node, fields, reply),
            opcode::MKNOD => self.make_node(node, fields, reply),
            opcode::MKDIR => self.make_directory(node, fields, reply),
            opcode::UNLINK => self.remove(node, fields, false),
            opcode::RMDIR => self.remove(node, fields, true),
            opcode::RENAME => self.rename(node, fields, false),
            opcode::RENAME2 => self.rename(node, fields, true),
            opcode::LINK => self.link(node, fields, reply),
            opcode::OPEN => self.open(node, fields, reply),
            opcode::CREATE => self.create(node, fields, reply),
            opcode::READ => return self.read(fields, reply).map(Outcome::Read),
            opcode::WRITE => return self.write(fields, reply).map(Outcome::Written),
            opcode::RELEASE | opcode::RELEASEDIR => self.release(fields),
            opcode::FSYNC | opcode::FSYNCDIR => self.sync(fields),
            opcode::SYNCFS => self.sync_all(),
            opcode::FALLOCATE => self.allocate(fields),
            opcode::LSEEK => self.seek(fields, reply),
            opcode::COPY_FILE_RANGE => self.copy_range(fields, reply),
            opcode::STATFS => self.file_system(reply),
            opcode::OPENDIR => self.open_directory(node, reply),
            opcode::READDIR => self.read_directory(fields, reply, false),
            opcode::READDIRPLUS => self.read_directory(fields, reply, true),
            opcode::GETXATTR => self.get_xattr(node, fields, reply),
            opcode::LISTXATTR => self.list_xattrs(node, fields, reply),
            opcode::SETXATTR => self.set_xattr(node, fields),
            opcode::REMOVEXATTR => self.remove_xattr(node, fields),
            // The client does without, and asks for it only once.
            _ => Err(Errno::NOSYS),
        }
        .map(|()| Outcome::Done)
    }

    /// `struct fuse_init_in`, `struct fuse_init_out`.
    fn init(&mut self, fields: &mut Fields, reply: &mut Reply) -> Result<()> {
        let (major, minor) = (fields.u32()?, fields.u32()?);
        if major < KERNEL_VERSION || major == KERNEL_VERSION && minor < OLDEST_MINOR_VERSION {
            return Err(Errno::PROTO);
        }
        reply.u32(KERNEL_VERSION)?;
        reply.u32(KERNEL_MINOR_VERSION)?;
        if major > KERNEL_VERSION {
            // It will ask again, in this version.
            return reply.bytes(&[0; 56]);
        }
        let (max_readahead, flags) = (fields.u32()?, fields.u32()?);
        self.reset();
        self.is_ready = true;
        reply.u32(max_readahead)?;
        reply.u32(flags & FLAGS)?;
        reply.bytes(&MAX_BACKGROUND.to_le_bytes())?;
        reply.bytes(&CONGESTION_THRESHOLD.to_le_bytes())?;
        reply.u32(MAX_DATA as u32)?;
        reply.u32(1)?; // times are in nanoseconds
        reply.bytes(&MAX_PAGES.to_le_bytes())?;
        reply.bytes(&[0; 34])
    }

    fn forget(&mut self, node: u64, body: &[u8]) -> Outcome {
        let Ok(lookups) = Fields::new(body).u64() else { return Outcome::Failed };
        self.nodes.forget(node, lookups);
        Outcome::Done
    }

    /// `struct fuse_batch_forget_in`, and a `struct fuse_forget_one` for each node.
    fn batch_forget(&mut self, body: &[u8]) -> Outcome {
        let mut fields = Fields::new(body);
        let Ok(count) = fields.u32().and_then(|count| fields.skip(4).map(|()| count)) else {
            return Outcome::Failed;
        };
        for _ in 0..count {
            // No more than there are bytes for.
            let (Ok(node), Ok(lookups)) = (fields.u64(), fields.u64()) else {
                return Outcome::Failed;
            };
            self.nodes.forget(node, lookups);
        }
        Outcome::Done
    }

    /// What changes something is for folders only that may be changed.
    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.options.readonly { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// `struct fuse_kstatfs`.
    fn file_system(&self, reply: &mut Reply) -> Result<()> {
        let all = rustix::fs::fstatvfs(self.root.as_fd())?;
        for value in [all.f_blocks, all.f_bfree, all.f_bavail, all.f_files, all.f_ffree] {
            reply.u64(value)?;
        }
        for value in [all.f_bsize, all.f_namemax, all.f_frsize] {
            reply.u32(u32::try_from(value).unwrap_or(u32::MAX))?;
        }
        reply.bytes(&[0; 28])
    }

    /// All that the client wrote goes to stable storage.
    fn sync_all(&self) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        rustix::fs::syncfs(self.root.reopen(self.root.as_fd(), flags)?)
    }
}

/// Errors that are a file system's ordinary answers count as nothing special.
fn outcome_of(error: Errno) -> Outcome {
    let special = [
        Errno::INVAL,
        Errno::IO,
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
        Errno::STALE,
        Errno::BADF,
        Errno::PROTO,
    ];
    if special.contains(&error) { Outcome::Failed } else { Outcome::Done }
}

const _: () = assert!(spec::ENTRY_OUT < 4096 && MAX_DATA == MAX_PAGES as usize * 4096);
