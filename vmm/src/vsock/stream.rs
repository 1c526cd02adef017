//! A connection joined with its host descriptors.
//!
//! ```text
//!   source:  ready ──read would wait──> armed ──epoll──> ready ... ──EOF, error, guest takes no more──> closed
//!   sink:    idle ──write would wait──> armed, bytes pending ──epoll──> idle ... ──no more to come, error──> closed
//! ```
//! epoll watches a descriptor only after it has refused a byte, and once per refusal (EPOLLONESHOT): a source that the
//! guest gives no room for is not watched and cannot keep the event loop awake.
//!
//! Invariants:
//! * Bytes are pending only while the sink is armed, and never more than [`BUF_ALLOC`](super::connection::BUF_ALLOC).
//! * The source is closed when the connection is gone; the sink stays until the pending bytes are delivered or it
//!   breaks.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::Port;
use super::connection::{Connection, Key, Outcome};
use super::host_stream::{HostStream, Left, Sink, Source};
use super::packet::{Header, Received, RxBuffer, op};

/// A host descriptor that epoll can be asked to watch.
struct Watched<T: AsFd> {
    end: T,
    epoll: Arc<Epoll>,
    event: EpollEvent,
    registered: bool,
}

impl<T: AsFd> Watched<T> {
    /// Asks for one event. `Ok(false)`: epoll does not watch this kind of file because it is always ready.
    fn arm(&mut self) -> io::Result<bool> {
        self.arm_for(self.event)
    }

    /// Asks to be told once when it hangs up, which epoll tells unasked.
    fn arm_for_end(&mut self) -> io::Result<bool> {
        self.arm_for(EpollEvent::new(EventSet::ONE_SHOT, self.event.data()))
    }

    fn arm_for(&mut self, event: EpollEvent) -> io::Result<bool> {
        let operation = if self.registered {
            ControlOperation::Modify
        } else {
            ControlOperation::Add
        };
        match self
            .epoll
            .ctl(operation, self.end.as_fd().as_raw_fd(), event)
        {
            Ok(()) => {
                self.registered = true;
                Ok(true)
            }
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl<T: AsFd> Drop for Watched<T> {
    fn drop(&mut self) {
        if self.registered {
            // Closing is not enough: the description lives on with whoever shares it. That it is registered makes this
            // succeed.
            let fd = self.end.as_fd().as_raw_fd();
            let _ = self
                .epoll
                .ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
    }
}

/// The epoll instance and the event data of a stream's two descriptors.
pub(super) struct Tokens<'a> {
    /// Watches the descriptors.
    pub(super) epoll: &'a Arc<Epoll>,
    /// Event data of the source.
    pub(super) source: u64,
    /// Event data of the sink.
    pub(super) sink: u64,
}

/// What is known of the end of a source that is read on demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Only a read can tell.
    Unknown,
    /// It is to be watched for when nothing is wanted.
    Unwatched,
    Watched,
    /// Nobody writes any more, but there is something left.
    HungUp,
    Reached,
}

/// A connection joined with its host descriptors. The connection may be gone already.
pub(super) struct Stream {
    key: Key,
    connection: Option<Connection>,
    source: Option<Watched<Source>>,
    /// A read of the source may yield something.
    readable: bool,
    /// What the guest still gets of a source that is read on demand.
    wanted: Option<u32>,
    /// What is known of the end of such a source, which a program may wait for without asking for anything.
    end: End,
    sink: Option<Watched<Sink>>,
    /// What the sink has not taken.
    pending: VecDeque<u8>,
}

impl Stream {
    /// Joins an accepted connection with its host stream.
    pub(super) fn join(
        mut connection: Connection,
        host: HostStream,
        tokens: &Tokens<'_>,
    ) -> Stream {
        if host.source.is_none() {
            connection.end_sending();
        }
        let on_demand = host.source.as_ref().is_some_and(Source::is_on_demand);
        let hangs_up = on_demand && host.source.as_ref().is_some_and(Source::hangs_up);
        if host.sink.is_none() && !on_demand {
            connection.end_receiving();
        }
        let mut stream = Stream {
            key: connection.key(),
            connection: Some(connection),
            source: host
                .source
                .map(|end| watched(end, EventSet::IN, tokens.source, tokens)),
            readable: true,
            wanted: on_demand.then_some(0),
            end: if hangs_up {
                End::Unwatched
            } else {
                End::Unknown
            },
            sink: host
                .sink
                .map(|end| watched(end, EventSet::OUT, tokens.sink, tokens)),
            pending: VecDeque::new(),
        };
        stream.watch_end();
        stream
    }

    /// The ports of the connection.
    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// The host's port.
    pub(super) fn port(&self) -> Port {
        self.key.host_port
    }

    /// Whether the connection still exists.
    pub(super) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Whether both host descriptors are closed.
    pub(super) fn is_closed(&self) -> bool {
        self.source.is_none() && self.sink.is_none()
    }

    /// Whether [`Stream::fill`] may have a packet for the guest.
    pub(super) fn has_work(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| {
            let wanted = self.wanted != Some(0) && connection.allowance() > 0;
            let more = (wanted && self.readable) || self.end == End::Reached;
            connection.has_control() || (more && self.source.is_some())
        })
    }

    /// Takes a packet of the guest; returns a packet to answer with when the connection is gone by it.
    pub(super) fn receive(&mut self, packet: Received<'_>) -> Option<Header> {
        let connection = self.connection.as_mut()?;
        match connection.receive(&packet.header) {
            Outcome::Noted => {}
            Outcome::Data => self.deliver(packet),
            Outcome::Shut => {
                if !connection.guest_receives() {
                    connection.end_sending();
                    self.source = None;
                }
                if let (Some(sink), false) = (&mut self.sink, connection.guest_sends()) {
                    sink.end.finish();
                }
                self.close_finished_sink();
            }
            Outcome::Ended { answer } => {
                let rst = connection.rst();
                self.disconnect();
                return answer.then_some(rst);
            }
        }
        None
    }

    /// The connection is gone.
    pub(super) fn disconnect(&mut self) {
        self.connection = None;
        self.source = None;
        self.close_finished_sink();
    }

    /// The host gives the stream up: its descriptors are closed with whatever is pending, the guest gets RST.
    pub(super) fn abandon(&mut self) {
        self.source = None;
        self.sink = None;
        self.pending = VecDeque::new();
        if let Some(connection) = &mut self.connection {
            connection.reset();
        }
    }

    /// Passes the guest's data on to the sink.
    fn deliver(&mut self, mut packet: Received<'_>) {
        if let Some(wanted) = &mut self.wanted {
            // Whoever sends something else asks for something else.
            if let Some(asked) = packet.payload.to_vec().as_chunks().0.last() {
                *wanted = u32::from_le_bytes(*asked);
            }
            return self.forward(packet.payload.len());
        }
        let Some(sink) = &self.sink else {
            // The guest did not know yet that nobody takes it.
            self.forward(packet.payload.len());
            return;
        };
        let idle = self.pending.is_empty();
        if idle && packet.payload.len() > 0 {
            match sink.end.write_guest(&packet.payload) {
                Ok(count) => {
                    packet.payload.skip(count);
                    self.forward(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.forward(packet.payload.len());
                    return self.break_sink();
                }
            }
        }
        self.pending.extend(packet.payload.to_vec());
        if idle {
            self.flush();
        }
    }

    /// The sink can take more, or is believed to: writes what is pending.
    pub(super) fn flush(&mut self) {
        while let (Some(sink), false) = (&mut self.sink, self.pending.is_empty()) {
            match sink.end.write_host(self.pending.as_slices()) {
                Ok(count @ 1..) => {
                    self.pending.drain(..count);
                    self.forward(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if matches!(sink.arm(), Ok(true)) {
                        return;
                    }
                    // It can neither be written nor waited for.
                    return self.break_sink();
                }
                Ok(0) | Err(_) => return self.break_sink(),
            }
        }
        // A burst leaves no memory behind.
        self.pending = VecDeque::new();
        self.close_finished_sink();
    }

    /// The sink takes nothing any more: neither does the connection.
    fn break_sink(&mut self) {
        self.forward(self.pending.len());
        self.pending = VecDeque::new();
        self.close_sink();
    }

    /// Closes the sink when everything is delivered and nothing more can come.
    fn close_finished_sink(&mut self) {
        let more = self
            .connection
            .as_ref()
            .is_some_and(Connection::guest_sends);
        if !more && self.pending.is_empty() {
            if let (Some(sink), Some(connection)) = (&self.sink, &self.connection)
                && connection.guest_receives()
            {
                sink.end.end();
            }
            self.close_sink();
        }
    }

    fn close_sink(&mut self) {
        self.sink = None;
        if let Some(connection) = &mut self.connection {
            connection.end_receiving();
        }
    }

    /// The source yields an error that the guest is to tell from an end; what it is sent.
    fn break_source(&mut self) -> Option<Header> {
        let rst = self.connection.as_mut().map(Connection::rst);
        self.disconnect();
        rst
    }

    fn forward(&mut self, count: usize) {
        if let (Some(connection), Ok(count)) = (&mut self.connection, u32::try_from(count)) {
            connection.forward(count);
        }
    }

    /// epoll has an event of the source.
    pub(super) fn source_ready(&mut self) {
        self.readable = true;
        if self.end == End::Watched {
            self.end = End::Unwatched;
            self.look_for_end();
        }
    }

    /// Nothing is wanted of the source just now. A program that waits for its end alone is to learn of it.
    fn watch_end(&mut self) {
        let Some(source) = self.source.as_mut().filter(|_| self.wanted == Some(0)) else {
            return;
        };
        match self.end {
            End::Unwatched if matches!(source.arm_for_end(), Ok(true)) => self.end = End::Watched,
            End::HungUp => self.look_for_end(),
            _ => {}
        }
    }

    fn look_for_end(&mut self) {
        let Some(source) = self.source.as_ref().filter(|_| self.wanted == Some(0)) else {
            return;
        };
        match source.end.hung_up() {
            Ok(Some(Left::Nothing)) => self.end = End::Reached,
            Ok(Some(Left::Something)) => self.end = End::HungUp,
            // Whoever reads finds out.
            Ok(None) | Err(_) => {}
        }
    }

    /// Puts the next packet for the guest into `buffer`: its header is returned, a payload is in place. `None`: there
    /// is nothing to send just now.
    pub(super) fn fill(&mut self, buffer: &RxBuffer<'_>) -> Option<Header> {
        let connection = self.connection.as_mut()?;
        if let Some(header) = connection.control() {
            if header.op.get() == op::RST {
                self.disconnect();
            }
            return Some(header);
        }
        let wanted = self.wanted.unwrap_or(u32::MAX);
        let limit = connection.allowance().min(wanted) as usize;
        let limit = buffer.room().len().min(limit);
        let source = self.source.as_mut()?;
        if self.end == End::Reached {
            return self.end_source();
        }
        if !self.readable || limit == 0 {
            return None;
        }
        match source.end.read(buffer.room(), limit) {
            Ok(count @ 1..) => {
                // No more than `limit`, which came from a u32.
                let got = u32::try_from(count).ok()?;
                // A short read most likely has emptied the source.
                let emptied = count < limit;
                match &mut self.wanted {
                    Some(wanted) => *wanted = if emptied { 0 } else { *wanted - got },
                    // epoll tells when there is more, or the end.
                    None if emptied && matches!(source.arm(), Ok(true)) => self.readable = false,
                    None => {}
                }
                let header = connection.data(got);
                self.watch_end();
                Some(header)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => match source.arm() {
                Ok(true) => {
                    self.readable = false;
                    if self.end == End::Unwatched {
                        self.end = End::Watched;
                    }
                    None
                }
                // It can neither be read nor waited for. The guest must not take this for an orderly end.
                Ok(false) | Err(_) => self.break_source(),
            },
            Err(_) if source.end.resets() => self.break_source(),
            // A terminal whose other side is gone, a connection that was reset: nothing more will come.
            Ok(0) | Err(_) => self.end_source(),
        }
    }

    /// There is no more to send; what the guest is told.
    fn end_source(&mut self) -> Option<Header> {
        self.source = None;
        let connection = self.connection.as_mut()?;
        connection.end_sending();
        if self.sink.is_none() {
            connection.end_receiving();
        }
        connection.control()
    }
}

fn watched<T: AsFd>(end: T, events: EventSet, token: u64, tokens: &Tokens<'_>) -> Watched<T> {
    let event = EpollEvent::new(events | EventSet::ONE_SHOT, token);
    Watched {
        end,
        epoll: Arc::clone(tokens.epoll),
        event,
        registered: false,
    }
}
