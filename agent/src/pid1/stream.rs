//! One standard stream: bytes pumped between a pipe (or terminal) of the container and a vsock
//! connection to the host, in one direction.
//!
//! ```text
//! Connecting ──writable──> Flowing ──end of input, or output closed──> Done
//!                             └──its process has ended, source is empty──> Done
//! ```
//! The output of a process that has ended may still be held by others: then the agent keeps its end
//! of the pipe and discards what comes, until they are gone too.
//!
//! An input is fetched on demand: the agent asks the host for as much as a reader of the empty pipe does, and for
//! nothing while that has not come.
//!
//! Invariants: both descriptors are non-blocking and watched edge-triggered, so every wake-up pumps
//! until one side would block; at most [`BUFFER`] bytes are held here, and none with splice(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::{read, write};

use crate::error::Result;
use crate::sys;
use crate::vsock;

/// Bytes moved at once: the size of a pipe.
const BUFFER: usize = 64 << 10;

/// Bytes that the host is asked for at once: no more than fits.
const DEMAND: u32 = 64 << 10;

/// Moves in one turn; then others have theirs.
const TURN: usize = 16;

/// Where the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    ToContainer,
    ToHost,
}

/// What a turn of pumping came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Waits for an event.
    Waits,
    /// Could go on at once.
    More,
    /// Is finished; nothing more will happen.
    Done,
}

enum Step {
    Moved,
    SourceEmpty,
    SinkFull,
    End,
    /// The other side takes no more.
    Broken,
}

/// A standard stream.
pub(crate) struct Stream {
    direction: Direction,
    /// To the host.
    socket: Option<OwnedFd>,
    /// The agent's end of the container's pipe, or the terminal's master.
    end: Option<OwnedFd>,
    connected: bool,
    /// None while splice(2) does it.
    copy: Option<Copying>,
    /// Once the process has ended: the bytes that may still come from it.
    rest: Option<usize>,
    /// Of an input of which the host sends what it is asked for.
    demand: Option<Demand>,
}

/// What the host is asked for: what a reader of the empty pipe asks for, so that all else stays where it is.
#[derive(Debug, Default)]
struct Demand {
    /// To be sent; 0 if nothing is.
    wanted: u32,
    /// Sent, and nothing has come of it yet.
    asked: bool,
}

#[derive(Default)]
struct Copying {
    buffer: Vec<u8>,
    sent: usize,
}

impl Stream {
    /// A stream over a socket that may still be connecting. `end` is None until the terminal is
    /// known.
    pub(crate) fn new(direction: Direction, socket: OwnedFd, end: Option<OwnedFd>) -> Stream {
        Stream {
            direction,
            socket: Some(socket),
            end,
            connected: false,
            copy: None,
            rest: None,
            demand: None,
        }
    }

    /// The same one, an input of which nothing is fetched before a process reads.
    pub(crate) fn on_demand(mut self) -> io::Result<Stream> {
        if let Some(end) = &self.end {
            // The pipe begins to tell.
            sys::pipe_asked(end)?;
        }
        self.demand = Some(Demand::default());
        Ok(self)
    }

    /// Takes the terminal's master, which is not a pipe and cannot be spliced.
    pub(crate) fn set_terminal(&mut self, master: OwnedFd) {
        self.end = Some(master);
        self.copy = Some(Copying::default());
    }

    /// Whether the host has accepted the connection.
    pub(crate) fn is_connected(&self) -> bool {
        self.connected || self.is_done()
    }

    /// Whether it carries output of the container.
    pub(crate) fn is_output(&self) -> bool {
        self.direction == Direction::ToHost
    }

    /// Whether its output is discarded because others than its process still hold it.
    pub(crate) fn is_held(&self) -> bool {
        self.is_done() && self.end.is_some()
    }

    /// Whether the stream is finished.
    pub(crate) fn is_done(&self) -> bool {
        self.socket.is_none()
    }

    /// The descriptors to be watched, edge-triggered.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// See [`Stream::socket`].
    pub(crate) fn end(&self) -> Option<BorrowedFd<'_>> {
        self.end.as_ref().map(AsFd::as_fd)
    }

    /// What to wait for on both.
    pub(crate) fn interest() -> EpollFlags {
        EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET
    }

    /// Notes that the socket is ready: the connection attempt may have ended.
    pub(crate) fn socket_ready(&mut self, events: EpollFlags) -> Result<()> {
        let ends = EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
        let ended = !self.connected && events.intersects(ends);
        if let Some(socket) = self.socket.as_ref().filter(|_| ended) {
            vsock::connected(socket)?;
            self.connected = true;
        }
        Ok(())
    }

    /// Notes that nobody reads the container's end any more.
    pub(crate) fn end_ready(&mut self, events: EpollFlags) {
        let gone =
            self.direction == Direction::ToContainer && events.contains(EpollFlags::EPOLLERR);
        if gone {
            self.finish();
        }
    }

    /// Pumps. With `ended`, the process is gone: what is there is all that is wanted of it.
    pub(crate) fn pump(&mut self, ended: bool) -> Turn {
        if ended && self.direction == Direction::ToContainer {
            self.finish();
        }
        if self.is_done() {
            return self.discard();
        }
        let (true, Some(end)) = (self.connected, &self.end) else {
            return Turn::Waits;
        };
        if ended && self.rest.is_none() {
            // Others may write on for ever. A terminal holds less than this.
            self.rest = Some(match self.copy {
                None => sys::pipe_level(end).unwrap_or(0),
                Some(_) => BUFFER,
            });
        }
        for _ in 0..TURN {
            match self.step() {
                Step::Moved => {}
                Step::SinkFull => return Turn::Waits,
                Step::SourceEmpty if !(ended && self.direction == Direction::ToHost) => {
                    self.ask();
                    return Turn::Waits;
                }
                Step::SourceEmpty if self.copy.is_none() => {
                    self.disconnect();
                    return self.discard();
                }
                Step::SourceEmpty | Step::End | Step::Broken => {
                    self.finish();
                    return Turn::Done;
                }
            }
        }
        Turn::More
    }

    /// Reads on what nobody wants.
    fn discard(&mut self) -> Turn {
        let Some(end) = &self.end else {
            return Turn::Done;
        };
        let mut piece = [0; 4096];
        for _ in 0..TURN {
            match read(end, &mut piece) {
                Err(Errno::EAGAIN) => return Turn::Waits,
                Ok(1..) | Err(Errno::EINTR) => {}
                Ok(0) | Err(_) => {
                    self.end = None;
                    return Turn::Done;
                }
            }
        }
        Turn::More
    }

    /// Ends the stream both ways: the container sees end of file or a closed pipe, the host a
    /// half-closed connection, after all that was sent.
    pub(crate) fn finish(&mut self) {
        self.disconnect();
        self.end = None;
        self.copy = None;
    }

    fn disconnect(&mut self) {
        if let Some(socket) = self.socket.take() {
            let how = match self.direction {
                Direction::ToHost => Shutdown::Write,
                Direction::ToContainer => Shutdown::Both,
            };
            // A connection that is gone already needs no closing.
            let _ = shutdown(socket.as_raw_fd(), how);
        }
    }

    /// Asks the host for what a reader asks for.
    fn ask(&mut self) {
        let (Some(demand), Some(socket), Some(end)) = (&mut self.demand, &self.socket, &self.end)
        else {
            return;
        };
        if demand.asked {
            return;
        }
        // Of a pipe that is broken the end will be seen.
        let wanted = sys::pipe_asked(end).unwrap_or(0).max(demand.wanted);
        demand.wanted = wanted.min(DEMAND);
        if demand.wanted > 0 && write(socket, &demand.wanted.to_le_bytes()).is_ok() {
            *demand = Demand {
                wanted: 0,
                asked: true,
            };
        }
    }

    fn step(&mut self) -> Step {
        let (Some(socket), Some(end)) = (&self.socket, &self.end) else {
            return Step::End;
        };
        let (source, sink) = match self.direction {
            Direction::ToHost => (end, socket),
            Direction::ToContainer => (socket, end),
        };
        if let Some(copy) = &mut self.copy {
            return copy.step(source, sink, &mut self.rest);
        }
        let length = self.rest.map_or(BUFFER, |rest| rest.min(BUFFER));
        if length == 0 {
            return Step::SourceEmpty;
        }
        if self.demand.as_ref().is_some_and(|demand| demand.asked) {
            // Whoever has asked so far is served by what comes.
            let _ = sys::pipe_asked(end);
        }
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        match splice(source, None, sink, None, length, flags) {
            Ok(0) => Step::End,
            Ok(count) => {
                self.rest = self.rest.map(|rest| rest - count);
                if let Some(demand) = &mut self.demand {
                    demand.asked = false;
                }
                Step::Moved
            }
            Err(Errno::EINTR) => Step::Moved,
            // Which side it is only a pipe's level can tell.
            Err(Errno::EAGAIN) if self.direction == Direction::ToHost => {
                if sys::pipe_level(source).is_ok_and(|level| level > 0) {
                    Step::SinkFull
                } else {
                    Step::SourceEmpty
                }
            }
            Err(Errno::EAGAIN) => Step::SourceEmpty,
            Err(Errno::EINVAL) => {
                self.copy = Some(Copying::default());
                Step::Moved
            }
            Err(_) => Step::Broken,
        }
    }
}

impl Copying {
    fn step(&mut self, source: &OwnedFd, sink: &OwnedFd, rest: &mut Option<usize>) -> Step {
        if self.sent == self.buffer.len() {
            let length = rest.map_or(BUFFER, |rest| rest.min(BUFFER));
            if length == 0 {
                return Step::SourceEmpty;
            }
            self.sent = 0;
            self.buffer.resize(length, 0);
            let result = read(source, &mut self.buffer);
            self.buffer.truncate(*result.as_ref().unwrap_or(&0));
            match result {
                // A terminal that nobody has open any more reads as EIO.
                Ok(0) | Err(Errno::EIO) => return Step::End,
                Ok(count) => *rest = rest.map(|rest| rest - count),
                Err(Errno::EINTR) => return Step::Moved,
                Err(Errno::EAGAIN) => return Step::SourceEmpty,
                Err(_) => return Step::Broken,
            }
        }
        match write(sink, &self.buffer[self.sent..]) {
            Ok(count) => {
                self.sent += count;
                Step::Moved
            }
            Err(Errno::EINTR) => Step::Moved,
            Err(Errno::EAGAIN) => Step::SinkFull,
            Err(_) => Step::Broken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::unistd::pipe2;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// A stream whose host is a socket of this process, and the container's end of its pipe.
    fn stream(direction: Direction) -> (Stream, UnixStream, std::fs::File) {
        let (host, guest) = UnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (ours, theirs) = match direction {
            Direction::ToContainer => (writer, reader),
            Direction::ToHost => (reader, writer),
        };
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let mut stream = Stream::new(direction, guest.into(), Some(ours));
        assert_eq!(stream.pump(false), Turn::Waits, "not connected yet");
        stream.socket_ready(EpollFlags::EPOLLOUT).unwrap();
        assert!(stream.is_connected());
        (stream, host, theirs.into())
    }

    /// The same without splice(2), as for a terminal.
    fn copying(
        mut from: (Stream, UnixStream, std::fs::File),
    ) -> (Stream, UnixStream, std::fs::File) {
        from.0.copy = Some(Copying::default());
        from
    }

    #[test]
    fn output_is_delivered_and_half_closed() {
        for (mut stream, mut host, mut container) in [
            stream(Direction::ToHost),
            copying(stream(Direction::ToHost)),
        ] {
            container.write_all(b"hello").unwrap();
            assert_eq!(stream.pump(false), Turn::Waits);
            drop(container);
            assert_eq!(stream.pump(false), Turn::Done);
            let mut text = String::new();
            host.read_to_string(&mut text).unwrap();
            assert_eq!(text, "hello");
        }
    }

    #[test]
    fn what_is_written_before_the_end_is_delivered_though_a_writer_survives() {
        for (mut stream, mut host, mut container) in [
            stream(Direction::ToHost),
            copying(stream(Direction::ToHost)),
        ] {
            container.write_all(&[b'x'; 60_000]).unwrap();
            stream.pump(true);
            assert!(stream.is_done());
            // Who holds the pipe on is neither stopped nor heard.
            if stream.is_held() {
                container.write_all(&[b'y'; 60_000]).unwrap();
                assert_eq!(stream.pump(true), Turn::Waits);
                container.write_all(&[b'y'; 60_000]).unwrap();
                drop(container);
                assert_eq!(stream.pump(true), Turn::Done);
                assert!(!stream.is_held());
            }
            let mut text = Vec::new();
            host.read_to_end(&mut text).unwrap();
            assert_eq!(text.len(), 60_000);
        }
    }

    #[test]
    fn a_host_that_does_not_read_stops_the_stream_and_loses_nothing() {
        for (mut stream, mut host, mut container) in [
            stream(Direction::ToHost),
            copying(stream(Direction::ToHost)),
        ] {
            fcntl(&container, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
            let mut total = 0;
            loop {
                let before = total;
                while let Ok(count) = container.write(&[7; 4096]) {
                    total += count;
                }
                stream.pump(false);
                if total == before {
                    break;
                }
            }
            assert_eq!(
                stream.pump(true),
                Turn::Waits,
                "the end of init drops nothing"
            );
            drop(container);
            host.set_nonblocking(true).unwrap();
            let mut got = 0;
            let mut piece = vec![0; 1 << 16];
            while stream.pump(true) != Turn::Done {
                got += host.read(&mut piece).unwrap();
            }
            host.set_nonblocking(false).unwrap();
            got += host.read_to_end(&mut Vec::new()).unwrap();
            assert_eq!(got, total);
        }
    }

    #[test]
    fn input_arrives_and_ends() {
        for (mut stream, mut host, mut container) in [
            stream(Direction::ToContainer),
            copying(stream(Direction::ToContainer)),
        ] {
            host.write_all(b"hello").unwrap();
            assert_eq!(stream.pump(false), Turn::Waits);
            host.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(stream.pump(false), Turn::Done);
            let mut text = String::new();
            container.read_to_string(&mut text).unwrap();
            assert_eq!(text, "hello");
        }
    }

    #[test]
    fn a_reader_that_goes_away_closes_the_connection() {
        let (mut stream, mut host, container) = stream(Direction::ToContainer);
        drop(container);
        stream.end_ready(EpollFlags::EPOLLERR);
        assert_eq!(stream.pump(false), Turn::Done);
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
        let (mut stream, mut host, container) = self::stream(Direction::ToContainer);
        drop(container);
        host.write_all(b"x").unwrap();
        assert_eq!(stream.pump(false), Turn::Done, "EPIPE");
    }

    #[test]
    fn a_host_that_goes_away_closes_the_pipe() {
        let (mut stream, host, mut container) = stream(Direction::ToHost);
        drop(host);
        container.write_all(b"x").unwrap();
        assert_eq!(stream.pump(false), Turn::Done);
        assert_eq!(
            container.write(b"y").unwrap_err().kind(),
            std::io::ErrorKind::BrokenPipe
        );
    }
}
