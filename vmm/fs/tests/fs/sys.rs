//! The system calls that the tests need themselves.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::path::Path;

/// unshare(2), by which only the calling thread is affected.
pub(crate) fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is passed.
    match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The mount that a path leads to.
pub(crate) fn mount_id(path: &Path) -> u64 {
    // SAFETY: plain data, for which zero is valid.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let path = CString::new(path.to_str().unwrap()).unwrap();
    let mask = libc::STATX_MNT_ID;
    // SAFETY: a path that ends in NUL, and room for the answer.
    let result = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), 0, mask, &raw mut stat) };
    assert_eq!(result, 0);
    stat.stx_mnt_id
}

/// Copies memory of this process that may not be there. Returns whether all of it was.
pub(crate) fn read_own(address: usize, to: &mut [u8]) -> bool {
    let local = libc::iovec {
        iov_base: to.as_mut_ptr().cast(),
        iov_len: to.len(),
    };
    let remote = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(address),
        iov_len: to.len(),
    };
    // SAFETY: `to` has room for what is written, which is no more than its length.
    let count = unsafe {
        libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
    };
    usize::try_from(count) == Ok(to.len())
}
