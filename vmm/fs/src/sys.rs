//! The system calls of the server. The only unsafe code of this crate: where rustix has no safe call, or means another
//! one by it.
//!
//! Each function is one call (repeated on EINTR where that is harmless) and is safe for any
//! argument: borrowed descriptors are open, strings end in NUL, buffers have the length stated.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use libc::{c_int, c_long, c_uint};
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, SeekFrom, StatFs, Statx,
    StatxFlags, Timestamps, Uid, XattrFlags,
};
use rustix::io::retry_on_intr;
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

use crate::buffers::Iovecs;
use crate::errno::{Errno, Result};
use crate::protocol::{FS_IOC_FIEMAP, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR, Fiemap, Fsxattr};

/// `MAX_HANDLE_SZ` (`linux/exportfs.h`).
const MAX_HANDLE_SZ: usize = 128;
/// `AT_HANDLE_FID` (`linux/fcntl.h`, Linux 6.5): a handle to compare, not to open.
const AT_HANDLE_FID: c_int = 0x200;
/// `RWF_*` (`linux/fs.h`).
pub(crate) const RWF_DSYNC: c_int = 0x2;
/// As above.
pub(crate) const RWF_SYNC: c_int = 0x4;
/// As above.
pub(crate) const RWF_APPEND: c_int = 0x10;

fn check(result: c_int) -> Result<c_int> {
    if result < 0 {
        Err(Errno::last())
    } else {
        Ok(result)
    }
}

fn check_size(result: isize) -> Result<usize> {
    usize::try_from(result).map_err(|_| Errno::last())
}

fn check_long(result: c_long) -> Result<usize> {
    usize::try_from(result).map_err(|_| Errno::last())
}

fn again<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match call() {
            Err(Errno(libc::EINTR)) => {}
            other => return other,
        }
    }
}

fn mode(bits: u32) -> Mode {
    Mode::from_bits_retain(bits)
}

/// A descriptor's number as a path relative to `/proc/self/fd`.
pub(crate) struct FdName([u8; 12]);

impl FdName {
    pub(crate) fn new(fd: BorrowedFd<'_>) -> Self {
        let mut name = [0; 12];
        // A RawFd has at most ten digits, so that a NUL always stays behind them.
        let _ = write!(&mut name[..11], "{}", fd.as_raw_fd());
        Self(name)
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

/// `openat(2)`, with `O_CLOEXEC`.
pub(crate) fn openat(dir: BorrowedFd<'_>, name: &CStr, flags: c_int, bits: u32) -> Result<OwnedFd> {
    let flags = OFlags::from_bits_retain(flags.cast_unsigned()) | OFlags::CLOEXEC;
    Ok(retry_on_intr(|| {
        rustix::fs::openat(dir, name, flags, mode(bits))
    })?)
}

/// `dup` of a descriptor, close-on-exec.
pub(crate) fn dup(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 0)?)
}

/// `close(2)` whose error counts (FLUSH).
pub(crate) fn close(fd: OwnedFd) -> Result<()> {
    // SAFETY: the descriptor was owned here and is given up by this call, whatever it returns.
    check(unsafe { libc::close(fd.into_raw_fd()) }).map(drop)
}

/// `statx(2)` of the entry `name` of `dir`, or of `dir` itself where `name` is empty: all of `struct stat`, birth time,
/// mount id. Follows no symbolic link and triggers no automount.
pub(crate) fn statx(dir: BorrowedFd<'_>, name: &CStr) -> Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    Ok(rustix::fs::statx(dir, name, flags, wanted)?)
}

/// `fstatfs(2)`.
pub(crate) fn fstatfs(fd: BorrowedFd<'_>) -> Result<StatFs> {
    Ok(retry_on_intr(|| rustix::fs::fstatfs(fd))?)
}

/// The file handle of an object (`name_to_handle_at(2)`), as bytes to compare: its type, then it.
pub(crate) fn file_handle(fd: BorrowedFd<'_>) -> Result<Box<[u8]>> {
    #[repr(C)]
    struct Handle {
        bytes: c_uint,
        kind: c_int,
        data: [u8; MAX_HANDLE_SZ],
    }
    let ask = |flags: c_int| {
        let mut handle = Handle {
            bytes: 128,
            kind: 0,
            data: [0; MAX_HANDLE_SZ],
        };
        let mut mount: c_int = 0;
        // SAFETY: `handle` is laid out as `struct file_handle` with 128 bytes behind its head, as
        // its first field says; `mount` takes an int; the path is empty and ends in NUL.
        let result = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                fd.as_raw_fd(),
                c"".as_ptr(),
                &raw mut handle,
                &raw mut mount,
                libc::AT_EMPTY_PATH | flags,
            )
        };
        check_long(result)?;
        let length = usize::try_from(handle.bytes)
            .unwrap_or(0)
            .min(MAX_HANDLE_SZ);
        let mut bytes = handle.kind.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&handle.data[..length]);
        Ok(bytes.into_boxed_slice())
    };
    // Kernels before 6.5 know only handles that can be opened.
    ask(AT_HANDLE_FID).or_else(|_: Errno| ask(0))
}

/// `readlinkat(2)` of the symbolic link `fd` itself; the bytes written to `buffer`.
pub(crate) fn readlink(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    Ok(rustix::fs::readlinkat_raw(fd, c"", buffer)?)
}

/// `mkdirat(2)`.
pub(crate) fn mkdirat(dir: BorrowedFd<'_>, name: &CStr, bits: u32) -> Result<()> {
    Ok(rustix::fs::mkdirat(dir, name, mode(bits))?)
}

/// `mknodat(2)` without a device number: a regular file, FIFO, socket, or (character device 0:0) a
/// whiteout.
pub(crate) fn mknodat(dir: BorrowedFd<'_>, name: &CStr, kind: FileType, bits: u32) -> Result<()> {
    Ok(rustix::fs::mknodat(dir, name, kind, mode(bits), 0)?)
}

/// `symlinkat(2)`.
pub(crate) fn symlinkat(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    Ok(rustix::fs::symlinkat(target, dir, name)?)
}

/// `unlinkat(2)` of what is not a directory, or of what is an empty one.
pub(crate) fn unlinkat(dir: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<()> {
    Ok(rustix::fs::unlinkat(dir, name, flags)?)
}

/// `linkat(2)` of the object behind `fd`, by way of `proc` (`/proc/self/fd`).
pub(crate) fn link(
    proc: BorrowedFd<'_>,
    fd: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    name: &CStr,
) -> Result<()> {
    let old = FdName::new(fd);
    let flags = AtFlags::SYMLINK_FOLLOW;
    Ok(rustix::fs::linkat(proc, old.as_c_str(), dir, name, flags)?)
}

/// `renameat2(2)`.
pub(crate) fn rename(
    old: (BorrowedFd<'_>, &CStr),
    new: (BorrowedFd<'_>, &CStr),
    flags: u32,
) -> Result<()> {
    let flags = RenameFlags::from_bits_retain(flags);
    Ok(rustix::fs::renameat_with(
        old.0, old.1, new.0, new.1, flags,
    )?)
}

/// `fchmodat(2)` of the object behind `fd`, by way of `proc` (`/proc/self/fd`).
pub(crate) fn chmod(proc: BorrowedFd<'_>, fd: BorrowedFd<'_>, bits: u32) -> Result<()> {
    let name = FdName::new(fd);
    Ok(rustix::fs::chmodat(
        proc,
        name.as_c_str(),
        mode(bits),
        AtFlags::empty(),
    )?)
}

/// `fchownat(2)` of the object behind `fd`; `u32::MAX` leaves an id as it is.
pub(crate) fn chown(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<()> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    let uid = (uid != u32::MAX).then(|| Uid::from_raw(uid));
    let gid = (gid != u32::MAX).then(|| Gid::from_raw(gid));
    Ok(rustix::fs::chownat(fd, c"", uid, gid, flags)?)
}

/// `utimensat(2)` of the object behind `fd`.
pub(crate) fn utimens(fd: BorrowedFd<'_>, times: &Timestamps) -> Result<()> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::utimensat(fd, c"", times, flags)?)
}

/// `ftruncate(2)`.
pub(crate) fn ftruncate(fd: BorrowedFd<'_>, size: u64) -> Result<()> {
    Ok(retry_on_intr(|| rustix::fs::ftruncate(fd, size))?)
}

/// `preadv2(2)` into guest memory.
pub(crate) fn preadv(fd: BorrowedFd<'_>, into: &Iovecs<'_>, offset: i64) -> Result<usize> {
    let list = into.as_slice();
    let count = c_int::try_from(list.len()).map_err(|_| Errno(libc::EINVAL))?;
    // SAFETY: the elements point to memory that is valid while the `Iovecs` lives (its invariant);
    // it is the guest's and nobody holds a Rust reference to it.
    again(|| check_size(unsafe { libc::preadv2(fd.as_raw_fd(), list.as_ptr(), count, offset, 0) }))
}

/// `pwritev2(2)` from guest memory.
pub(crate) fn pwritev(
    fd: BorrowedFd<'_>,
    from: &Iovecs<'_>,
    offset: i64,
    flags: c_int,
) -> Result<usize> {
    let list = from.as_slice();
    let count = c_int::try_from(list.len()).map_err(|_| Errno(libc::EINVAL))?;
    again(|| {
        // SAFETY: the elements point to memory that is valid while the `Iovecs` lives (its invariant).
        check_size(unsafe { libc::pwritev2(fd.as_raw_fd(), list.as_ptr(), count, offset, flags) })
    })
}

/// `fsync(2)` or `fdatasync(2)`.
pub(crate) fn sync(fd: BorrowedFd<'_>, data_only: bool) -> Result<()> {
    Ok(retry_on_intr(|| {
        if data_only {
            rustix::fs::fdatasync(fd)
        } else {
            rustix::fs::fsync(fd)
        }
    })?)
}

/// `syncfs(2)`.
pub(crate) fn syncfs(fd: BorrowedFd<'_>) -> Result<()> {
    Ok(rustix::fs::syncfs(fd)?)
}

/// `fallocate(2)`.
pub(crate) fn fallocate(
    fd: BorrowedFd<'_>,
    mode: FallocateFlags,
    offset: u64,
    length: u64,
) -> Result<()> {
    Ok(retry_on_intr(|| {
        rustix::fs::fallocate(fd, mode, offset, length)
    })?)
}

/// `lseek(2)`; the new offset.
pub(crate) fn lseek(fd: BorrowedFd<'_>, to: SeekFrom) -> Result<u64> {
    Ok(rustix::fs::seek(fd, to)?)
}

/// `copy_file_range(2)`; the bytes copied.
pub(crate) fn copy_file_range(
    from: (BorrowedFd<'_>, u64),
    to: (BorrowedFd<'_>, u64),
    length: usize,
) -> Result<usize> {
    let (mut from_at, mut to_at) = (from.1, to.1);
    let copied =
        rustix::fs::copy_file_range(from.0, Some(&mut from_at), to.0, Some(&mut to_at), length);
    Ok(copied?)
}

/// `getdents64(2)`; the bytes written to `buffer`.
pub(crate) fn getdents(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: `buffer` is writable for its length.
    check_long(unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            fd.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    })
}

/// `fchdir(2)`: the working directory of this thread alone, after [`unshare_fs`].
pub(crate) fn fchdir(fd: BorrowedFd<'_>) -> Result<()> {
    Ok(rustix::process::fchdir(fd)?)
}

/// `getxattr(2)` of the object behind `fd`, for the value's size; the working directory is `/proc/self/fd`.
pub(crate) fn getxattr_size(fd: BorrowedFd<'_>, name: &CStr) -> Result<usize> {
    Ok(rustix::fs::getxattr_query(
        FdName::new(fd).as_c_str(),
        name,
    )?)
}

/// `getxattr(2)`, as [`getxattr_size`]; the bytes written to `buffer`.
pub(crate) fn getxattr(fd: BorrowedFd<'_>, name: &CStr, buffer: &mut [u8]) -> Result<usize> {
    Ok(rustix::fs::getxattr(
        FdName::new(fd).as_c_str(),
        name,
        buffer,
    )?)
}

/// `listxattr(2)`, as [`getxattr_size`].
pub(crate) fn listxattr_size(fd: BorrowedFd<'_>) -> Result<usize> {
    Ok(rustix::fs::listxattr_query(FdName::new(fd).as_c_str())?)
}

/// `listxattr(2)`, as [`getxattr`].
pub(crate) fn listxattr(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    Ok(rustix::fs::listxattr(FdName::new(fd).as_c_str(), buffer)?)
}

/// `setxattr(2)`, as [`getxattr`].
pub(crate) fn setxattr(
    fd: BorrowedFd<'_>,
    name: &CStr,
    value: &[u8],
    flags: XattrFlags,
) -> Result<()> {
    Ok(rustix::fs::setxattr(
        FdName::new(fd).as_c_str(),
        name,
        value,
        flags,
    )?)
}

/// `removexattr(2)`, as [`getxattr`].
pub(crate) fn removexattr(fd: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    Ok(rustix::fs::removexattr(FdName::new(fd).as_c_str(), name)?)
}

/// `FS_IOC_GETFLAGS`: the `FS_*_FL` of the file or directory.
pub(crate) fn flags(fd: BorrowedFd<'_>) -> Result<u32> {
    // Of its number's size, though the kernel writes an int.
    let mut flags = [0_u32; 2];
    // SAFETY: the call writes to no more than the eight bytes that its number says, which are there.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) })?;
    Ok(flags[0])
}

/// `FS_IOC_SETFLAGS`.
pub(crate) fn set_flags(fd: BorrowedFd<'_>, flags: u32) -> Result<()> {
    let flags = [flags, 0];
    // SAFETY: the call reads no more than the eight bytes that its number says, which are there.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FS_IOC_SETFLAGS, &raw const flags) })?;
    Ok(())
}

/// `FS_IOC_FSGETXATTR`.
pub(crate) fn file_attributes(fd: BorrowedFd<'_>) -> Result<Fsxattr> {
    let mut attributes = Fsxattr::default();
    // SAFETY: the call writes one structure, which is there.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attributes) })?;
    Ok(attributes)
}

/// `FS_IOC_FSSETXATTR`.
pub(crate) fn set_file_attributes(fd: BorrowedFd<'_>, attributes: &Fsxattr) -> Result<()> {
    let attributes = &raw const *attributes;
    // SAFETY: the call reads one structure, which is there.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSSETXATTR, attributes) })?;
    Ok(())
}

/// `FS_IOC_FIEMAP`, into as many extents as there are; `head` says of which part of the file, and then how many.
pub(crate) fn extents(fd: BorrowedFd<'_>, map: &mut Fiemap) -> Result<()> {
    map.head.fm_extent_count = u32::try_from(map.extents.len()).map_err(|_| Errno(libc::EINVAL))?;
    let map = &raw mut *map;
    // SAFETY: the call reads the head and writes it and at most as many extents as it says, which are there.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FIEMAP, map) })?;
    Ok(())
}

/// Gives this thread a working directory and a umask of its own (`unshare(CLONE_FS)`).
pub(crate) fn unshare_fs() -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::unshare(libc::CLONE_FS) }).map(drop)
}

/// `umask(2)`.
pub(crate) fn umask(bits: u32) {
    rustix::process::umask(mode(bits));
}

/// Sets the file system uid of this thread alone (the raw call); the one before.
pub(crate) fn setfsuid(uid: u32) -> u32 {
    // SAFETY: no memory is passed. The call never fails; it tells the old id.
    u32::try_from(unsafe { libc::syscall(libc::SYS_setfsuid, uid) } & 0xffff_ffff).unwrap_or(0)
}

/// Sets the file system gid of this thread alone (the raw call); the one before.
pub(crate) fn setfsgid(gid: u32) -> u32 {
    // SAFETY: as above.
    u32::try_from(unsafe { libc::syscall(libc::SYS_setfsgid, gid) } & 0xffff_ffff).unwrap_or(0)
}

/// Whether `SECBIT_NO_SETUID_FIXUP` is set: capabilities do not follow the file system uid.
pub(crate) fn no_setuid_fixup() -> Result<bool> {
    let bits = rustix::thread::capabilities_secure_bits()?;
    Ok(bits.contains(CapabilitiesSecureBits::NO_SETUID_FIXUP))
}

/// The permitted capabilities of this thread.
pub(crate) fn permitted() -> Result<CapabilitySet> {
    Ok(rustix::thread::capabilities(None)?.permitted)
}

/// Sets the capabilities of this thread; all not named are dropped.
pub(crate) fn capset(effective: CapabilitySet, permitted: CapabilitySet) -> Result<()> {
    let sets = CapabilitySets {
        effective,
        permitted,
        inheritable: CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// The number by which a thread remembers a descriptor it has made its working directory.
pub(crate) fn number(fd: BorrowedFd<'_>) -> RawFd {
    fd.as_raw_fd()
}

/// Address space of this process that parts of files are mapped into. It is never given back.
pub(crate) struct Window {
    start: usize,
    length: usize,
}

/// Alignment of the window: that of a huge page.
const HUGE_PAGE: usize = 2 << 20;
/// What is looked at by itself when a mapped file has become shorter.
const PAGE: usize = 4096;

impl Window {
    /// Reserves `length` bytes, which nothing can touch.
    pub(crate) fn reserve(length: usize) -> Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing object.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length + HUGE_PAGE,
                libc::PROT_NONE,
                flags,
                -1,
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let start = mapping.expose_provenance().next_multiple_of(HUGE_PAGE);
        Ok(Self { start, length })
    }

    pub(crate) fn extent(&self) -> (usize, usize) {
        (self.start, self.length)
    }

    /// Where a part of the window is, which has to lie within it.
    fn place(&self, offset: usize, length: usize) -> Result<*mut libc::c_void> {
        let end = offset.checked_add(length);
        if end.is_none_or(|end| end > self.length) {
            return Err(Errno(libc::EINVAL));
        }
        Ok(std::ptr::without_provenance_mut(self.start + offset))
    }

    /// Shows a part of a file.
    pub(crate) fn show(
        &self,
        offset: usize,
        length: usize,
        file: BorrowedFd<'_>,
        from: u64,
    ) -> Result<()> {
        let place = self.place(offset, length)?;
        let from = i64::try_from(from).map_err(|_| Errno(libc::EINVAL))?;
        let (access, flags) = (libc::PROT_READ, libc::MAP_SHARED);
        // Elsewhere first: a file system that cannot map a file may say so only when what was there before is gone.
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing object.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                access,
                flags,
                file.as_raw_fd(),
                from,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: the mapping is the one made above, which nobody knows. The place lies within the reservation, which
        // nothing in this process touches but system calls.
        whole(unsafe { libc::mremap(mapping, length, length, flags, place) });
        Ok(())
    }

    /// Shows nothing.
    pub(crate) fn release(&self, offset: usize, length: usize) -> Result<()> {
        self.blank(offset, length, libc::PROT_NONE)
    }

    /// Shows zeros, or nothing where there is no access.
    fn blank(&self, offset: usize, length: usize, access: c_int) -> Result<()> {
        let place = self.place(offset, length)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: the place lies within the reservation, which nothing in this process touches but system calls.
        whole(unsafe { libc::mmap(place, length, access, flags, -1, 0) });
        Ok(())
    }

    /// Puts zeros from the first page on whose content is gone. Whether there was one.
    pub(crate) fn mend(&self, offset: usize, length: usize) -> bool {
        let is_there = |at: usize, length: usize| {
            let Ok(place) = self.place(at, length) else {
                return true;
            };
            // SAFETY: the advice changes no content; of what is not there it is an error.
            let advised = unsafe { libc::madvise(place, length, libc::MADV_POPULATE_READ) };
            !matches!(check(advised), Err(Errno(libc::EFAULT)))
        };
        if is_there(offset, length) {
            return false;
        }
        let end = offset + length;
        let first = (offset..end).step_by(PAGE).find(|&at| !is_there(at, PAGE));
        first.is_some_and(|first| self.blank(first, end - first, libc::PROT_READ).is_ok())
    }
}

/// Ends the process where a call that replaces a part of the window has failed: what was there may be gone, and what
/// this process maps next could come to be where the guest looks.
fn whole(mapping: *mut libc::c_void) {
    if mapping == libc::MAP_FAILED {
        std::process::abort();
    }
}
