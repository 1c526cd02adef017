//! Attributes: GETATTR, STATX, SETATTR, STATFS, READLINK.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use crate::buffers::{Reader, Reply, TARGET_MAX};
use crate::errno::{Errno, Result};
use crate::identity::Stat;
use crate::inodes::Node;
use crate::protocol::{
    AttrOut, GETATTR_FH, GetattrIn, SetattrIn, StatfsOut, StatxIn, StatxOut, fattr, signed,
};
use crate::server::{Call, Server};
use crate::{sys, worker};

/// Permission bits a file can have, and the three special ones.
pub(crate) const PERMISSIONS: u32 = 0o7777;

impl Server {
    pub(crate) fn getattr(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let GetattrIn {
            getattr_flags, fh, ..
        } = reader.read()?;
        reply.need::<AttrOut>()?;
        let attr = self.look(call, getattr_flags, fh, |fd| {
            let stat = Stat::of(fd)?;
            let mut attr = stat.attr();
            attr.flags |= self.no_acl(call, &stat, fd)?;
            Ok(attr)
        })?;
        reply.body(&self.attr_out(call.nodeid, attr))
    }

    pub(crate) fn statx(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let StatxIn {
            getattr_flags, fh, ..
        } = reader.read()?;
        reply.need::<StatxOut>()?;
        let stat = self.look(call, getattr_flags, fh, Stat::of)?;
        let AttrOut {
            attr_valid,
            attr_valid_nsec,
            ..
        } = self.attr_out(call.nodeid, Default::default());
        let stat = stat.statx();
        reply.body(&StatxOut {
            attr_valid,
            attr_valid_nsec,
            flags: 0,
            spare: [0; 2],
            stat,
        })
    }

    /// Looks at what GETATTR and STATX ask for.
    fn look<T>(
        &self,
        call: Call,
        flags: u32,
        fh: u64,
        at: impl FnOnce(BorrowedFd<'_>) -> Result<T>,
    ) -> Result<T> {
        if flags & GETATTR_FH != 0 {
            at(self.handles.get(call.nodeid, fh)?.as_fd())
        } else {
            at(self.inodes.get(call.nodeid)?.as_fd())
        }
    }

    pub(crate) fn setattr(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let wanted: SetattrIn = reader.read()?;
        reply.need::<AttrOut>()?;
        let node = self.inodes.get(call.nodeid)?;
        // First what can be refused, so that a request is refused before it has changed anything.
        let times = times(&wanted)?;
        if wanted.valid & fattr::MODE != 0 {
            self.check_mode(node.mount, node.kind, wanted.mode)?;
        }
        self.set_owner(&node, &wanted)?;
        if wanted.valid & fattr::SIZE != 0 {
            self.set_size(&node, &wanted)?;
        }
        // After the two that clear special bits: the mode asked for is the one that results.
        if wanted.valid & fattr::MODE != 0 {
            self.set_mode(&node, wanted.mode & PERMISSIONS)?;
        }
        if let Some(times) = times {
            sys::utimens(node.as_fd(), &times)?;
        }
        let stat = Stat::of(node.as_fd())?;
        reply.body(&self.attr_out(call.nodeid, stat.attr()))
    }

    fn set_owner(&self, node: &Node, wanted: &SetattrIn) -> Result<()> {
        let id = |flag: u32, id: u32| match (wanted.valid & flag != 0, id) {
            (false, _) => Ok(u32::MAX),
            // (uid_t)-1 would mean: leave it.
            (true, u32::MAX) => Err(Errno(libc::EINVAL)),
            (true, id) => Ok(id),
        };
        let (uid, gid) = (id(fattr::UID, wanted.uid)?, id(fattr::GID, wanted.gid)?);
        if (uid, gid) == (u32::MAX, u32::MAX) {
            return Ok(());
        }
        // A change of owner clears set-ID bits and file capabilities by itself; with the capability,
        // set-group-ID without group execution stays, as FUSE_HANDLE_KILLPRIV_V2 has it.
        let _kept = worker::keep_set_id()?;
        sys::chown(node.as_fd(), uid, gid)
    }

    fn set_mode(&self, node: &Node, mode: u32) -> Result<()> {
        if node.kind == libc::S_IFLNK {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        let _kept = match mode & libc::S_ISGID {
            0 => None,
            _ => Some(worker::keep_set_id()?),
        };
        sys::chmod(self.proc(), node.as_fd(), mode)
    }

    fn set_size(&self, node: &Node, wanted: &SetattrIn) -> Result<()> {
        if i64::try_from(wanted.size).is_err() {
            return Err(Errno(libc::EINVAL));
        }
        let truncate = |fd: BorrowedFd<'_>| sys::ftruncate(fd, wanted.size);
        if wanted.valid & fattr::FH != 0 {
            return truncate(self.handles.file(node.id, wanted.fh)?.as_fd());
        }
        truncate(self.open_file(node, libc::O_WRONLY)?.as_fd())
    }

    pub(crate) fn statfs(&self, call: Call, reply: &Reply<'_, '_>) -> Result<usize> {
        reply.need::<StatfsOut>()?;
        let node = self.inodes.get(call.nodeid)?;
        let stat = sys::fstatfs(node.as_fd())?;
        let size = |value: i64| u32::try_from(value).unwrap_or(u32::MAX);
        reply.body(&StatfsOut {
            blocks: stat.f_blocks,
            bfree: stat.f_bfree,
            bavail: stat.f_bavail,
            files: stat.f_files,
            ffree: stat.f_ffree,
            bsize: size(stat.f_bsize),
            namelen: size(stat.f_namelen),
            frsize: size(stat.f_frsize),
            ..StatfsOut::default()
        })
    }

    pub(crate) fn readlink(&self, call: Call, reply: &Reply<'_, '_>) -> Result<usize> {
        let node = self.inodes.get(call.nodeid)?;
        if node.kind != libc::S_IFLNK {
            return Err(Errno(libc::EINVAL));
        }
        let mut target = [0; TARGET_MAX + 1];
        let length = sys::readlink(node.as_fd(), &mut target)?;
        reply.put(0, &target[..length])
    }
}

/// The times to set, if any.
fn times(wanted: &SetattrIn) -> Result<Option<Timestamps>> {
    let time = |given: u32, now: u32, seconds: u64, nanoseconds: u32| {
        let tv_nsec = match wanted.valid & (given | now) {
            0 => UTIME_OMIT,
            bits if bits & now != 0 => UTIME_NOW,
            _ if nanoseconds < 1_000_000_000 => i64::from(nanoseconds),
            // The kernel's UTIME_NOW and UTIME_OMIT lie here.
            _ => return Err(Errno(libc::EINVAL)),
        };
        Ok(Timespec {
            tv_sec: signed(seconds),
            tv_nsec,
        })
    };
    let last_access = time(
        fattr::ATIME,
        fattr::ATIME_NOW,
        wanted.atime,
        wanted.atimensec,
    )?;
    let last_modification = time(
        fattr::MTIME,
        fattr::MTIME_NOW,
        wanted.mtime,
        wanted.mtimensec,
    )?;
    let any = fattr::ATIME | fattr::ATIME_NOW | fattr::MTIME | fattr::MTIME_NOW;
    Ok((wanted.valid & any != 0).then_some(Timestamps {
        last_access,
        last_modification,
    }))
}
