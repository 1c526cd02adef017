//! What an object of the host is recognised by.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::StatxTimestamp;

use crate::errno::{Errno, Result};
use crate::mounts::Mount;
use crate::protocol::{Attr, Statx, SxTime, unsigned};
use crate::sys;

/// `PROC_SUPER_MAGIC` and `NSFS_MAGIC` (`linux/magic.h`).
const REFUSED_FILE_SYSTEMS: [i64; 2] = [0x9fa0, 0x6e73_6673];

/// Those whose files are made as they are read: their sizes say nothing, and they have no pages (`linux/magic.h`, and for
/// the last three the file systems' own sources).
const WITHOUT_SIZES: [i64; 15] = [
    0x6265_6572, // sysfs
    0x6367_7270, // cgroup2
    0x0027_e0eb, // cgroup
    0x7472_6163, // tracefs
    0x6462_6720, // debugfs
    0x7363_6673, // securityfs
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
    0x5a3c_69f0, // apparmorfs
    0xcafe_4a11, // bpf
    0x0765_5821, // resctrl
    0x4249_4e4d, // binfmt_misc
    0x6265_6570, // configfs
    0x6573_5543, // fusectl
    0x1980_0202, // mqueue
];

/// Those that have nothing to do when a descriptor is closed: their files have no `flush` (`linux/magic.h`). Of others it
/// is not known, and an overlay file system has what its upper layer has.
const WITHOUT_FLUSH: [i64; 6] = [
    0xef53,      // ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0xf2f5_2010, // f2fs
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
];

/// What a file system is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileSystem {
    /// Whether the size of a file says what can be read of it.
    pub(crate) sizes: bool,
    /// Whether closing a descriptor may do something, or fail.
    pub(crate) flushes: bool,
}

/// How an object was reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    /// The mount it was found on (`stx_mnt_id`).
    pub(crate) id: u64,
    /// What was known of that mount when it was entered.
    pub(crate) traits: Mount,
    /// Whether the object is the root of that mount.
    pub(crate) is_root: bool,
    /// What is mounted there.
    pub(crate) file_system: FileSystem,
}

impl Route {
    /// Whether this route to an object is by another mount than `other`, and to be preferred: the one that allows more,
    /// then the one by a mount that begins above the object.
    pub(crate) fn is_better(&self, other: &Route) -> bool {
        self.id != other.id && self.rank() > other.rank()
    }

    /// What routes are compared by.
    pub(crate) fn rank(&self) -> (bool, bool, bool) {
        let Mount {
            read_only,
            privileges,
            ..
        } = self.traits;
        (!read_only, privileges, !self.is_root)
    }

    /// Whether the object is the root of a mount of a class.
    pub(crate) fn begins_class(&self) -> bool {
        self.is_root && self.traits.class.is_some()
    }

    /// The route to what is found in a directory, on its mount.
    pub(crate) fn below(&self) -> Route {
        Route {
            is_root: false,
            ..*self
        }
    }

    /// A number of the mounts by which the object is the same one: a mount's or a class's.
    fn scope(&self) -> u64 {
        self.traits
            .class
            .map_or(self.id, |class| CLASS | class.get())
    }
}

/// What makes the number of a class another one than any mount's, which are small (`mnt_alloc_id`, fs/namespace.c).
const CLASS: u64 = 1 << 63;

/// Where an object is: the same numbers mean the same object as long as it exists. The mount is part of it unless it is
/// of a class, because what one shows below a directory need not be what another does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    scope: u64,
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
    /// Whether a descriptor of the object that was come by in this way may be kept. What could not be recognised again
    /// is kept in any case.
    pub(crate) fn keeps(&self, route: &Route) -> bool {
        self.witness == Witness::None || route.traits.lasts
    }

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

    /// The owner.
    pub(crate) fn owner(&self) -> u32 {
        self.0.stx_uid
    }

    /// The number of names.
    pub(crate) fn links(&self) -> u32 {
        self.0.stx_nlink
    }

    /// The inode number.
    pub(crate) fn inode(&self) -> u64 {
        self.0.stx_ino
    }

    /// The mount it is on.
    pub(crate) fn mount(&self) -> u64 {
        self.0.stx_mnt_id
    }

    /// The device, as `fuse_attr.rdev` would have it.
    pub(crate) fn device(&self) -> u32 {
        encode_device(self.0.stx_dev_major, self.0.stx_dev_minor)
    }

    fn key(&self, route: &Route) -> Key {
        Key {
            scope: route.scope(),
            device: (self.0.stx_dev_major, self.0.stx_dev_minor),
            inode: self.0.stx_ino,
        }
    }

    /// The facts of what was reached by `route`, where the file system tells the time of birth.
    pub(crate) fn facts(&self, route: &Route) -> Option<Facts> {
        let birth = &self.0.stx_btime;
        (self.0.stx_mask & libc::STATX_BTIME != 0).then(|| Facts {
            key: self.key(route),
            witness: Witness::Birth(birth.tv_sec, birth.tv_nsec),
            kind: self.kind(),
        })
    }

    /// The attributes as FUSE has them.
    pub(crate) fn attr(&self) -> Attr {
        let stat = &self.0;
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
            flags: 0,
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

/// The attributes and the facts of the object `fd`, which may be an `O_PATH` descriptor; how it was reached, as `route`
/// says.
pub(crate) fn examine(
    fd: BorrowedFd<'_>,
    route: impl FnOnce(&Stat) -> Result<Route>,
) -> Result<(Stat, Facts, Route)> {
    let stat = Stat::of(fd)?;
    let route = route(&stat)?;
    let facts = stat.facts(&route).unwrap_or_else(|| Facts {
        key: stat.key(&route),
        witness: sys::file_handle(fd).map_or(Witness::None, Witness::Handle),
        kind: stat.kind(),
    });
    Ok((stat, facts, route))
}

/// Fails with EACCES if `fd` lies in a file system that reaches the server itself: a file of procfs
/// may be this process's memory or descriptors, one of nsfs its namespaces. Asked wherever a
/// component crosses into another mount. Of others it says what they are like.
pub(crate) fn refuse_reflections(fd: BorrowedFd<'_>) -> Result<FileSystem> {
    let kind = sys::fstatfs(fd)?.f_type;
    if REFUSED_FILE_SYSTEMS.contains(&kind) {
        return Err(Errno(libc::EACCES));
    }
    Ok(FileSystem {
        sizes: !WITHOUT_SIZES.contains(&kind),
        flushes: !WITHOUT_FLUSH.contains(&kind),
    })
}
