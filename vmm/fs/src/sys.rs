//! The system calls of the server. The only unsafe code of this crate.
//!
//! Each function is one call (repeated on EINTR where that is harmless) and is safe for any
//! argument: borrowed descriptors are open, strings end in NUL, buffers have the length stated.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io::Write;
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_long, c_uint};

use crate::buffers::Iovecs;
use crate::errno::{Errno, Result};

/// `STATX_*` that the server asks for (`linux/stat.h`): all of `struct stat`, birth time, mount id.
const STATX_MASK: c_uint = libc::STATX_BASIC_STATS | libc::STATX_BTIME | libc::STATX_MNT_ID;
/// `_LINUX_CAPABILITY_VERSION_3` (`linux/capability.h`).
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// `SECBIT_NO_SETUID_FIXUP` (`linux/securebits.h`).
const SECBIT_NO_SETUID_FIXUP: c_int = 1 << 2;
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

/// A descriptor's number as a path relative to `/proc/self/fd`.
pub(crate) struct FdName([u8; 12]);

impl FdName {
    pub(crate) fn new(fd: BorrowedFd<'_>) -> Self {
        let mut name = [0; 12];
        // A RawFd has at most ten digits, so that a NUL always stays behind them.
        let _ = write!(&mut name[..11], "{}", fd.as_raw_fd());
        Self(name)
    }

    fn as_ptr(&self) -> *const libc::c_char {
        self.0.as_ptr().cast()
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

/// `openat(2)`, with `O_CLOEXEC`.
pub(crate) fn openat(dir: BorrowedFd<'_>, name: &CStr, flags: c_int, mode: u32) -> Result<OwnedFd> {
    let fd = again(|| {
        // SAFETY: `name` ends in NUL (CStr); the call keeps no pointer.
        check(unsafe {
            libc::openat(
                dir.as_raw_fd(),
                name.as_ptr(),
                flags | libc::O_CLOEXEC,
                mode,
            )
        })
    })?;
    // SAFETY: the call has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `dup` of a descriptor, close-on-exec.
pub(crate) fn dup(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) })?;
    // SAFETY: the call has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `close(2)` whose error counts (FLUSH).
pub(crate) fn close(fd: OwnedFd) -> Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor was owned here and is given up by this call, whatever it returns.
    check(unsafe { libc::close(fd.into_raw_fd()) }).map(drop)
}

/// `statx(2)` of the entry `name` of `dir`, or of `dir` itself where `name` is empty. Follows no
/// symbolic link and triggers no automount.
pub(crate) fn statx(dir: BorrowedFd<'_>, name: &CStr) -> Result<libc::statx> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `name` ends in NUL; `stat` has room for one `struct statx`.
    check(unsafe {
        libc::statx(
            dir.as_raw_fd(),
            name.as_ptr(),
            flags,
            STATX_MASK,
            stat.as_mut_ptr(),
        )
    })?;
    // SAFETY: all-zero bytes are a valid `struct statx`, and the kernel has filled it.
    Ok(unsafe { stat.assume_init() })
}

/// `fstatfs(2)`.
pub(crate) fn fstatfs(fd: BorrowedFd<'_>) -> Result<libc::statfs64> {
    // SAFETY: all-zero bytes are a valid `struct statfs64`.
    let mut stat: libc::statfs64 = unsafe { zeroed() };
    // SAFETY: `stat` has room for one `struct statfs64`.
    again(|| check(unsafe { libc::fstatfs64(fd.as_raw_fd(), &raw mut stat) }))?;
    Ok(stat)
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
    // SAFETY: `buffer` is writable for its length; the empty path ends in NUL.
    check_size(unsafe {
        libc::readlinkat(
            fd.as_raw_fd(),
            c"".as_ptr(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
        )
    })
}

/// `mkdirat(2)`.
pub(crate) fn mkdirat(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: `name` ends in NUL.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

/// `mknodat(2)` without a device number: a regular file, FIFO, socket, or (character device 0:0) a
/// whiteout.
pub(crate) fn mknodat(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: `name` ends in NUL.
    check(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, 0) }).map(drop)
}

/// `symlinkat(2)`.
pub(crate) fn symlinkat(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    // SAFETY: both strings end in NUL.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// `unlinkat(2)`; `flags` is 0 or `AT_REMOVEDIR`.
pub(crate) fn unlinkat(dir: BorrowedFd<'_>, name: &CStr, flags: c_int) -> Result<()> {
    // SAFETY: `name` ends in NUL.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), flags) }).map(drop)
}

/// `linkat(2)` of the object behind `fd`, by way of `proc` (`/proc/self/fd`).
pub(crate) fn link(
    proc: BorrowedFd<'_>,
    fd: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    name: &CStr,
) -> Result<()> {
    let old = FdName::new(fd);
    // SAFETY: both strings end in NUL.
    check(unsafe {
        libc::linkat(
            proc.as_raw_fd(),
            old.as_ptr(),
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    })
    .map(drop)
}

/// `renameat2(2)`.
pub(crate) fn rename(
    old: (BorrowedFd<'_>, &CStr),
    new: (BorrowedFd<'_>, &CStr),
    flags: u32,
) -> Result<()> {
    // SAFETY: both strings end in NUL. The raw call is used because C libraries differ here.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            old.0.as_raw_fd(),
            old.1.as_ptr(),
            new.0.as_raw_fd(),
            new.1.as_ptr(),
            flags,
        )
    };
    check_long(result).map(drop)
}

/// `fchmodat(2)` of the object behind `fd`, by way of `proc` (`/proc/self/fd`).
pub(crate) fn chmod(proc: BorrowedFd<'_>, fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
    let name = FdName::new(fd);
    // SAFETY: the string ends in NUL.
    check(unsafe { libc::fchmodat(proc.as_raw_fd(), name.as_ptr(), mode, 0) }).map(drop)
}

/// `fchownat(2)` of the object behind `fd`; `u32::MAX` leaves an id as it is.
pub(crate) fn chown(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the empty path ends in NUL.
    check(unsafe { libc::fchownat(fd.as_raw_fd(), c"".as_ptr(), uid, gid, flags) }).map(drop)
}

/// `utimensat(2)` of the object behind `fd`.
pub(crate) fn utimens(fd: BorrowedFd<'_>, times: &[libc::timespec; 2]) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the empty path ends in NUL; `times` are two, as the call wants.
    check(unsafe { libc::utimensat(fd.as_raw_fd(), c"".as_ptr(), times.as_ptr(), flags) }).map(drop)
}

/// `ftruncate(2)`.
pub(crate) fn ftruncate(fd: BorrowedFd<'_>, size: i64) -> Result<()> {
    // SAFETY: no memory is passed.
    again(|| check(unsafe { libc::ftruncate64(fd.as_raw_fd(), size) })).map(drop)
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
    let fd = fd.as_raw_fd();
    again(|| {
        // SAFETY: no memory is passed.
        check(unsafe {
            if data_only {
                libc::fdatasync(fd)
            } else {
                libc::fsync(fd)
            }
        })
    })
    .map(drop)
}

/// `syncfs(2)`.
pub(crate) fn syncfs(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::syncfs(fd.as_raw_fd()) }).map(drop)
}

/// `fallocate(2)`.
pub(crate) fn fallocate(fd: BorrowedFd<'_>, mode: c_int, offset: i64, length: i64) -> Result<()> {
    // SAFETY: no memory is passed.
    again(|| check(unsafe { libc::fallocate64(fd.as_raw_fd(), mode, offset, length) })).map(drop)
}

/// `lseek(2)`; the new offset.
pub(crate) fn lseek(fd: BorrowedFd<'_>, offset: i64, whence: c_int) -> Result<i64> {
    // SAFETY: no memory is passed.
    let offset = unsafe { libc::lseek64(fd.as_raw_fd(), offset, whence) };
    if offset < 0 {
        Err(Errno::last())
    } else {
        Ok(offset)
    }
}

/// `copy_file_range(2)`; the bytes copied.
pub(crate) fn copy_file_range(
    from: (BorrowedFd<'_>, i64),
    to: (BorrowedFd<'_>, i64),
    length: usize,
) -> Result<usize> {
    let (mut from_at, mut to_at) = (from.1, to.1);
    // SAFETY: both offsets are valid for reading and writing during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_copy_file_range,
            from.0.as_raw_fd(),
            &raw mut from_at,
            to.0.as_raw_fd(),
            &raw mut to_at,
            length,
            0,
        )
    };
    check_long(result)
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
    // SAFETY: no memory is passed.
    check(unsafe { libc::fchdir(fd.as_raw_fd()) }).map(drop)
}

/// `getxattr(2)` of the object behind `fd`; the working directory is `/proc/self/fd`. An empty
/// `buffer` asks for the size.
pub(crate) fn getxattr(fd: BorrowedFd<'_>, name: &CStr, buffer: &mut [u8]) -> Result<usize> {
    let path = FdName::new(fd);
    // SAFETY: both strings end in NUL; `buffer` is writable for its length.
    check_size(unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
        )
    })
}

/// `listxattr(2)`, as [`getxattr`].
pub(crate) fn listxattr(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    let path = FdName::new(fd);
    // SAFETY: the string ends in NUL; `buffer` is writable for its length.
    check_size(unsafe { libc::listxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) })
}

/// `setxattr(2)`, as [`getxattr`].
pub(crate) fn setxattr(fd: BorrowedFd<'_>, name: &CStr, value: &[u8], flags: c_int) -> Result<()> {
    let path = FdName::new(fd);
    // SAFETY: both strings end in NUL; `value` is readable for its length.
    check(unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            flags,
        )
    })
    .map(drop)
}

/// `removexattr(2)`, as [`getxattr`].
pub(crate) fn removexattr(fd: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let path = FdName::new(fd);
    // SAFETY: both strings end in NUL.
    check(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
}

/// Gives this thread a working directory and a umask of its own (`unshare(CLONE_FS)`).
pub(crate) fn unshare_fs() -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::unshare(libc::CLONE_FS) }).map(drop)
}

/// `umask(2)`.
pub(crate) fn umask(mask: u32) {
    // SAFETY: no memory is passed; the call cannot fail.
    unsafe { libc::umask(mask) };
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
    // SAFETY: no memory is passed.
    let bits = check(unsafe { libc::prctl(libc::PR_GET_SECUREBITS) })?;
    Ok(bits & SECBIT_NO_SETUID_FIXUP != 0)
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: c_int,
}

/// `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The permitted capabilities 0 to 31 of this thread, as bits.
pub(crate) fn permitted() -> Result<u32> {
    let mut header = CapHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 takes a header and two data elements, as passed.
    check_long(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    Ok(data[0].permitted)
}

/// Sets the capabilities of this thread; all not named (and those above 31) are dropped.
pub(crate) fn capset(effective: u32, permitted: u32) -> Result<()> {
    let mut header = CapHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let data = [
        CapData {
            effective,
            permitted,
            inheritable: 0,
        },
        CapData::default(),
    ];
    // SAFETY: version 3 takes a header and two data elements, as passed.
    check_long(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) }).map(drop)
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
        // SAFETY: the mapping is the one made above, which nobody knows. The place lies within the reservation, which nothing in this
        // process touches but system calls.
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

/// Ends the process where a call that replaces a part of the window has failed: what was there may be gone, and what this process maps next
/// could come to be where the guest looks.
fn whole(mapping: *mut libc::c_void) {
    if mapping == libc::MAP_FAILED {
        std::process::abort();
    }
}
