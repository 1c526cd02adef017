//! A FUSE client that speaks to the server in request bytes.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use vm_memory::VolatileSlice;
use vmm_fs::{Config, Mount, Mounts, Server};

pub(crate) const LOOKUP: u32 = 1;
pub(crate) const FORGET: u32 = 2;
pub(crate) const GETATTR: u32 = 3;
pub(crate) const SETATTR: u32 = 4;
pub(crate) const READLINK: u32 = 5;
pub(crate) const SYMLINK: u32 = 6;
pub(crate) const MKNOD: u32 = 8;
pub(crate) const MKDIR: u32 = 9;
pub(crate) const UNLINK: u32 = 10;
pub(crate) const RMDIR: u32 = 11;
pub(crate) const LINK: u32 = 13;
pub(crate) const OPEN: u32 = 14;
pub(crate) const READ: u32 = 15;
pub(crate) const WRITE: u32 = 16;
pub(crate) const STATFS: u32 = 17;
pub(crate) const RELEASE: u32 = 18;
pub(crate) const FSYNC: u32 = 20;
pub(crate) const SETXATTR: u32 = 21;
pub(crate) const GETXATTR: u32 = 22;
pub(crate) const LISTXATTR: u32 = 23;
pub(crate) const REMOVEXATTR: u32 = 24;
pub(crate) const FLUSH: u32 = 25;
pub(crate) const INIT: u32 = 26;
pub(crate) const OPENDIR: u32 = 27;
pub(crate) const READDIR: u32 = 28;
pub(crate) const RELEASEDIR: u32 = 29;
pub(crate) const CREATE: u32 = 35;
pub(crate) const INTERRUPT: u32 = 36;
pub(crate) const DESTROY: u32 = 38;
pub(crate) const IOCTL: u32 = 39;
pub(crate) const BATCH_FORGET: u32 = 42;
pub(crate) const FALLOCATE: u32 = 43;
pub(crate) const READDIRPLUS: u32 = 44;
pub(crate) const RENAME2: u32 = 45;
pub(crate) const LSEEK: u32 = 46;
pub(crate) const COPY_FILE_RANGE: u32 = 47;
pub(crate) const SETUPMAPPING: u32 = 48;
pub(crate) const REMOVEMAPPING: u32 = 49;
pub(crate) const SYNCFS: u32 = 50;
pub(crate) const TMPFILE: u32 = 51;
pub(crate) const STATX: u32 = 52;

pub(crate) const ROOT: u64 = 1;

/// The errno of a request, or its answer's body.
pub(crate) type Answer = Result<Vec<u8>, i32>;

pub(crate) fn path_fd(path: &Path) -> OwnedFd {
    File::options()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)
        .unwrap()
        .into()
}

/// A server of `root`, before INIT. The calling thread serves.
pub(crate) fn server(root: &Path, open_fd_limit: usize) -> Server {
    server_of(config(root, open_fd_limit))
}

/// The same, with these mounts.
pub(crate) fn server_with(root: &Path, open_fd_limit: usize, mounts: Mounts) -> Server {
    server_of(Config {
        mounts,
        ..config(root, open_fd_limit)
    })
}

/// A mount of its own that nobody takes away.
pub(crate) const LASTING: Mount = Mount {
    class: None,
    read_only: false,
    privileges: true,
    lasts: true,
    maps: false,
};

/// What a server of `root` is made from.
pub(crate) fn config(root: &Path, open_fd_limit: usize) -> Config {
    Config {
        root: path_fd(root),
        proc_self_fd: path_fd(Path::new("/proc/self/fd")),
        open_fd_limit,
        held_fd_limit: 1024,
        timeout: Duration::from_secs(1),
        mounts: Mounts {
            others: LASTING,
            ..Mounts::default()
        },
        maps: true,
    }
}

/// A server, before INIT. The calling thread serves.
pub(crate) fn server_of(config: Config) -> Server {
    let server = Server::new(config);
    // Opened first: entering changes the thread's working directory later.
    vmm_fs::enter_worker_thread().unwrap();
    server.unwrap()
}

/// Serves `request`, cut into buffers at `cuts`, with room for `reply` bytes.
pub(crate) fn serve_raw(
    server: &Server,
    request: &mut [u8],
    cuts: &[usize],
    reply: usize,
) -> Vec<u8> {
    let mut slices = Vec::new();
    let mut rest = request;
    let mut at = 0;
    for cut in cuts {
        let (head, tail) = rest.split_at_mut((*cut).min(at + rest.len()) - at);
        at += head.len();
        slices.push(VolatileSlice::from(head));
        rest = tail;
    }
    slices.push(VolatileSlice::from(rest));
    let mut reply = vec![0xa5; reply];
    let room = reply.len();
    let (first, second) = reply.split_at_mut(room.min(16));
    let written = server.serve(
        &slices,
        &[VolatileSlice::from(first), VolatileSlice::from(second)],
    );
    assert!(written <= room, "the answer is longer than the buffer");
    assert!(
        reply[written..].iter().all(|byte| *byte == 0xa5),
        "written beyond the answer"
    );
    reply.truncate(written);
    reply
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Little-endian fields, one after the other.
#[derive(Clone, Default)]
pub(crate) struct Body(pub(crate) Vec<u8>);

impl Body {
    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    pub(crate) fn bytes(mut self, value: &[u8]) -> Self {
        self.0.extend(value);
        self
    }
    pub(crate) fn name(self, value: impl AsRef<[u8]>) -> Self {
        self.bytes(value.as_ref()).bytes(&[0])
    }
}

pub(crate) fn body() -> Body {
    Body::default()
}

/// `struct fuse_in_header` and `body`.
pub(crate) fn request(opcode: u32, nodeid: u64, (uid, gid): (u32, u32), body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(40 + body.len()).unwrap();
    let header = Body::default()
        .u32(length)
        .u32(opcode)
        .u64(77)
        .u64(nodeid)
        .u32(uid)
        .u32(gid);
    header.u32(1).u32(0).bytes(body).0
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) nodeid: u64,
    pub(crate) ino: u64,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) flags: u32,
}

pub(crate) fn attr(bytes: &[u8], at: usize, nodeid: u64) -> Entry {
    Entry {
        nodeid,
        ino: u64_at(bytes, at),
        size: u64_at(bytes, at + 8),
        mode: u32_at(bytes, at + 60),
        nlink: u32_at(bytes, at + 64),
        uid: u32_at(bytes, at + 68),
        gid: u32_at(bytes, at + 72),
        flags: u32_at(bytes, at + 84),
    }
}

pub(crate) fn entry(bytes: &[u8]) -> Entry {
    attr(bytes, 40, u64_at(bytes, 0))
}

/// A guest of one server.
pub(crate) struct Client<'a> {
    pub(crate) server: &'a Server,
    /// Whose requests these are.
    pub(crate) ids: (u32, u32),
    /// How much room an answer gets behind its header.
    pub(crate) room: usize,
}

impl<'a> Client<'a> {
    /// After INIT.
    pub(crate) fn new(server: &'a Server) -> Self {
        let client = Self {
            server,
            ids: (0, 0),
            room: 1 << 16,
        };
        client.call(INIT, 0, init_body(41)).unwrap();
        client
    }

    pub(crate) fn call(&self, opcode: u32, nodeid: u64, body: Body) -> Answer {
        let mut bytes = request(opcode, nodeid, self.ids, &body.0);
        let reply = serve_raw(self.server, &mut bytes, &[40], 16 + self.room);
        assert!(reply.len() >= 16, "no answer to {opcode}");
        assert_eq!(u32_at(&reply, 0) as usize, reply.len());
        assert_eq!(u64_at(&reply, 8), 77);
        match u32_at(&reply, 4).cast_signed() {
            0 => Ok(reply[16..].to_vec()),
            error => {
                assert_eq!(reply.len(), 16);
                Err(-error)
            }
        }
    }

    pub(crate) fn lookup(&self, dir: u64, name: impl AsRef<[u8]>) -> Result<Entry, i32> {
        let entry = entry(&self.call(LOOKUP, dir, body().name(name))?);
        if entry.nodeid == 0 {
            Err(libc::ENOENT)
        } else {
            Ok(entry)
        }
    }

    pub(crate) fn forget(&self, nodeid: u64, count: u64) {
        let mut bytes = request(FORGET, nodeid, self.ids, &body().u64(count).0);
        assert!(serve_raw(self.server, &mut bytes, &[], 64).is_empty());
    }

    pub(crate) fn getattr(&self, nodeid: u64) -> Result<Entry, i32> {
        Ok(attr(
            &self.call(GETATTR, nodeid, body().u64(0).u64(0))?,
            16,
            nodeid,
        ))
    }

    pub(crate) fn mkdir(&self, dir: u64, name: impl AsRef<[u8]>, mode: u32) -> Result<Entry, i32> {
        Ok(entry(&self.call(
            MKDIR,
            dir,
            body().u32(mode).u32(0).name(name),
        )?))
    }

    pub(crate) fn create(
        &self,
        dir: u64,
        name: impl AsRef<[u8]>,
        flags: i32,
        mode: u32,
    ) -> Result<(Entry, u64), i32> {
        let fields = body()
            .u32((flags | libc::O_CREAT).cast_unsigned())
            .u32(mode)
            .u64(0);
        let answer = self.call(CREATE, dir, fields.name(name))?;
        Ok((entry(&answer), u64_at(&answer, 128)))
    }

    pub(crate) fn open(&self, nodeid: u64, flags: i32) -> Result<u64, i32> {
        self.open_kept(nodeid, flags).map(|(fh, _)| fh)
    }

    /// The handle, and whether it may be kept when the file is closed.
    pub(crate) fn open_kept(&self, nodeid: u64, flags: i32) -> Result<(u64, bool), i32> {
        let answer = self.call(OPEN, nodeid, body().u32(flags.cast_unsigned()).u32(0))?;
        Ok((u64_at(&answer, 0), u32_at(&answer, 8) & 1 << 31 != 0))
    }

    pub(crate) fn read(&self, nodeid: u64, fh: u64, offset: u64, size: u32) -> Answer {
        let fields = body().u64(fh).u64(offset).u32(size).u32(0).u64(0).u64(0);
        self.call(READ, nodeid, fields)
    }

    pub(crate) fn write(&self, nodeid: u64, fh: u64, offset: u64, data: &[u8]) -> Result<u32, i32> {
        self.write_flags(nodeid, fh, offset, data, 0)
    }

    pub(crate) fn write_flags(
        &self,
        nodeid: u64,
        fh: u64,
        offset: u64,
        data: &[u8],
        flags: i32,
    ) -> Result<u32, i32> {
        let size = u32::try_from(data.len()).unwrap();
        let fields = body().u64(fh).u64(offset).u32(size).u32(0).u64(0);
        let fields = fields.u32(flags.cast_unsigned()).u32(0).bytes(data);
        Ok(u32_at(&self.call(WRITE, nodeid, fields)?, 0))
    }

    pub(crate) fn release(&self, nodeid: u64, fh: u64) -> Answer {
        self.call(RELEASE, nodeid, body().u64(fh).u64(0).u64(0))
    }

    pub(crate) fn unlink(&self, dir: u64, name: impl AsRef<[u8]>) -> Answer {
        self.call(UNLINK, dir, body().name(name))
    }

    pub(crate) fn link(&self, nodeid: u64, dir: u64, name: impl AsRef<[u8]>) -> Result<Entry, i32> {
        Ok(entry(&self.call(
            LINK,
            dir,
            body().u64(nodeid).name(name),
        )?))
    }

    pub(crate) fn rename(
        &self,
        (from, old): (u64, impl AsRef<[u8]>),
        (to, new): (u64, impl AsRef<[u8]>),
        flags: u32,
    ) -> Answer {
        self.call(
            RENAME2,
            from,
            body().u64(to).u32(flags).u32(0).name(old).name(new),
        )
    }

    pub(crate) fn setattr(&self, nodeid: u64, set: Set) -> Result<Entry, i32> {
        let fields = body()
            .u32(set.valid)
            .u32(0)
            .u64(set.fh)
            .u64(set.size)
            .u64(0);
        let fields = fields.u64(set.seconds).u64(set.seconds).u64(0);
        let fields = fields.u32(set.nanoseconds).u32(set.nanoseconds).u32(0);
        let fields = fields.u32(set.mode).u32(0).u32(set.uid).u32(set.gid).u32(0);
        Ok(attr(&self.call(SETATTR, nodeid, fields)?, 16, nodeid))
    }

    pub(crate) fn opendir(&self, nodeid: u64) -> Result<u64, i32> {
        Ok(u64_at(&self.call(OPENDIR, nodeid, body().u64(0))?, 0))
    }

    /// One READDIR or READDIRPLUS: the names with their positions and nodeids.
    pub(crate) fn readdir(
        &self,
        nodeid: u64,
        fh: u64,
        offset: u64,
        size: u32,
        plus: bool,
    ) -> Result<Vec<(Vec<u8>, u64, u64)>, i32> {
        let opcode = if plus { READDIRPLUS } else { READDIR };
        let fields = body().u64(fh).u64(offset).u32(size).u32(0).u64(0).u64(0);
        let answer = self.call(opcode, nodeid, fields)?;
        assert!(answer.len() <= size as usize);
        let (mut found, mut at) = (Vec::new(), 0);
        while at < answer.len() {
            let id = if plus { u64_at(&answer, at) } else { 0 };
            let dirent = at + if plus { 128 } else { 0 };
            let length = u32_at(&answer, dirent + 16) as usize;
            let name = answer[dirent + 24..dirent + 24 + length].to_vec();
            found.push((name, u64_at(&answer, dirent + 8), id));
            at = dirent + (24 + length).next_multiple_of(8);
        }
        assert_eq!(at, answer.len());
        Ok(found)
    }

    /// All names of a directory in its order, read `size` bytes at a time, and the nodeids given.
    pub(crate) fn list(
        &self,
        nodeid: u64,
        size: u32,
        plus: bool,
    ) -> (Vec<Vec<u8>>, HashMap<u64, u64>) {
        let fh = self.opendir(nodeid).unwrap();
        let (mut names, mut given, mut offset) = (Vec::new(), HashMap::new(), 0);
        loop {
            let found = self.readdir(nodeid, fh, offset, size, plus).unwrap();
            if found.is_empty() {
                break;
            }
            for (name, next, id) in found {
                names.push(name);
                offset = next;
                if id != 0 {
                    *given.entry(id).or_default() += 1;
                }
            }
        }
        self.call(RELEASEDIR, nodeid, body().u64(fh).u64(0).u64(0))
            .unwrap();
        (names, given)
    }
}

/// What SETATTR sets.
#[derive(Default)]
pub(crate) struct Set {
    pub(crate) valid: u32,
    pub(crate) fh: u64,
    pub(crate) size: u64,
    pub(crate) seconds: u64,
    pub(crate) nanoseconds: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Set {
    /// The permissions alone.
    pub(crate) fn mode(mode: u32) -> Set {
        Set {
            valid: 1,
            mode,
            ..Set::default()
        }
    }

    /// The size alone.
    pub(crate) fn size(size: u64) -> Set {
        Set {
            valid: 8,
            size,
            ..Set::default()
        }
    }
}

pub(crate) fn init_body(minor: u32) -> Body {
    // All features offered, as bits 0 to 31 and (FUSE_INIT_EXT) 32 to 63.
    body()
        .u32(7)
        .u32(minor)
        .u32(1 << 20)
        .u32(u32::MAX >> 1)
        .u32(u32::MAX)
        .bytes(&[0; 44])
}
