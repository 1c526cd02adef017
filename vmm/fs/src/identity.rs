//! What an object of the host is recognised by.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::StatxTimestamp;

use crate::errno::{Errno, Result};
use crate::protocol::{ATTR_SUBMOUNT, Attr, Statx, SxTime, unsigned};
use crate::sys;

/// `PROC_SUPER_MAGIC` and `NSFS_MAGIC` (`linux/magic.h`).
const REFUSED_FILE_SYSTEMS: [i64; 2] = [0x9fa0, 0x6e73_6673];

/// Where an object is: the same numbers mean the same object as long as it exists. The mount is
/// part of it, because a read-only and a writable mount of one file must not be mixed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) mount: u64,
    device: (u32, u32),
    inode: u64,
}

/// What tells an object from a later one that has been given the same inode number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Witness {
    /// The time of birth (`stx_btime`).
    Birth(i64, u32),
    /// The file handle, on file systems without a time of birth.
    Handle(Box<[u8]>),
    /// Neither is to be had; such an object is never taken for one seen before.
    None,
}

/// What is remembered of an object.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) key: Key,
    pub(crate) witness: Witness,
    /// The file type, `S_IFMT` of the mode.
    pub(crate) kind: u32,
}

impl Facts {
    /// Whether both are the same object, where nothing keeps the inode number from being reused.
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        self.key == other.key
            && self.kind == other.kind
            && self.witness == other.witness
            && self.witness != Witness::None
    }
}

/// The attributes of an object at one moment.
pub(crate) struct Stat(rustix::fs::Statx);

impl Stat {
    /// Of the object `fd`.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> Result<Self> {
        Self::at(fd, c"")
    }

    /// Of the entry `name` of `dir`.
    pub(crate) fn at(dir: BorrowedFd<'_>, name: &CStr) -> Result<Self> {
        let stat = sys::statx(dir, name)?;
        let wanted = libc::STATX_BASIC_STATS & !libc::STATX_BLOCKS | libc::STATX_MNT_ID;
        // Without a mount id (Linux before 5.8) mounts could not be told apart.
        if stat.stx_mask & wanted == wanted {
            Ok(Self(stat))
        } else {
            Err(Errno(libc::EIO))
        }
    }

    /// The file type, `S_IFMT` of the mode.
    pub(crate) fn kind(&self) -> u32 {
        self.mode() & libc::S_IFMT
    }

    /// Type and permissions.
    pub(crate) fn mode(&self) -> u32 {
        u32::from(self.0.stx_mode)
    }

    /// The number of names.
    pub(crate) fn links(&self) -> u32 {
        self.0.stx_nlink
    }

    /// The inode number.
    pub(crate) fn inode(&self) -> u64 {
        self.0.stx_ino
    }

    pub(crate) fn key(&self) -> Key {
        Key {
            mount: self.0.stx_mnt_id,
            device: (self.0.stx_dev_major, self.0.stx_dev_minor),
            inode: self.0.stx_ino,
        }
    }

    /// The facts, where the file system tells the time of birth.
    pub(crate) fn facts(&self) -> Option<Facts> {
        let birth = &self.0.stx_btime;
        (self.0.stx_mask & libc::STATX_BTIME != 0).then(|| Facts {
            key: self.key(),
            witness: Witness::Birth(birth.tv_sec, birth.tv_nsec),
            kind: self.kind(),
        })
    }

    /// The attributes as FUSE has them. `parent_mount`: the mount of the directory it is in.
    pub(crate) fn attr(&self, parent_mount: u64) -> Attr {
        let stat = &self.0;
        let submount = self.0.stx_mnt_id != parent_mount && self.kind() == libc::S_IFDIR;
        Attr {
            ino: stat.stx_ino,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            atime: unsigned(stat.stx_atime.tv_sec),
            mtime: unsigned(stat.stx_mtime.tv_sec),
            ctime: unsigned(stat.stx_ctime.tv_sec),
            atimensec: stat.stx_atime.tv_nsec,
            mtimensec: stat.stx_mtime.tv_nsec,
            ctimensec: stat.stx_ctime.tv_nsec,
            mode: self.mode(),
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            rdev: encode_device(stat.stx_rdev_major, stat.stx_rdev_minor),
            blksize: stat.stx_blksize,
            flags: if submount { ATTR_SUBMOUNT } else { 0 },
        }
    }

    /// The attributes as STATX has them.
    pub(crate) fn statx(&self) -> Statx {
        let stat = &self.0;
        let time = |time: &StatxTimestamp| SxTime {
            tv_sec: time.tv_sec,
            tv_nsec: time.tv_nsec,
            reserved: 0,
        };
        Statx {
            mask: stat.stx_mask & (libc::STATX_BASIC_STATS | libc::STATX_BTIME),
            blksize: stat.stx_blksize,
            attributes: stat.stx_attributes.bits(),
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            mode: stat.stx_mode,
            ino: stat.stx_ino,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            attributes_mask: stat.stx_attributes_mask.bits(),
            atime: time(&stat.stx_atime),
            btime: time(&stat.stx_btime),
            ctime: time(&stat.stx_ctime),
            mtime: time(&stat.stx_mtime),
            rdev_major: stat.stx_rdev_major,
            rdev_minor: stat.stx_rdev_minor,
            dev_major: stat.stx_dev_major,
            dev_minor: stat.stx_dev_minor,
            ..Statx::default()
        }
    }
}

/// `new_encode_dev` (`linux/kdev_t.h`): the form of a device number in `fuse_attr.rdev`.
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// The attributes and the facts of the object `fd`, which may be an `O_PATH` descriptor.
pub(crate) fn examine(fd: BorrowedFd<'_>) -> Result<(Stat, Facts)> {
    let stat = Stat::of(fd)?;
    let facts = stat.facts().unwrap_or_else(|| Facts {
        key: stat.key(),
        witness: sys::file_handle(fd).map_or(Witness::None, Witness::Handle),
        kind: stat.kind(),
    });
    Ok((stat, facts))
}

/// Fails with EACCES if `fd` lies in a file system that reaches the server itself: a file of procfs
/// may be this process's memory or descriptors, one of nsfs its namespaces. Asked wherever a
/// component crosses into another mount.
pub(crate) fn refuse_reflections(fd: BorrowedFd<'_>) -> Result<()> {
    if REFUSED_FILE_SYSTEMS.contains(&sys::fstatfs(fd)?.f_type) {
        return Err(Errno(libc::EACCES));
    }
    Ok(())
}
