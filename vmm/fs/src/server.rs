//! Requests in, answers out: the dispatch, and the life of a FUSE session.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::AtFlags;
use vm_memory::VolatileSlice;

use crate::buffers::{Reader, Reply};
use crate::config::{Config, MAX_INODES, handles};
use crate::errno::{Errno, Result};
use crate::error::Error;
use crate::handles::Handles;
use crate::identity::{Route, Stat, examine, refuse_reflections};
use crate::inodes::Inodes;
use crate::mounts::{Mounts, Parting};
use crate::protocol::{
    Attr, AttrOut, BatchForgetIn, EntryOut, ForgetIn, ForgetOne, InHeader, InitIn, InitOut, MAJOR,
    MINOR, MINOR_OLDEST, init, opcode,
};
use crate::table::{Limits, Opened};
use crate::window::Mappings;
use crate::{sys, worker};

/// Pages (of 4096 bytes) per READ or WRITE: `FUSE_MAX_MAX_PAGES` (`fs/fuse/fuse_i.h`).
const MAX_PAGES: u16 = 256;
/// Bytes per WRITE.
const MAX_WRITE: u32 = MAX_PAGES as u32 * 4096;
/// How many requests that nobody waits for (readahead) the guest sends at once, and from how many
/// on it holds back: `FUSE_DEFAULT_MAX_BACKGROUND` is 12, too few for more than one thread here.
const MAX_BACKGROUND: u16 = 64;
const CONGESTION_THRESHOLD: u16 = 48;
/// What is taken of the features the guest kernel offers. `lib.rs` says why not more.
const FEATURES: u64 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::POSIX_ACL
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::SUBMOUNTS
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT
    | init::INIT_EXT
    | init::HAS_INODE_DAX;
/// What of them the guest must offer: access lists decide who may do what, and with them come another form of SETXATTR
/// and umasks that the server applies.
const NEEDED: u64 = init::DONT_MASK | init::POSIX_ACL | init::SETXATTR_EXT;

/// Who asks, and about what.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) nodeid: u64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The server of one exported tree.
pub struct Server {
    pub(crate) proc: OwnedFd,
    pub(crate) inodes: Inodes,
    pub(crate) handles: Handles,
    /// None where nothing is to be mapped.
    pub(crate) mappings: Option<Mappings>,
    /// Seconds and nanoseconds.
    timeout: (u64, u32),
    ready: AtomicBool,
}

impl Server {
    /// A server that waits for the guest's INIT.
    ///
    /// # Errors
    /// If the root is not a directory that can be exported, or `proc_self_fd` is something else.
    pub fn new(config: Config) -> std::result::Result<Self, Error> {
        let root_error = |errno: Errno| Error::Root(errno.into());
        let route = |stat: &Stat| {
            Ok(Route {
                id: stat.mount(),
                traits: config.mounts.of(stat.mount()),
                is_root: true,
                file_system: refuse_reflections(config.root.as_fd())?,
            })
        };
        let (_, facts, root) = examine(config.root.as_fd(), route).map_err(root_error)?;
        if facts.kind != libc::S_IFDIR {
            return Err(Error::RootNotDirectory);
        }
        // The root by way of its number must be the root: the directory is this process's.
        let number = sys::FdName::new(config.root.as_fd());
        let proc_error = |errno: Errno| Error::ProcSelfFd(errno.into());
        let seen = sys::openat(
            config.proc_self_fd.as_fd(),
            number.as_c_str(),
            libc::O_PATH,
            0,
        )
        .and_then(|fd| examine(fd.as_fd(), route))
        .map_err(proc_error)?;
        if seen.1.key != facts.key {
            return Err(proc_error(Errno(libc::EXDEV)));
        }
        let mappings = config
            .maps
            .then(|| Mappings::new().map_err(|errno| Error::Window(errno.into())));
        let mappings = mappings.transpose()?;
        let limits = Limits {
            cached: config.open_fd_limit,
            pinned: config.held_fd_limit,
            entries: MAX_INODES as usize,
        };
        Ok(Self {
            timeout: (config.timeout.as_secs(), config.timeout.subsec_nanos()),
            proc: config.proc_self_fd,
            inodes: Inodes::new(Opened::new(config.root, root), facts, limits, config.mounts),
            handles: Handles::new(handles(config.held_fd_limit)),
            mappings,
            ready: AtomicBool::new(false),
        })
    }

    /// Serves one request. `request`: the readable buffers of the chain, `reply`: the writable ones.
    /// Returns the number of bytes written to `reply`; 0 means that there is no reply.
    ///
    /// Must be called by threads that have called [`crate::enter_worker_thread`]; in others every request
    /// fails with EIO.
    pub fn serve(&self, request: &[VolatileSlice<'_>], reply: &[VolatileSlice<'_>]) -> usize {
        let mut reader = Reader::new(request);
        let length = reader.left();
        let Ok(header) = reader.read::<InHeader>() else {
            return 0;
        };
        let sound = usize::try_from(header.len) == Ok(length);
        let reply = Reply::new(reply);
        match header.opcode {
            opcode::FORGET | opcode::BATCH_FORGET => {
                if sound && self.is_ready() {
                    // Nothing can be answered, so that a bad one is simply over.
                    let _ = self.forget(&header, &mut reader);
                }
                return 0;
            }
            // Requests are carried out to their end: there is nothing to interrupt, and the protocol
            // has no answer for either of these.
            opcode::INTERRUPT | opcode::NOTIFY_REPLY => return 0,
            _ if reply.is_too_small() => return 0,
            _ => {}
        }
        let outcome = if !sound || !worker::is_worker() {
            Err(Errno(libc::EIO))
        } else if header.opcode == opcode::INIT {
            self.init(&mut reader, &reply)
        } else if !self.is_ready() {
            Err(Errno(libc::EIO))
        } else if header.total_extlen != 0 {
            // Extensions come with features that are not negotiated.
            Err(Errno(libc::EINVAL))
        } else {
            self.dispatch(&header, &mut reader, &reply)
        };
        reply.finish(header.unique, outcome)
    }

    fn dispatch(
        &self,
        header: &InHeader,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let call = Call {
            nodeid: header.nodeid,
            uid: header.uid,
            gid: header.gid,
        };
        match header.opcode {
            opcode::LOOKUP => self.lookup(call, reader, reply),
            opcode::GETATTR => self.getattr(call, reader, reply),
            opcode::SETATTR => self.setattr(call, reader, reply),
            opcode::STATX => self.statx(call, reader, reply),
            opcode::STATFS => self.statfs(call, reply),
            opcode::READLINK => self.readlink(call, reply),
            opcode::SYMLINK => self.symlink(call, reader, reply),
            opcode::MKNOD => self.mknod(call, reader, reply),
            opcode::MKDIR => self.mkdir(call, reader, reply),
            opcode::UNLINK => self.unlink(call, reader, AtFlags::empty()),
            opcode::RMDIR => self.unlink(call, reader, AtFlags::REMOVEDIR),
            opcode::RENAME => self.rename(call, reader),
            opcode::RENAME2 => self.rename2(call, reader),
            opcode::LINK => self.link(call, reader, reply),
            opcode::OPEN => self.open(call, reader, reply),
            opcode::CREATE => self.create(call, reader, reply),
            opcode::TMPFILE => self.tmpfile(call, reader, reply),
            opcode::READ => self.read(call, reader, reply),
            opcode::WRITE => self.write(call, reader, reply),
            opcode::FLUSH => self.flush(call, reader),
            opcode::RELEASE | opcode::RELEASEDIR => self.release(call, reader),
            opcode::FSYNC | opcode::FSYNCDIR => self.fsync(call, reader),
            opcode::FALLOCATE => self.fallocate(call, reader),
            opcode::LSEEK => self.lseek(call, reader, reply),
            opcode::COPY_FILE_RANGE => self.copy_file_range(call, reader, reply),
            opcode::OPENDIR => self.opendir(call, reader, reply),
            opcode::READDIR => self.readdir(call, reader, reply, false),
            opcode::READDIRPLUS => self.readdir(call, reader, reply, true),
            opcode::SETUPMAPPING => self.setupmapping(call, reader),
            opcode::REMOVEMAPPING => self.removemapping(reader),
            opcode::SYNCFS => self.syncfs(call, reader),
            opcode::SETXATTR => self.setxattr(call, reader),
            opcode::GETXATTR => self.getxattr(call, reader, reply),
            opcode::LISTXATTR => self.listxattr(call, reader, reply),
            opcode::REMOVEXATTR => self.removexattr(call, reader),
            opcode::IOCTL => self.ioctl(call, reader, reply),
            opcode::DESTROY => {
                self.ready.store(false, Ordering::Release);
                self.start_afresh();
                Ok(0)
            }
            _ => Err(Errno(libc::ENOSYS)),
        }
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    fn start_afresh(&self) {
        if let Some(mappings) = &self.mappings {
            mappings.clear();
        }
        self.handles.clear();
        self.inodes.reset();
    }

    fn init(&self, reader: &mut Reader<'_, '_>, reply: &Reply<'_, '_>) -> Result<usize> {
        reply.need::<InitOut>()?;
        // The fields up to `flags` are there in every version.
        let [major, minor, max_readahead, flags] = reader.read::<[u32; 4]>()?;
        if major > MAJOR {
            // The guest asks again with this major version.
            return reply.body(&InitOut {
                major: MAJOR,
                minor: MINOR,
                ..InitOut::default()
            });
        }
        if major < MAJOR || minor < MINOR_OLDEST {
            return Err(Errno(libc::EPROTO));
        }
        let mut tail = [0; size_of::<InitIn>() - 16];
        reader.fill(&mut tail)?;
        let [b0, b1, b2, b3, ..] = tail;
        let mut offered = u64::from(flags);
        if offered & init::INIT_EXT != 0 {
            offered |= u64::from(u32::from_ne_bytes([b0, b1, b2, b3])) << 32;
        }
        let taken = offered & FEATURES;
        if taken & NEEDED != NEEDED {
            return Err(Errno(libc::EPROTO));
        }
        self.start_afresh();
        self.ready.store(true, Ordering::Release);
        reply.body(&InitOut {
            major: MAJOR,
            minor: minor.min(MINOR),
            max_readahead,
            flags: low_half(taken),
            flags2: low_half(taken >> 32),
            max_background: MAX_BACKGROUND,
            congestion_threshold: CONGESTION_THRESHOLD,
            max_write: MAX_WRITE,
            // Nanoseconds: times are those of the host file system.
            time_gran: 1,
            max_pages: MAX_PAGES,
            ..InitOut::default()
        })
    }

    fn forget(&self, header: &InHeader, reader: &mut Reader<'_, '_>) -> Result<()> {
        if header.opcode == opcode::FORGET {
            let forget: ForgetIn = reader.read()?;
            self.take_back(&[(header.nodeid, forget.nlookup)]);
            return Ok(());
        }
        let BatchForgetIn { count, .. } = reader.read()?;
        let mut batch = [(0, 0); 64];
        let mut left = usize::try_from(count).unwrap_or(usize::MAX);
        while left > 0 {
            let chunk = left.min(batch.len());
            for slot in &mut batch[..chunk] {
                let one: ForgetOne = reader.read()?;
                *slot = (one.nodeid, one.nlookup);
            }
            self.take_back(&batch[..chunk]);
            left -= chunk;
        }
        Ok(())
    }

    /// Takes lookups back, and with an inode's last one the handle that the guest may have kept of it.
    fn take_back(&self, each: &[(u64, u64)]) {
        let kept = each
            .iter()
            .filter_map(|(id, _)| Some((*id, self.handles.kept(*id)?)));
        // Before: what the guest opens once it has looked the inode up again is not meant.
        let kept: Vec<_> = kept.collect();
        self.inodes.forget(each);
        for (id, fh) in kept {
            if !self.inodes.knows(id) {
                // A RELEASE at the same time is as good.
                let _ = self.handles.remove(id, fh);
            }
        }
    }

    pub(crate) fn proc(&self) -> BorrowedFd<'_> {
        self.proc.as_fd()
    }

    /// What LOOKUP and its like answer.
    pub(crate) fn entry_out(&self, nodeid: u64, mut attr: Attr) -> EntryOut {
        self.mark(nodeid, &mut attr);
        EntryOut {
            nodeid,
            generation: 0,
            entry_valid: self.timeout.0,
            attr_valid: self.timeout.0,
            entry_valid_nsec: self.timeout.1,
            attr_valid_nsec: self.timeout.1,
            attr,
        }
    }

    /// What GETATTR and SETATTR answer.
    pub(crate) fn attr_out(&self, nodeid: u64, mut attr: Attr) -> AttrOut {
        self.mark(nodeid, &mut attr);
        let (attr_valid, attr_valid_nsec) = self.timeout;
        AttrOut {
            attr_valid,
            attr_valid_nsec,
            dummy: 0,
            attr,
        }
    }

    /// Replaces what is known of the mounts, all of it: it is asked when a mount is entered next.
    ///
    /// A mount that is added should be known before the guest is told of it: a mount that the guest enters before is
    /// one of [`Mounts::others`] until it is entered again, and what it has found there are other inodes.
    pub fn set_mounts(&self, mounts: Mounts) {
        self.inodes.set_mounts(mounts);
    }

    /// Gives up the mounts `parting`, which are not among those that the server was told of last. What is known of them is
    /// opened by way of others from now on, where there are any. Returns whether inodes are left that could be opened by
    /// way of these alone: unlinked files that are in use.
    pub fn part_with(&self, parting: &[Parting]) -> bool {
        self.inodes.part_with(parting)
    }

    /// Address and length of the window that files are mapped into, if they are; it stays reserved for good.
    #[must_use]
    pub fn window(&self) -> Option<(usize, usize)> {
        self.mappings.as_ref().map(Mappings::extent)
    }

    /// A vCPU could not read the window. Puts zeros where a mapped file has no data any more, and says whether the vCPU
    /// is to try again: the window has changed since the call before, whose count `seen` is (0 at first).
    pub fn mend(&self, seen: &mut u64) -> bool {
        let mappings = self.mappings.as_ref();
        mappings.is_some_and(|mappings| mappings.mend(seen))
    }

    /// How many descriptors are kept for inodes (that can be re-opened; that cannot), and how many
    /// inodes the guest knows.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        self.inodes.counts()
    }
}

/// What a request asks for, by its number in the protocol; 0 where it is too short for that.
#[must_use]
pub fn opcode(request: &[VolatileSlice<'_>]) -> u32 {
    let header = Reader::new(request).read::<InHeader>();
    header.map_or(0, |header| header.opcode)
}

/// Bits 0 to 31.
fn low_half(bits: u64) -> u32 {
    u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0)
}
