//! The system calls of the vsock device that take pointers.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::epoll::Epoll;

use crate::sys::retry;

/// `linux/magic.h`
const PIPEFS_MAGIC: libc::__fsword_t = 0x5049_5045;

pub(super) use crate::sys::{Incoming, Outgoing, random, read, write};

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
    let message = message(from.iovecs());
    // SAFETY: `message` points to the vectors of `from`, which live through the call; for these the obligation is that
    // of `write`.
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
    let mut message = message(to.iovecs());
    // SAFETY: `message` points to the vectors of `to`, which live through the call; for these the obligation is that of
    // `read`.
    retry(|| unsafe {
        libc::recvmsg(
            fd.as_raw_fd(),
            &raw mut message,
            libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
        )
    })
}

/// shutdown(2) of the sending direction. A socket that is connected no more needs none.
pub(super) fn shut_sending_down(fd: BorrowedFd<'_>) {
    // SAFETY: no memory is involved.
    let _ = unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) };
}

/// Resets a connection (connect(2), "AF_UNSPEC"). One that is gone needs none.
pub(super) fn reset(fd: BorrowedFd<'_>) {
    /// AF_UNSPEC (0) and zeros. Landlock demands the length of a whole address, that of sockaddr_in.
    const NOWHERE: [u8; 16] = [0; 16];
    // SAFETY: an address of this length that lives through the call. The kernel copies it, however it is aligned.
    let _ = unsafe { libc::connect(fd.as_raw_fd(), NOWHERE.as_ptr().cast(), 16) };
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
    Ok(poll(fd, events, milliseconds)? != 0)
}

/// What poll(2) reports of `events`, an error and a hangup within `milliseconds`.
pub(super) fn poll(
    fd: BorrowedFd<'_>,
    events: libc::c_short,
    milliseconds: libc::c_int,
) -> io::Result<libc::c_short> {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: one initialized pollfd, written only during the call.
    retry(|| unsafe { libc::poll(&raw mut poll, 1, milliseconds) as libc::ssize_t })?;
    Ok(poll.revents)
}

/// Whether it is a pipe without a name (fstatfs(2), PIPEFS_MAGIC).
pub(super) fn is_pipe(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: statfs is plain data for which all zeros is valid.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a valid place for the result.
    let result = unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut found) };
    result == 0 && found.f_type == PIPEFS_MAGIC
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
