//! IOCTL: attributes of files that have no other call, and where their data is.
//!
//! The guest's kernel asks for these itself, in the forms below, once it has checked that the caller owns the file and
//! may set the flag. No other call is carried out, and none gets an address.
//!
//! What makes a file immutable or append-only is the host's to set: its kernel asks for a capability that this process
//! does not have, and answers with EPERM. Project ids, by which space is limited, stay as they are.

use std::os::fd::{AsFd, BorrowedFd};

use zerocopy::IntoBytes;

use crate::buffers::{Reader, Reply};
use crate::errno::{Errno, Result};
use crate::protocol::{
    FIEMAP_EXTENTS, FS_IOC_FIEMAP, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR, Fiemap, FiemapExtent,
    FiemapHead, Fsxattr, IoctlIn, IoctlOut,
};
use crate::server::{Call, Server};
use crate::sys;

/// `FIEMAP_FLAG_SYNC` (`linux/fiemap.h`).
const SYNC: u32 = 1;

/// What FS_IOC_SETFLAGS may change (`linux/fs.h`): compression, SYNC, IMMUTABLE, APPEND, NODUMP, NOATIME, NOCOMP, NOTAIL,
/// DIRSYNC, TOPDIR and NOCOW. Others are the file system's own or change how names are found.
const FLAGS: u32 = 0x0083_84fc;
/// What FS_IOC_FSSETXATTR may change: IMMUTABLE, APPEND, SYNC, NOATIME, NODUMP, EXTSIZE, EXTSZINHERIT, NODEFRAG and
/// COWEXTSIZE.
const XFLAGS: u32 = 0x0001_38f8;

/// Fails with EOPNOTSUPP if anything else would be changed.
fn check_change(from: u32, to: u32, may: u32) -> Result<()> {
    match (from ^ to) & !may {
        0 => Ok(()),
        _ => Err(Errno(libc::EOPNOTSUPP)),
    }
}

fn set_flags(fd: BorrowedFd<'_>, flags: u32) -> Result<()> {
    check_change(sys::flags(fd)?, flags, FLAGS)?;
    sys::set_flags(fd, flags)
}

fn set_attributes(fd: BorrowedFd<'_>, wanted: &Fsxattr) -> Result<()> {
    let now = sys::file_attributes(fd)?;
    check_change(now.fsx_xflags, wanted.fsx_xflags, XFLAGS)?;
    if now.fsx_projid != wanted.fsx_projid {
        return Err(Errno(libc::EINVAL));
    }
    sys::set_file_attributes(fd, wanted)
}

fn extents(fd: BorrowedFd<'_>, asked: &FiemapHead) -> Result<Fiemap> {
    if asked.fm_flags & !SYNC != 0 {
        return Err(Errno(libc::EINVAL));
    }
    let mut map = Fiemap {
        head: FiemapHead {
            fm_start: asked.fm_start,
            fm_length: asked.fm_length,
            fm_flags: asked.fm_flags,
            ..FiemapHead::default()
        },
        extents: [FiemapExtent::default(); FIEMAP_EXTENTS],
    };
    sys::extents(fd, &mut map)?;
    Ok(map)
}

impl Server {
    pub(crate) fn ioctl(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let wanted: IoctlIn = reader.read()?;
        let size = |size: u32| usize::try_from(size).unwrap_or(usize::MAX);
        let (given, taken) = (size(wanted.in_size), size(wanted.out_size));
        if given != reader.left() || taken > reply.room().saturating_sub(size_of::<IoctlOut>()) {
            return Err(Errno(libc::EINVAL));
        }
        let handle = self.handles.get(call.nodeid, wanted.fh)?;
        let fd = handle.as_fd();
        let answer = |data: &[u8]| {
            let head = reply.body(&IoctlOut::default())?;
            Ok(head + reply.put(head, data)?)
        };
        const FLAGS: usize = size_of::<u32>();
        const ATTRIBUTES: usize = size_of::<Fsxattr>();
        const MAP: usize = size_of::<Fiemap>();
        match (u64::from(wanted.cmd), given, taken) {
            (libc::FS_IOC_GETFLAGS, 0, FLAGS) => answer(sys::flags(fd)?.as_bytes()),
            (libc::FS_IOC_SETFLAGS, FLAGS, 0) => {
                set_flags(fd, reader.read()?)?;
                answer(&[])
            }
            (FS_IOC_FSGETXATTR, 0, ATTRIBUTES) => answer(sys::file_attributes(fd)?.as_bytes()),
            (FS_IOC_FSSETXATTR, ATTRIBUTES, 0) => {
                set_attributes(fd, &reader.read()?)?;
                answer(&[])
            }
            (FS_IOC_FIEMAP, MAP, MAP) => {
                answer(extents(fd, &reader.read::<Fiemap>()?.head)?.as_bytes())
            }
            _ => Err(Errno(libc::ENOSYS)),
        }
    }
}
