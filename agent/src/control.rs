//! The control stream to the host: frames over a non-blocking vsock connection.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, VsockAddr, bind, connect, getsockopt, send,
    socket, sockopt,
};
use nix::unistd::read;
use protocol::{Decoder, Message, Ports, Request};

use crate::error::{During, Error, Result};
use crate::sys;

/// Bytes read at once.
const PIECE: usize = 16 << 10;

/// How long the host may take to accept a connection. It always answers, but under load it may come to it late: the kernel's own limit
/// of 2 s (VSOCK_DEFAULT_CONNECT_TIMEOUT of net/vmw_vsock/af_vsock.c) has been too short. For the control stream, which is the guest's life:
pub(crate) const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// For the streams of processes. The kernel keeps a socket for as long, used or not (`vsock_connect_timeout`), and there may be many.
pub(crate) const STREAM_PATIENCE: Duration = Duration::from_secs(30);

/// Begins to connect to the host. The socket is writable once that has succeeded, or has failed within `patience`.
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

/// The control stream.
pub(crate) struct Control {
    socket: OwnedFd,
    connected: bool,
    decoder: Decoder,
    /// What is still to be sent: the answers to the host's own requests, so the host bounds it.
    unsent: Vec<u8>,
}

impl Control {
    /// Over a socket that may still be connecting.
    pub(crate) fn new(socket: OwnedFd) -> Control {
        Control {
            socket,
            connected: false,
            decoder: Decoder::new(),
            unsent: Vec::new(),
        }
    }

    /// The socket, for epoll.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> EpollFlags {
        if self.connected && self.unsent.is_empty() {
            EpollFlags::EPOLLIN
        } else {
            EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT
        }
    }

    /// Whether the host has taken all that has been sent.
    pub(crate) fn is_idle(&self) -> bool {
        self.unsent.is_empty()
    }

    /// Sends a message, at the latest when the stream takes it.
    pub(crate) fn send(&mut self, message: &Message) -> Result<()> {
        let frame = protocol::encode(message).map_err(|e| Error::Stream("control", e))?;
        self.unsent.extend_from_slice(&frame);
        if self.connected { self.flush() } else { Ok(()) }
    }

    /// Does what the stream is ready for. Returns true when it has become connected just now.
    pub(crate) fn ready(&mut self, events: EpollFlags) -> Result<bool> {
        if self.connected {
            self.flush()?;
            if events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR)
            {
                self.receive()?;
            }
            return Ok(false);
        }
        let ends = EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
        if !events.intersects(ends) {
            return Ok(false);
        }
        connected(&self.socket)?;
        self.connected = true;
        self.flush()?;
        Ok(true)
    }

    /// The next request that has arrived.
    pub(crate) fn request(&mut self) -> Result<Option<Request>> {
        self.decoder.take().map_err(|e| Error::Stream("control", e))
    }

    fn receive(&mut self) -> Result<()> {
        let mut piece = [0; PIECE];
        match read(&self.socket, &mut piece) {
            Ok(0) => Err(Error::Closed("the host")),
            Ok(count) => {
                self.decoder.push(&piece[..count]);
                Ok(())
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(error) => Err(error).during(|| "read from the host"),
        }
    }

    fn flush(&mut self) -> Result<()> {
        while !self.unsent.is_empty() {
            match send(
                self.socket.as_raw_fd(),
                &self.unsent,
                MsgFlags::MSG_NOSIGNAL,
            ) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error).during(|| "write to the host"),
            }
        }
        Ok(())
    }
}
