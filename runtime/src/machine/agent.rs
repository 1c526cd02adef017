//! The control channel to the guest's agent: frames over a socket pair whose other end the vsock device has joined to
//! the agent's connection. What comes from it is the guest's word and nothing more.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use protocol::{ContainerId, Decoder, Message, Request, RequestBody};
use vmm::vsock::{HostStream, Sink, Source};

/// Maximum number of bytes that may wait for a guest that does not read: a request and its attachment.
const OUTBOX_MAX: usize = 2 * protocol::MAX_FRAME;

/// What is read at once.
const READ_MAX: usize = 64 << 10;

/// The channel. Never blocks.
pub(super) struct Agent {
    stream: UnixStream,
    decoder: Decoder,
    outbox: Vec<u8>,
    last_id: u64,
}

impl Agent {
    /// The channel, and the end that belongs to the vsock device.
    pub(super) fn new() -> io::Result<(Agent, HostStream)> {
        let (stream, guest_end) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        let source = Source::new(guest_end.try_clone()?.into()).map_err(io::Error::other)?;
        let sink = Sink::new(guest_end.into()).map_err(io::Error::other)?;
        let guest_end = HostStream {
            source: Some(source),
            sink: Some(sink),
        };
        let agent = Agent {
            stream,
            decoder: Decoder::new(),
            outbox: Vec::new(),
            last_id: 0,
        };
        Ok((agent, guest_end))
    }

    /// Sends a request; its id comes back with the response.
    pub(super) fn request(&mut self, container: ContainerId, body: RequestBody) -> io::Result<u64> {
        self.last_id += 1;
        let request = Request {
            container,
            id: self.last_id,
            body,
        };
        let frame = request.encode().map_err(io::Error::other)?;
        if self.outbox.len() + frame.len() > OUTBOX_MAX {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "the guest does not read its requests",
            ));
        }
        self.outbox.extend_from_slice(&frame);
        self.flush()?;
        Ok(self.last_id)
    }

    /// Whether the channel must be watched for room.
    pub(super) fn wants_to_write(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Writes what the channel takes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.outbox.is_empty() {
            match self.stream.write(&self.outbox) {
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Reads once and returns the whole messages received.
    pub(super) fn receive(&mut self) -> io::Result<Vec<Message>> {
        let mut bytes = [0; READ_MAX];
        let count = match self.stream.read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return Ok(Vec::new());
            }
            Err(e) => return Err(e),
        };
        self.decoder.push(&bytes[..count]);
        let mut messages = Vec::new();
        while let Some(message) = self.decoder.take().map_err(io::Error::other)? {
            messages.push(message);
        }
        Ok(messages)
    }
}

impl AsFd for Agent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
