//! Regular files: OPEN, CREATE, TMPFILE, READ, WRITE, FLUSH, RELEASE, FSYNC, SYNCFS, FALLOCATE,
//! LSEEK, COPY_FILE_RANGE.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FallocateFlags, SeekFrom};

use crate::attributes::PERMISSIONS;
use crate::buffers::{Reader, Reply, check_name, only_string};
use crate::errno::{Errno, Result};
use crate::identity::{Route, Stat};
use crate::inodes::Node;
use crate::namespace::TWO_NAMES;
use crate::protocol::{
    CopyFileRangeIn, CreateIn, CreateOut, EntryOut, FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE,
    FOPEN_KEEP_OPEN, FOPEN_NO_FLUSH, FOPEN_NO_MMAP, FOPEN_NOFLUSH, FSYNC_FDATASYNC, FallocateIn,
    FlushIn, FsyncIn, LseekIn, LseekOut, OpenIn, OpenOut, ReadIn, ReleaseIn, SyncfsIn, WRITE_CACHE,
    WriteIn, WriteOut,
};
use crate::server::{Call, Server};
use crate::{sys, worker};

/// The open flags that mean something to the host. Left out are O_APPEND (given with each write, as
/// fcntl can change it), O_DIRECT (the guest's buffers need not be aligned as the host's file system
/// wants), and what the guest kernel does itself.
const HOST_FLAGS: i32 =
    libc::O_ACCMODE | libc::O_TRUNC | libc::O_SYNC | libc::O_DSYNC | libc::O_NOATIME;
/// How a file is open on the host that the guest may keep open: for reading, and nothing else is said.
const KEPT_FLAGS: i32 = libc::O_RDONLY | libc::O_NOCTTY;
/// How much one COPY_FILE_RANGE copies at most, in bytes: the caller asks again for the rest, and a
/// thread is not kept busy for long.
const COPY_MAX: u64 = 64 << 20;
/// The modes of fallocate (`linux/falloc.h`).
const FALLOCATE_MODES: FallocateFlags = FallocateFlags::KEEP_SIZE
    .union(FallocateFlags::PUNCH_HOLE)
    .union(FallocateFlags::COLLAPSE_RANGE)
    .union(FallocateFlags::ZERO_RANGE)
    .union(FallocateFlags::INSERT_RANGE)
    .union(FallocateFlags::UNSHARE_RANGE);

/// The flags to open with on the host for the guest's.
fn host_flags(flags: u32) -> Result<i32> {
    let flags = i32::try_from(flags).map_err(|_| Errno(libc::EINVAL))? & HOST_FLAGS;
    if flags & libc::O_ACCMODE == libc::O_ACCMODE {
        return Err(Errno(libc::EINVAL));
    }
    Ok(flags | libc::O_NOCTTY)
}

/// A file offset; negative ones have meanings of their own to the kernel.
fn offset(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| Errno(libc::EINVAL))
}

/// As [`offset`], for calls that take it without a sign.
fn forward(value: u64) -> Result<u64> {
    offset(value).map(|_| value)
}

/// What the guest is told of an open file of the mount. One that is only read has nothing to flush.
fn open_flags(mount: &Route, host_flags: i32) -> u32 {
    let content = match mount.file_system.sizes {
        true => FOPEN_KEEP_CACHE,
        false => FOPEN_DIRECT_IO | FOPEN_NO_MMAP,
    };
    match host_flags & libc::O_ACCMODE {
        libc::O_RDONLY => content | FOPEN_NOFLUSH,
        _ if mount.file_system.flushes => content,
        _ => content | FOPEN_NO_FLUSH,
    }
}

impl Server {
    /// Opens the regular file `node` for data; refuses everything else.
    pub(crate) fn open_file(&self, node: &Node, flags: i32) -> Result<OwnedFd> {
        match node.kind {
            libc::S_IFREG => sys::openat(
                self.proc(),
                sys::FdName::new(node.as_fd()).as_c_str(),
                flags,
                0,
            ),
            libc::S_IFDIR => Err(Errno(libc::EISDIR)),
            libc::S_IFLNK => Err(Errno(libc::ELOOP)),
            // FIFOs, sockets and devices live in the guest.
            _ => Err(Errno(libc::EACCES)),
        }
    }

    /// As [`Server::open_file`], for a caller who has given these flags: what can only be appended to on the host has
    /// to be open for that.
    fn open_as(&self, node: &Node, flags: i32, given: u32) -> Result<OwnedFd> {
        let appends = given & libc::O_APPEND.cast_unsigned() != 0;
        // Some of the files without sizes have their readers wait for events, which no thread here can.
        let flags = match node.mount.file_system.sizes {
            true => flags,
            false => flags | libc::O_NONBLOCK,
        };
        match self.open_file(node, flags) {
            Err(Errno(libc::EPERM)) if appends => self.open_file(node, flags | libc::O_APPEND),
            opened => opened,
        }
    }

    pub(crate) fn open(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let OpenIn { flags, .. } = reader.read()?;
        reply.need::<OpenOut>()?;
        self.handles.check_room()?;
        let (given, flags) = (flags, host_flags(flags)?);
        let node = self.inodes.get(call.nodeid)?;
        let fd = self.open_as(&node, flags, given)?;
        let fh = self.handles.insert(node.id, fd, false)?;
        let mut open_flags = open_flags(&node.mount, flags);
        let may_keep = flags == KEPT_FLAGS && open_flags & FOPEN_KEEP_CACHE != 0;
        if may_keep && node.mount.traits.lasts && self.handles.keep(node.id, fh) {
            open_flags |= FOPEN_KEEP_OPEN;
        }
        reply.body(&OpenOut {
            fh,
            open_flags,
            padding: 0,
        })
    }

    pub(crate) fn create(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let wanted: CreateIn = reader.read()?;
        let mut buffer = [0; TWO_NAMES];
        let name = check_name(only_string(reader.rest(&mut buffer)?)?)?;
        reply.need::<CreateOut>()?;
        let flags = host_flags(wanted.flags)?;
        let exclusive = i32::try_from(wanted.flags).unwrap_or(0) & libc::O_EXCL != 0;
        let dir = self.inodes.get(call.nodeid)?.directory()?;
        self.handles.check_room()?;
        self.inodes.check_room(false)?;
        let make = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        let made = match self.new_file(call, &dir, name, &wanted, flags | make) {
            // The guest has not looked the name up. That it is there comes before any other reason.
            Err(_) if exclusive && Stat::at(dir.as_fd(), name).is_ok() => Err(Errno(libc::EEXIST)),
            made => made,
        };
        let (entry, mount, fd) = match made {
            Ok(fd) => (self.adopt(&dir, Some(name), &fd)?, dir.mount, fd),
            // Somebody else was faster: it is opened, as the system call does.
            Err(Errno(libc::EEXIST)) if !exclusive => {
                let entry = self.find(call, &dir, name)?;
                let opened = self
                    .inodes
                    .get(entry.nodeid)
                    .and_then(|node| Ok((node.mount, self.open_as(&node, flags, wanted.flags)?)));
                let (mount, fd) =
                    opened.inspect_err(|_| self.inodes.forget(&[(entry.nodeid, 1)]))?;
                (entry, mount, fd)
            }
            Err(errno) => return Err(errno),
        };
        let open_flags = open_flags(&mount, flags);
        self.answer_created(entry, fd, open_flags, reply)
    }

    pub(crate) fn tmpfile(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        // The name that follows is that of the guest's anonymous dentry and means nothing.
        let wanted: CreateIn = reader.read()?;
        reply.need::<CreateOut>()?;
        let flags = host_flags(wanted.flags)?;
        let exclusive = i32::try_from(wanted.flags).unwrap_or(0) & libc::O_EXCL;
        let dir = self.inodes.get(call.nodeid)?.directory()?;
        self.handles.check_room()?;
        self.inodes.check_room(true)?;
        let fd = self.new_file(
            call,
            &dir,
            c".",
            &wanted,
            flags | libc::O_TMPFILE | exclusive,
        )?;
        let entry = self.adopt(&dir, None, &fd)?;
        let open_flags = open_flags(&dir.mount, flags);
        self.answer_created(entry, fd, open_flags, reply)
    }

    fn new_file(
        &self,
        call: Call,
        dir: &Node,
        name: &CStr,
        wanted: &CreateIn,
        flags: i32,
    ) -> Result<OwnedFd> {
        let mode = wanted.mode & PERMISSIONS;
        self.check_mode(dir.mount, libc::S_IFREG, mode)?;
        worker::mask(wanted.umask)?;
        let _caller = worker::assume(call.uid, call.gid, mode & libc::S_ISGID != 0)?;
        sys::openat(dir.as_fd(), name, flags, mode)
    }

    /// Counts a lookup of the file `fd` that was just made in `dir`.
    fn adopt(&self, dir: &Node, name: Option<&CStr>, fd: &OwnedFd) -> Result<EntryOut> {
        // From the open file itself, not from its name, which may already be another's.
        let number = sys::FdName::new(fd.as_fd());
        let path = sys::openat(self.proc(), number.as_c_str(), libc::O_PATH, 0)?;
        let (stat, facts, route) = self.inodes.examine(path.as_fd(), &dir.mount)?;
        let place = name.map(|name| (dir.id, name));
        let nodeid = self.inodes.admit(place, path, facts, route)?;
        Ok(self.entry_out(nodeid, stat.attr()))
    }

    fn answer_created(
        &self,
        entry: EntryOut,
        fd: OwnedFd,
        open_flags: u32,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let inserted = self.handles.insert(entry.nodeid, fd, false);
        // A request that fails leaves no lookup behind.
        let fh = inserted.inspect_err(|_| self.inodes.forget(&[(entry.nodeid, 1)]))?;
        let open = OpenOut {
            fh,
            open_flags,
            padding: 0,
        };
        reply.body(&CreateOut { entry, open })
    }

    pub(crate) fn read(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let wanted: ReadIn = reader.read()?;
        let handle = self.handles.file(call.nodeid, wanted.fh)?;
        let start = offset(wanted.offset)?;
        let size = usize::try_from(wanted.size)
            .unwrap_or(usize::MAX)
            .min(reply.room());
        let mut done = 0;
        while done < size {
            let into = reply.iovecs(done, size - done);
            let at = advance(start, done)?;
            match sys::preadv(handle.as_fd(), &into, at) {
                Ok(count) => {
                    done += count;
                    // Less than asked for is the end of the file, to the guest as to the host.
                    if count < into.bytes() {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    pub(crate) fn write(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let wanted: WriteIn = reader.read()?;
        reply.need::<WriteOut>()?;
        let handle = self.handles.file(call.nodeid, wanted.fh)?;
        let start = offset(wanted.offset)?;
        let size = usize::try_from(wanted.size).unwrap_or(usize::MAX);
        if size != reader.left() {
            return Err(Errno(libc::EINVAL));
        }
        let flags = write_flags(&wanted);
        let mut done = 0;
        while done < size {
            let from = reader.iovecs(done, size - done);
            match sys::pwritev(handle.as_fd(), &from, advance(start, done)?, flags) {
                Ok(count) => {
                    done += count;
                    if count < from.bytes() {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        let size = u32::try_from(done).map_err(|_| Errno(libc::EINVAL))?;
        reply.body(&WriteOut { size, padding: 0 })
    }

    pub(crate) fn flush(&self, call: Call, reader: &mut Reader<'_, '_>) -> Result<usize> {
        let FlushIn { fh, .. } = reader.read()?;
        let handle = self.handles.file(call.nodeid, fh)?;
        // Closing any descriptor of an open file is what makes a file system report late errors.
        sys::close(sys::dup(handle.as_fd())?).map(|()| 0)
    }

    pub(crate) fn release(&self, call: Call, reader: &mut Reader<'_, '_>) -> Result<usize> {
        let ReleaseIn { fh, .. } = reader.read()?;
        self.handles.remove(call.nodeid, fh).map(|()| 0)
    }

    pub(crate) fn fsync(&self, call: Call, reader: &mut Reader<'_, '_>) -> Result<usize> {
        let FsyncIn {
            fh, fsync_flags, ..
        } = reader.read()?;
        let handle = self.handles.get(call.nodeid, fh)?;
        sys::sync(handle.as_fd(), fsync_flags & FSYNC_FDATASYNC != 0).map(|()| 0)
    }

    pub(crate) fn syncfs(&self, call: Call, reader: &mut Reader<'_, '_>) -> Result<usize> {
        let SyncfsIn { .. } = reader.read()?;
        let node = self.inodes.get(call.nodeid)?;
        // The root of a submount.
        let root = match node.kind {
            libc::S_IFDIR => self.open_directory(&node),
            _ => self.open_file(&node, KEPT_FLAGS),
        };
        sys::syncfs(root?.as_fd()).map(|()| 0)
    }

    pub(crate) fn fallocate(&self, call: Call, reader: &mut Reader<'_, '_>) -> Result<usize> {
        let wanted: FallocateIn = reader.read()?;
        let handle = self.handles.file(call.nodeid, wanted.fh)?;
        let mode = FallocateFlags::from_bits_retain(wanted.mode);
        if !FALLOCATE_MODES.contains(mode) {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        let (start, length) = (forward(wanted.offset)?, forward(wanted.length)?);
        sys::fallocate(handle.as_fd(), mode, start, length).map(|()| 0)
    }

    pub(crate) fn lseek(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let LseekIn {
            fh,
            offset: start,
            whence,
            ..
        } = reader.read()?;
        reply.need::<LseekOut>()?;
        let handle = self.handles.file(call.nodeid, fh)?;
        let start = forward(start)?;
        let to = match i32::try_from(whence) {
            Ok(libc::SEEK_DATA) => SeekFrom::Data(start),
            Ok(libc::SEEK_HOLE) => SeekFrom::Hole(start),
            // The guest kernel does all others itself.
            _ => return Err(Errno(libc::EINVAL)),
        };
        let offset = sys::lseek(handle.as_fd(), to)?;
        reply.body(&LseekOut { offset })
    }

    pub(crate) fn copy_file_range(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let wanted: CopyFileRangeIn = reader.read()?;
        reply.need::<WriteOut>()?;
        if wanted.flags != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let from = self.handles.file(call.nodeid, wanted.fh_in)?;
        let to = self.handles.file(wanted.nodeid_out, wanted.fh_out)?;
        let length = usize::try_from(wanted.len.min(COPY_MAX)).unwrap_or(0);
        let copied = sys::copy_file_range(
            (from.as_fd(), forward(wanted.off_in)?),
            (to.as_fd(), forward(wanted.off_out)?),
            length,
        )?;
        let size = u32::try_from(copied).map_err(|_| Errno(libc::EINVAL))?;
        reply.body(&WriteOut { size, padding: 0 })
    }
}

fn advance(start: i64, done: usize) -> Result<i64> {
    i64::try_from(done)
        .ok()
        .and_then(|done| start.checked_add(done))
        .ok_or(Errno(libc::EFBIG))
}

/// The `RWF_*` flags of a write: how the file is open at this moment.
fn write_flags(wanted: &WriteIn) -> i32 {
    let given = i32::try_from(wanted.flags).unwrap_or(0);
    let has = |flag: i32| given & flag == flag;
    let mut flags = 0;
    // The guest has worked an offset out, but from the size it knows; others may append too.
    // Pages of a mapping are written where they belong.
    if has(libc::O_APPEND) && wanted.write_flags & WRITE_CACHE == 0 {
        flags |= sys::RWF_APPEND;
    }
    if has(libc::O_SYNC) {
        flags |= sys::RWF_SYNC;
    } else if has(libc::O_DSYNC) {
        flags |= sys::RWF_DSYNC;
    }
    flags
}
