//! Connections to the host.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, VsockAddr, bind, connect, getsockopt, socket, sockopt,
};
use protocol::Ports;

use crate::error::{During, Result};
use crate::sys;

/// How long the host may take to accept a connection. It always answers, but it may be late under
/// load: the kernel's own limit of 2 s (VSOCK_DEFAULT_CONNECT_TIMEOUT of net/vmw_vsock/af_vsock.c)
/// has been too short. For the control stream, which is the guest's life:
pub(crate) const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// For the streams of processes. The kernel keeps a socket for as long, used or not
/// (`vsock_connect_timeout`), and there may be many.
pub(crate) const STREAM_PATIENCE: Duration = Duration::from_secs(30);

/// Begins to connect to the host. The socket is writable once that has succeeded, or has failed
/// within `patience`.
pub(crate) fn dial(ports: Ports, patience: Duration) -> Result<OwnedFd> {
    connect_between(ports, patience, SockFlag::SOCK_NONBLOCK)
}

/// Connects to the host, for a stream of a process, and waits until that is done.
pub(crate) fn connect_now(ports: Ports) -> Result<OwnedFd> {
    connect_between(ports, STREAM_PATIENCE, SockFlag::empty())
}

/// Connects to a port of the host that anyone may connect to, and waits until that is done.
pub(crate) fn connect_from_anywhere(host: u32) -> Result<OwnedFd> {
    let guest = libc::VMADDR_PORT_ANY;
    connect_now(Ports { guest, host })
}

fn connect_between(ports: Ports, patience: Duration, flags: SockFlag) -> Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Vsock, SockType::Stream, flags, None)
        .during(|| "create a vsock socket")?;
    sys::set_connect_timeout(&socket, patience).during(|| "set the limit of a connection")?;
    let own = VsockAddr::new(libc::VMADDR_CID_ANY, ports.guest);
    bind(socket.as_raw_fd(), &own).during(|| "take a vsock port")?;
    let host = VsockAddr::new(libc::VMADDR_CID_HOST, ports.host);
    match connect(socket.as_raw_fd(), &host) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error).during(|| "connect to the host"),
    }
}

/// How a connection attempt has ended, when its socket has become ready.
pub(crate) fn connected(socket: impl AsFd) -> Result<()> {
    let error = getsockopt(&socket, sockopt::SocketError).during(|| "look at a socket")?;
    match error {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)).during(|| "connect to the host"),
    }
}
