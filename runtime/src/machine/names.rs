//! The name server of the container's network namespace, which this process lives in: the guest reaches it by vsock.

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
use protocol::NAMES_ADDRESS;
use std::os::fd::AsRawFd;
use vmm::vsock::HostStream;

use super::streams;
use crate::control::Direction;

/// Connects to it. `None` where that is not possible: the guest's connection is refused then.
pub(super) fn connected(kind: SockType) -> Option<HostStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, kind, flags, None).ok()?;
    match connect(socket.as_raw_fd(), &SockaddrIn::from(NAMES_ADDRESS)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(_) => return None,
    }
    let extra = streams::extra(socket, Direction::Both, false).ok()?;
    Some(extra.stream)
}
