//! The FUSE protocol as far as this server speaks it: Linux `include/uapi/linux/fuse.h`, 7.36 to 7.41.
//!
//! Each structure is named after the one in that header and holds the same bytes; all are plain
//! integers without padding, so that any byte pattern is a value and no value leaks host memory.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `FUSE_KERNEL_VERSION`.
pub(crate) const MAJOR: u32 = 7;
/// The newest minor version this server knows (`FUSE_KERNEL_MINOR_VERSION` of Linux 6.12).
pub(crate) const MINOR: u32 = 41;
/// The oldest minor version this server talks to: `flags2` and `FUSE_INIT_EXT` come with 7.36.
pub(crate) const MINOR_OLDEST: u32 = 36;

/// `FUSE_ROOT_ID`.
pub(crate) const ROOT_ID: u64 = 1;

/// `enum fuse_opcode`.
#[allow(missing_docs, reason = "named after enum fuse_opcode, one by one")]
pub(crate) mod opcode {
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
    pub(crate) const RENAME: u32 = 12;
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
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const IOCTL: u32 = 39;
    pub(crate) const NOTIFY_REPLY: u32 = 41;
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
}

/// INIT flags (`FUSE_*`, "INIT request/reply flags"); bits 32 and up travel in `flags2`.
#[allow(missing_docs, reason = "named after the header, one by one")]
pub(crate) mod init {
    pub(crate) const ASYNC_READ: u64 = 1 << 0;
    pub(crate) const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const DONT_MASK: u64 = 1 << 6;
    pub(crate) const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub(crate) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(crate) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const POSIX_ACL: u64 = 1 << 20;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(crate) const SUBMOUNTS: u64 = 1 << 27;
    pub(crate) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(crate) const SETXATTR_EXT: u64 = 1 << 29;
    pub(crate) const INIT_EXT: u64 = 1 << 30;
    pub(crate) const HAS_INODE_DAX: u64 = 1 << 33;
}

/// `FATTR_*`: which fields of [`SetattrIn`] hold a value.
#[allow(missing_docs, reason = "named after the header, one by one")]
pub(crate) mod fattr {
    pub(crate) const MODE: u32 = 1 << 0;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const FH: u32 = 1 << 6;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
}

/// `FUSE_GETATTR_FH`: [`GetattrIn::fh`] holds a handle.
pub(crate) const GETATTR_FH: u32 = 1 << 0;
/// `FOPEN_DIRECT_IO`: each read is one of the server's, whatever the file's size.
pub(crate) const FOPEN_DIRECT_IO: u32 = 1 << 0;
/// `FOPEN_KEEP_CACHE`: what the guest has cached of the file stays valid over this open.
pub(crate) const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// `FOPEN_CACHE_DIR`: the guest may keep what the directory lists.
pub(crate) const FOPEN_CACHE_DIR: u32 = 1 << 3;
/// `FOPEN_NOFLUSH`: nothing is written, and no FLUSH sent, when a descriptor of this open file is closed.
pub(crate) const FOPEN_NOFLUSH: u32 = 1 << 5;
/// Of our guest kernel's own (`guest-kernel/patches/55-open-files.patch`): the guest may keep the handle when it closes
/// the file, for whoever opens it next to read it, and then sends no RELEASE. Other kernels do not look at the bit.
pub(crate) const FOPEN_KEEP_OPEN: u32 = 1 << 31;
/// Of our guest kernel's own (`guest-kernel/patches/66-no-flush.patch`): when a descriptor of this open file is closed,
/// the guest writes what is dirty as ever, but sends no FLUSH. Other kernels do not look at the bit.
pub(crate) const FOPEN_NO_FLUSH: u32 = 1 << 29;
/// Of our guest kernel's own (`guest-kernel/patches/62-no-size.patch`): the file cannot be mapped.
pub(crate) const FOPEN_NO_MMAP: u32 = 1 << 30;
/// `FUSE_WRITE_CACHE`: the write comes from the page cache, not from a write call.
pub(crate) const WRITE_CACHE: u32 = 1 << 0;
/// `FUSE_FSYNC_FDATASYNC`.
pub(crate) const FSYNC_FDATASYNC: u32 = 1 << 0;
/// `FUSE_ATTR_SUBMOUNT`: the object is the root of another mount than its parent.
pub(crate) const ATTR_SUBMOUNT: u32 = 1 << 0;
/// `FUSE_ATTR_DAX`: the file is to be mapped.
pub(crate) const ATTR_DAX: u32 = 1 << 1;
/// Of our guest kernel's own (`guest-kernel/patches/59-access-lists.patch`): the object has no access list, so that the
/// guest need not ask for it. Other kernels do not look at the bit.
pub(crate) const ATTR_NO_ACL: u32 = 1 << 31;
/// `FUSE_SETXATTR_ACL_KILL_SGID`: the caller may not keep the set-group-ID bit.
pub(crate) const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// `FUSE_SETUPMAPPING_FLAG_READ`.
pub(crate) const SETUPMAPPING_READ: u64 = 1 << 1;

/// A signed number of the host (a time, an offset) in the unsigned field of its size.
pub(crate) fn unsigned(value: i64) -> u64 {
    u64::from_ne_bytes(value.to_ne_bytes())
}

/// The signed number that an unsigned field stands for.
pub(crate) fn signed(value: u64) -> i64 {
    i64::from_ne_bytes(value.to_ne_bytes())
}

macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        #[allow(missing_docs, reason = "the fields are those of the header")]
        pub(crate) struct $name { $(pub(crate) $field: $type),* }
    )*};
}

wire! {
    /// `struct fuse_in_header`.
    InHeader {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32,
        total_extlen: u16, padding: u16,
    }
    /// `struct fuse_out_header`.
    OutHeader { len: u32, error: i32, unique: u64 }
    /// `struct fuse_attr`.
    Attr {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    /// `struct fuse_entry_out`.
    EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64,
        entry_valid_nsec: u32, attr_valid_nsec: u32, attr: Attr,
    }
    /// `struct fuse_forget_in`.
    ForgetIn { nlookup: u64 }
    /// `struct fuse_forget_one`.
    ForgetOne { nodeid: u64, nlookup: u64 }
    /// `struct fuse_batch_forget_in`.
    BatchForgetIn { count: u32, dummy: u32 }
    /// `struct fuse_getattr_in`.
    GetattrIn { getattr_flags: u32, dummy: u32, fh: u64 }
    /// `struct fuse_attr_out`.
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    /// `struct fuse_statx_in` (7.39).
    StatxIn { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32 }
    /// `struct fuse_sx_time` (7.39).
    SxTime { tv_sec: i64, tv_nsec: u32, reserved: i32 }
    /// `struct fuse_statx` (7.39).
    Statx {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16,
        spare0: u16, ino: u64, size: u64, blocks: u64, attributes_mask: u64,
        atime: SxTime, btime: SxTime, ctime: SxTime, mtime: SxTime,
        rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    /// `struct fuse_statx_out` (7.39).
    StatxOut {
        attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx,
    }
    /// `struct fuse_mknod_in`.
    MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32 }
    /// `struct fuse_mkdir_in`.
    MkdirIn { mode: u32, umask: u32 }
    /// `struct fuse_rename_in`.
    RenameIn { newdir: u64 }
    /// `struct fuse_rename2_in`.
    Rename2In { newdir: u64, flags: u32, padding: u32 }
    /// `struct fuse_link_in`.
    LinkIn { oldnodeid: u64 }
    /// `struct fuse_setattr_in`.
    SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64,
        atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    /// `struct fuse_open_in`.
    OpenIn { flags: u32, open_flags: u32 }
    /// `struct fuse_create_in`.
    CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    /// `struct fuse_open_out`.
    OpenOut { fh: u64, open_flags: u32, padding: u32 }
    /// What CREATE and TMPFILE answer: `struct fuse_entry_out`, then `struct fuse_open_out`.
    CreateOut { entry: EntryOut, open: OpenOut }
    /// `struct fuse_release_in`.
    ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    /// `struct fuse_flush_in`.
    FlushIn { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    /// `struct fuse_read_in`, which READDIR and READDIRPLUS use too.
    ReadIn {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    /// `struct fuse_write_in`.
    WriteIn {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    /// `struct fuse_write_out`.
    WriteOut { size: u32, padding: u32 }
    /// `struct fuse_kstatfs`, which is all of `struct fuse_statfs_out`.
    StatfsOut {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64,
        bsize: u32, namelen: u32, frsize: u32, padding: u32, spare: [u32; 6],
    }
    /// `struct fuse_fsync_in`.
    FsyncIn { fh: u64, fsync_flags: u32, padding: u32 }
    /// `struct fuse_setxattr_in`.
    SetxattrIn { size: u32, flags: u32, setxattr_flags: u32, padding: u32 }
    /// `struct fuse_getxattr_in`.
    GetxattrIn { size: u32, padding: u32 }
    /// `struct fuse_getxattr_out`.
    GetxattrOut { size: u32, padding: u32 }
    /// `struct fuse_init_in`.
    InitIn {
        major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11],
    }
    /// `struct fuse_init_out`.
    InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16,
        congestion_threshold: u16, max_write: u32, time_gran: u32, max_pages: u16,
        map_alignment: u16, flags2: u32, unused: [u32; 7],
    }
    /// `struct fuse_fallocate_in`.
    FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    /// `struct fuse_dirent` without the name.
    Dirent { ino: u64, off: u64, namelen: u32, type_: u32 }
    /// `struct fuse_lseek_in`.
    LseekIn { fh: u64, offset: u64, whence: u32, padding: u32 }
    /// `struct fuse_lseek_out`.
    LseekOut { offset: u64 }
    /// `struct fuse_copy_file_range_in`.
    CopyFileRangeIn {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    /// `struct fuse_setupmapping_in`.
    SetupmappingIn { fh: u64, foffset: u64, len: u64, flags: u64, moffset: u64 }
    /// `struct fuse_removemapping_in`.
    RemovemappingIn { count: u32 }
    /// `struct fuse_removemapping_one`.
    RemovemappingOne { moffset: u64, len: u64 }
    /// `struct fuse_syncfs_in`.
    SyncfsIn { padding: u64 }
    /// `struct fuse_ioctl_in`.
    IoctlIn { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 }
    /// `struct fuse_ioctl_out`.
    IoctlOut { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    /// `struct fsxattr` (`linux/fs.h`).
    Fsxattr {
        fsx_xflags: u32, fsx_extsize: u32, fsx_nextents: u32, fsx_projid: u32,
        fsx_cowextsize: u32, fsx_pad: [u8; 8],
    }
    /// `struct fiemap` (`linux/fiemap.h`) without its extents.
    FiemapHead {
        fm_start: u64, fm_length: u64, fm_flags: u32, fm_mapped_extents: u32,
        fm_extent_count: u32, fm_reserved: u32,
    }
    /// `struct fiemap_extent`.
    FiemapExtent {
        fe_logical: u64, fe_physical: u64, fe_length: u64, fe_reserved64: [u64; 2],
        fe_flags: u32, fe_reserved: [u32; 3],
    }
}

/// Extents that the guest asks for at a time (`guest-kernel/patches/63-extents.patch`).
pub(crate) const FIEMAP_EXTENTS: usize = 64;

/// `struct fiemap` with its extents.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Fiemap {
    pub(crate) head: FiemapHead,
    pub(crate) extents: [FiemapExtent; FIEMAP_EXTENTS],
}

/// `FS_IOC_FSGETXATTR` (`linux/fs.h`).
pub(crate) const FS_IOC_FSGETXATTR: u64 = 0x801c_581f;
/// `FS_IOC_FSSETXATTR`.
pub(crate) const FS_IOC_FSSETXATTR: u64 = 0x401c_5820;
/// `FS_IOC_FIEMAP`.
pub(crate) const FS_IOC_FIEMAP: u64 = 0xc020_660b;

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes of the structures of the header, as a C compiler reports them.
    #[test]
    fn sizes_are_those_of_the_header() {
        let sizes = [
            (size_of::<InHeader>(), 40),
            (size_of::<OutHeader>(), 16),
            (size_of::<Attr>(), 88),
            (size_of::<EntryOut>(), 128),
            (size_of::<AttrOut>(), 104),
            (size_of::<StatxIn>(), 24),
            (size_of::<Statx>(), 256),
            (size_of::<StatxOut>(), 288),
            (size_of::<SetattrIn>(), 88),
            (size_of::<CreateOut>(), 144),
            (size_of::<ReadIn>(), 40),
            (size_of::<WriteIn>(), 40),
            (size_of::<StatfsOut>(), 80),
            (size_of::<SetxattrIn>(), 16),
            (size_of::<InitIn>(), 64),
            (size_of::<InitOut>(), 64),
            (size_of::<FallocateIn>(), 32),
            (size_of::<CopyFileRangeIn>(), 56),
            (size_of::<Dirent>(), 24),
            (size_of::<IoctlIn>(), 32),
            (size_of::<IoctlOut>(), 16),
            (size_of::<Fsxattr>(), 28),
            (size_of::<Fiemap>(), 32 + 64 * 56),
        ];
        for (index, (ours, header)) in sizes.into_iter().enumerate() {
            assert_eq!(ours, header, "structure {index}");
        }
    }
}
