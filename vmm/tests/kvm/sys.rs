//! The system calls that the tests need themselves.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

const PAGE: usize = 4096;

/// Pages of this process that nothing touches but system calls and guests. They stay for good.
pub(crate) struct Window {
    start: usize,
    pages: usize,
}

impl Window {
    /// A window of `pages` pages, the first `shown` of which are the file's.
    pub(crate) fn show(file: &File, shown: usize, pages: usize) -> Window {
        assert!(shown <= pages);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing object.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), pages * PAGE, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        let (length, fd) = (shown * PAGE, file.as_raw_fd());
        // SAFETY: over what was mapped just above, which nobody knows yet.
        let mapping = unsafe { libc::mmap(start, length, libc::PROT_READ, flags, fd, 0) };
        assert_ne!(mapping, libc::MAP_FAILED);
        let start = start.expose_provenance();
        Window { start, pages }
    }

    /// Address and length.
    pub(crate) fn extent(&self) -> (usize, usize) {
        (self.start, self.pages * PAGE)
    }

    /// Puts zeros in place of a page.
    pub(crate) fn blank(&self, page: usize) {
        assert!(page < self.pages);
        let place = ptr::with_exposed_provenance_mut(self.start + page * PAGE);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: a page of the window, which nothing in this process touches.
        let mapping = unsafe { libc::mmap(place, PAGE, libc::PROT_READ, flags, -1, 0) };
        assert_ne!(mapping, libc::MAP_FAILED);
    }
}

/// Puts the calling thread into a network namespace of its own.
pub(crate) fn enter_new_network_namespace() {
    // SAFETY: it takes a flag and concerns the calling thread alone.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
}

/// Makes a tap of an open `/dev/net/tun`.
pub(crate) fn make_tap(tun: OwnedFd, name: &[u8], flags: libc::c_int) -> OwnedFd {
    // SAFETY: ifreq is plain data for which all zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = flags.try_into().unwrap();
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    tun
}
