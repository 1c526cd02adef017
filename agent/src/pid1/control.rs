//! The control stream to the host: frames over a non-blocking vsock connection.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{MsgFlags, send};
use nix::unistd::read;
use protocol::{Message, Request, Requests};

use crate::error::{During, Error, Result};
use crate::vsock;

/// Bytes read at once.
const PIECE: usize = 16 << 10;

/// The control stream.
pub(crate) struct Control {
    socket: OwnedFd,
    connected: bool,
    requests: Requests,
    /// What is still to be sent: the answers to the host's own requests, so the host bounds it.
    unsent: Vec<u8>,
}

impl Control {
    /// Over a socket that may still be connecting.
    pub(crate) fn new(socket: OwnedFd) -> Control {
        Control {
            socket,
            connected: false,
            requests: Requests::default(),
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
        vsock::connected(&self.socket)?;
        self.connected = true;
        self.flush()?;
        Ok(true)
    }

    /// The next request that has arrived.
    pub(crate) fn request(&mut self) -> Result<Option<Request>> {
        self.requests
            .take()
            .map_err(|e| Error::Stream("control", e))
    }

    fn receive(&mut self) -> Result<()> {
        let mut piece = [0; PIECE];
        match read(&self.socket, &mut piece) {
            Ok(0) => Err(Error::Closed("the host")),
            Ok(count) => {
                self.requests.push(&piece[..count]);
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
