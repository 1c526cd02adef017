//! The system calls of the vsock device that take pointers.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::Epoll;

/// Memory a system call may read for as long as `'a`.
pub(super) struct Outgoing<'a>(Vec<libc::iovec>, PhantomData<&'a [u8]>);

impl<'a> Outgoing<'a> {
    /// The first `limit` bytes of slices of guest memory.
    pub(super) fn from_guest(slices: &'a [VolatileSlice<'_>], limit: usize) -> Outgoing<'a> {
        Outgoing(guest_iovecs(slices, limit), PhantomData)
    }

    /// The first `limit` bytes of two pieces of host memory.
    pub(super) fn from_host(pieces: (&'a [u8], &'a [u8]), limit: usize) -> Outgoing<'a> {
        let first = &pieces.0[..pieces.0.len().min(limit)];
        let second = &pieces.1[..pieces.1.len().min(limit - first.len())];
        let iovecs = [first, second].map(|piece| libc::iovec {
            iov_base: piece.as_ptr().cast_mut().cast(),
            iov_len: piece.len(),
        });
        Outgoing(iovecs.into(), PhantomData)
    }
}

/// Guest memory a system call may write for as long as `'a`.
pub(super) struct Incoming<'a>(Vec<libc::iovec>, PhantomData<&'a [u8]>);

impl<'a> Incoming<'a> {
    /// The first `limit` bytes of slices of guest memory.
    pub(super) fn from_guest(slices: &'a [VolatileSlice<'_>], limit: usize) -> Incoming<'a> {
        Incoming(guest_iovecs(slices, limit), PhantomData)
    }
}

/// Vectors over the first `limit` bytes of `slices`.
fn guest_iovecs(slices: &[VolatileSlice<'_>], limit: usize) -> Vec<libc::iovec> {
    let mut iovecs = Vec::with_capacity(slices.len());
    let mut left = limit;
    for slice in slices {
        let iov_len = slice.len().min(left);
        if iov_len == 0 {
            break;
        }
        left -= iov_len;
        // The guard only pins lazily mapped (Xen) memory; ours is mapped for as long as the slice lives.
        let iov_base = slice.ptr_guard_mut().as_ptr().cast();
        iovecs.push(libc::iovec { iov_base, iov_len });
    }
    iovecs
}

/// The length of a vector for system calls that want a C int; a packet has at most 1024 pieces, so nothing is cut.
fn int_len(iovecs: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(iovecs.len()).unwrap_or(libc::c_int::MAX)
}

/// Makes a call until no signal interrupts it.
fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        let result = call();
        if let Ok(count) = usize::try_from(result) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// writev(2).
pub(super) fn write(fd: BorrowedFd<'_>, from: &Outgoing<'_>) -> io::Result<usize> {
    // SAFETY: `Outgoing` is only made from slices that stay mapped for its lifetime; the kernel reads no more than they hold. That
    // the guest may change guest memory meanwhile is no matter to the kernel.
    retry(|| unsafe { libc::writev(fd.as_raw_fd(), from.0.as_ptr(), int_len(&from.0)) })
}

/// readv(2).
pub(super) fn read(fd: BorrowedFd<'_>, to: &Incoming<'_>) -> io::Result<usize> {
    // SAFETY: `Incoming` is only made from volatile slices of guest memory that stay mapped for its lifetime, and to which no Rust
    // reference exists; the kernel writes no more than they hold.
    retry(|| unsafe { libc::readv(fd.as_raw_fd(), to.0.as_ptr(), int_len(&to.0)) })
}

/// A message header over `iovecs`, without address and control data.
fn message(iovecs: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: msghdr is plain data for which all zeros is valid: no name, no vectors, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_ptr().cast_mut();
    message.msg_iovlen = iovecs.len();
    message
}

/// sendmsg(2) that neither waits nor raises SIGPIPE.
pub(super) fn send(fd: BorrowedFd<'_>, from: &Outgoing<'_>) -> io::Result<usize> {
    let message = message(&from.0);
    // SAFETY: `message` points to the vectors of `from`, which live through the call; for these the obligation is that of `write`.
    retry(|| unsafe {
        libc::sendmsg(
            fd.as_raw_fd(),
            &raw const message,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    })
}

/// recvmsg(2) that does not wait. Descriptors sent along are dropped by the kernel, as there is no room for them.
pub(super) fn receive(fd: BorrowedFd<'_>, to: &Incoming<'_>) -> io::Result<usize> {
    let mut message = message(&to.0);
    // SAFETY: `message` points to the vectors of `to`, which live through the call; for these the obligation is that of `read`.
    retry(|| unsafe {
        libc::recvmsg(
            fd.as_raw_fd(),
            &raw mut message,
            libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
        )
    })
}

/// Whether poll(2) reports `events`, an error or a hangup right now.
pub(super) fn ready(fd: BorrowedFd<'_>, events: libc::c_short) -> io::Result<bool> {
    ready_within(fd, events, 0)
}

/// Whether poll(2) reports `events`, an error or a hangup within `milliseconds`.
pub(super) fn ready_within(
    fd: BorrowedFd<'_>,
    events: libc::c_short,
    milliseconds: libc::c_int,
) -> io::Result<bool> {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: one initialized pollfd, written only during the call.
    let count = retry(|| unsafe { libc::poll(&raw mut poll, 1, milliseconds) as libc::ssize_t })?;
    Ok(count > 0)
}

/// fcntl(F_GETFL): access mode and status flags.
pub(super) fn flags(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    // SAFETY: F_GETFL takes no argument and touches no memory.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(flags)
    }
}

/// The descriptor of an epoll instance.
pub(super) fn epoll_fd(epoll: &Epoll) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as `epoll` is, which the returned lifetime borrows.
    unsafe { BorrowedFd::borrow_raw(epoll.as_raw_fd()) }
}

/// A new pseudoterminal: master and slave.
#[cfg(test)]
pub(super) fn terminal() -> (std::os::fd::OwnedFd, std::os::fd::OwnedFd) {
    use std::os::fd::{FromRawFd, OwnedFd};
    let (mut master, mut slave) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: two valid places for the descriptors; name, termios and size are not given.
    let result = unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            none,
            none.cast(),
            none.cast(),
        )
    };
    assert_eq!(result, 0);
    // SAFETY: openpty has returned these two descriptors, which nothing else owns.
    unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) }
}

/// mkfifo(3).
#[cfg(test)]
pub(super) fn make_fifo(path: &std::path::Path) {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: a C string that lives through the call.
    let result = unsafe { libc::mkfifo(path.as_ptr(), 0o600) };
    assert_eq!(result, 0);
}

/// The descriptor of an eventfd.
#[cfg(test)]
pub(super) fn event_fd(event: &vmm_sys_util::eventfd::EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as `event` is, which the returned lifetime borrows.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
