//! The error of one request, as the guest will see it.

/// An error number (`errno.h`) that travels to the guest in `fuse_out_header.error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

impl Errno {
    /// The `errno` that the last failed system call of this thread has left.
    pub(crate) fn last() -> Self {
        Self(
            std::io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO),
        )
    }

    /// The number as FUSE wants it: negative, and within what the guest kernel takes
    /// (`fuse_dev_do_write` and its virtio counterpart refuse -512 and below).
    pub(crate) fn on_the_wire(self) -> i32 {
        if (1..512).contains(&self.0) {
            -self.0
        } else {
            -libc::EIO
        }
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(errno: rustix::io::Errno) -> Self {
        Self(errno.raw_os_error())
    }
}

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

/// What a request ends with.
pub(crate) type Result<T> = std::result::Result<T, Errno>;
