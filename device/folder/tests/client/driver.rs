//! A small client: requests by their parts, and what the answers say.

use std::fs;
use std::path::PathBuf;

use folder::{Folder, Limits, Options, REPLY_HEADER, Root};
use tempfile::TempDir;

pub const ROOT: u64 = 1;
const ROOM: usize = 2 << 20;

pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const CREATE: u32 = 35;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
}

pub const EPERM: i32 = 1;
pub const ENOENT: i32 = 2;
pub const EIO: i32 = 5;
pub const EBADF: i32 = 9;
pub const EACCES: i32 = 13;
pub const EEXIST: i32 = 17;
pub const EXDEV: i32 = 18;
pub const ENOTDIR: i32 = 20;
pub const EISDIR: i32 = 21;
pub const EINVAL: i32 = 22;
pub const ENFILE: i32 = 23;
pub const EROFS: i32 = 30;
pub const ENOSYS: i32 = 38;
pub const ELOOP: i32 = 40;
pub const EPROTO: i32 = 71;
pub const EOPNOTSUPP: i32 = 95;
pub const ESTALE: i32 = 116;

pub const O_RDONLY: u32 = 0;
pub const O_WRONLY: u32 = 1;
pub const O_RDWR: u32 = 2;
pub const O_EXCL: u32 = 0o200;
pub const O_TRUNC: u32 = 0o1000;
pub const O_APPEND: u32 = 0o2000;

/// What an answer says, or the number of an error.
pub type Answer = Result<Vec<u8>, i32>;

/// Numbers, one after the other, as requests have them.
#[derive(Default)]
pub struct Body(pub Vec<u8>);

impl Body {
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn name(self, name: &str) -> Self {
        self.bytes(name.as_bytes()).bytes(&[0])
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

pub fn body() -> Body {
    Body::default()
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A request, whole.
pub fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let len = 40 + body.len() as u32;
    let header = Body::default().u32(len).u32(opcode).u64(77).u64(node).bytes(&[0; 16]);
    header.bytes(body).0
}

pub struct Client {
    /// The directory that is shared, in a directory of the test's own.
    pub host: PathBuf,
    pub folder: Folder,
    _place: TempDir,
}

impl Client {
    pub fn new() -> Self {
        Self::with(Options::default())
    }

    pub fn readonly() -> Self {
        Self::with(Options { readonly: true, ..Options::default() })
    }

    pub fn with_limits(limits: Limits) -> Self {
        Self::with(Options { limits, ..Options::default() })
    }

    pub fn with(options: Options) -> Self {
        let place = tempfile::tempdir().unwrap();
        let host = place.path().join("shared");
        fs::create_dir(&host).unwrap();
        let folder = Folder::new(Root::open(&host).unwrap(), options).unwrap();
        let mut client = Self { host, folder, _place: place };
        client.init();
        client
    }

    /// A path on the host, next to the directory that is shared.
    pub fn outside(&self, name: &str) -> PathBuf {
        self.host.with_file_name(name)
    }

    pub fn init(&mut self) -> Vec<u8> {
        let all = !(1 << 30);
        self.ask(op::INIT, 0, body().u32(7).u32(38).u32(131_072).u32(all).bytes(&[0; 48])).unwrap()
    }

    /// Sends a request and reads the answer.
    pub fn ask(&mut self, opcode: u32, node: u64, body: Body) -> Answer {
        self.ask_with_room(opcode, node, &body.0, ROOM)
    }

    pub fn ask_with_room(&mut self, opcode: u32, node: u64, body: &[u8], room: usize) -> Answer {
        let mut reply = Vec::new();
        self.folder.serve(&request(opcode, node, body), room, &mut reply);
        assert!((REPLY_HEADER..=room).contains(&reply.len()), "{} of {room} bytes", reply.len());
        assert_eq!(u32_at(&reply, 0) as usize, reply.len());
        assert_eq!(u64_at(&reply, 8), 77);
        match u32_at(&reply, 4) as i32 {
            0 => Ok(reply.split_off(REPLY_HEADER)),
            error => {
                assert_eq!(reply.len(), REPLY_HEADER);
                Err(-error)
            }
        }
    }

    /// Sends something that nobody answers.
    pub fn tell(&mut self, opcode: u32, node: u64, body: Body) {
        let mut reply = Vec::new();
        self.folder.serve(&request(opcode, node, &body.0), 0, &mut reply);
        assert!(reply.is_empty());
    }

    pub fn look_up(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        self.ask(op::LOOKUP, parent, body().name(name)).map(|entry| u64_at(&entry, 0))
    }

    /// The node at a path.
    pub fn walk(&mut self, path: &str) -> u64 {
        path.split('/').fold(ROOT, |node, name| self.look_up(node, name).unwrap())
    }

    pub fn forget(&mut self, node: u64, times: u64) {
        self.tell(op::FORGET, node, body().u64(times));
    }

    pub fn open(&mut self, node: u64, flags: u32) -> Result<u64, i32> {
        self.ask(op::OPEN, node, body().u32(flags).u32(0)).map(|out| u64_at(&out, 0))
    }

    /// The node and the handle.
    pub fn create(
        &mut self,
        parent: u64,
        name: &str,
        flags: u32,
        mode: u32,
    ) -> Result<(u64, u64), i32> {
        let body = body().u32(flags | 0o100).u32(mode).u32(0o22).u32(0).name(name);
        self.ask(op::CREATE, parent, body).map(|out| (u64_at(&out, 0), u64_at(&out, 128)))
    }

    pub fn make_directory(&mut self, parent: u64, name: &str, mode: u32) -> Result<u64, i32> {
        let body = body().u32(mode).u32(0o22).name(name);
        self.ask(op::MKDIR, parent, body).map(|entry| u64_at(&entry, 0))
    }

    pub fn read(&mut self, handle: u64, offset: u64, size: u32) -> Answer {
        let body = body().u64(handle).u64(offset).u32(size).u32(0).u64(0).u32(0).u32(0);
        self.ask(op::READ, 0, body)
    }

    pub fn write(&mut self, handle: u64, offset: u64, data: &[u8]) -> Result<u32, i32> {
        self.write_as(handle, offset, data, 0, 0)
    }

    pub fn write_as(
        &mut self,
        handle: u64,
        offset: u64,
        data: &[u8],
        write_flags: u32,
        flags: u32,
    ) -> Result<u32, i32> {
        let body = body().u64(handle).u64(offset).u32(data.len() as u32).u32(write_flags);
        let body = body.u64(0).u32(flags).u32(0).bytes(data);
        self.ask(op::WRITE, 0, body).map(|out| u32_at(&out, 0))
    }

    pub fn release(&mut self, handle: u64) -> Answer {
        self.ask(op::RELEASE, 0, body().u64(handle).bytes(&[0; 16]))
    }

    pub fn rename(&mut self, from: (u64, &str), to: (u64, &str)) -> Answer {
        self.ask(op::RENAME, from.0, body().u64(to.0).name(from.1).name(to.1))
    }

    /// `struct fuse_attr` of a node.
    pub fn attributes(&mut self, node: u64) -> Answer {
        let body = body().bytes(&[0; 16]);
        self.ask(op::GETATTR, node, body).map(|mut out| out.split_off(16))
    }

    /// `FUSE_SETATTR` with what is valid, and values for size, mode, uid and gid.
    pub fn set(
        &mut self,
        node: u64,
        valid: u32,
        size: u64,
        mode: u32,
        owner: (u32, u32),
    ) -> Answer {
        let body = body().u32(valid).u32(0).u64(0).u64(size).u64(0).u64(1_000).u64(2_000).u64(0);
        let body = body.u32(5).u32(6).u32(0).u32(mode).u32(0).u32(owner.0).u32(owner.1).u32(0);
        self.ask(op::SETATTR, node, body)
    }
}

/// How many descriptors this process has open below a directory.
pub fn descriptors_below(place: &std::path::Path) -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
    links.filter(|it| fs::read_link(it.path()).is_ok_and(|to| to.starts_with(place))).count()
}
