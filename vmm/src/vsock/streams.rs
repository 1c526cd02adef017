//! Who is expected, who is connected, and whose turn it is.
//!
//! Nothing here grows by what the guest does: a stream exists only because the host has expected it, or serves so many
//! on its port, and answers to packets that belong to no stream wait in a queue of fixed length.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use vmm_sys_util::epoll::Epoll;

use super::connection::{Connection, Key};
use super::host_stream::HostStream;
use super::packet::{HOST_CID, Header, Received, RxBuffer, TYPE_STREAM, op};
use super::stream::{Stream, Tokens};
use super::{Error, Port, sys, token};

/// Most streams at a time, expected or connected.
pub(super) const MAX_STREAMS: usize = 1024;
/// Most refusals that wait for an rx buffer. A guest that asks for more without giving buffers does not get an answer
/// to each.
pub(super) const MAX_REFUSALS: usize = 256;

/// The ports below are those that a guest's programs need privileges for (`LAST_RESERVED_PORT` of
/// net/vmw_vsock/af_vsock.c).
const FIRST_PORT: Port = 1024;

/// Never used twice, so that an event of a closed descriptor cannot be taken for one of a later stream.
type Id = u64;

struct Entry {
    stream: Stream,
    /// In the work queue.
    queued: bool,
    /// Reported as closed, or given up: what remains is a connection whose end the guest has not confirmed or not heard
    /// of. Or of a service, whose streams are nobody's to wait for.
    reported: bool,
}

/// Who makes the host's end of a connection to a port.
struct Service {
    port: Port,
    most: usize,
    connect: Connect,
}

/// Makes the host's end of a connection; without one it is refused.
pub(super) type Connect = Box<dyn FnMut() -> Option<HostStream> + Send>;

/// All streams of the device.
pub(super) struct Streams {
    epoll: Arc<Epoll>,
    expected: HashMap<Key, HostStream>,
    services: Vec<Service>,
    entries: HashMap<Id, Entry>,
    /// The streams that have a connection.
    connected: HashMap<Key, Id>,
    next: Id,
    /// Streams that have something for the guest, each once, served in turns of one packet.
    work: VecDeque<Id>,
    /// Refusals to be sent.
    refusals: VecDeque<Header>,
    closed: Vec<Port>,
}

impl Streams {
    /// No streams.
    pub(super) fn new(epoll: Arc<Epoll>) -> Streams {
        Streams {
            epoll,
            expected: HashMap::new(),
            services: Vec::new(),
            entries: HashMap::new(),
            connected: HashMap::new(),
            next: 0,
            work: VecDeque::new(),
            refusals: VecDeque::new(),
            closed: Vec::new(),
        }
    }

    /// Offers a stream for the connection between two ports.
    pub(super) fn expect(&mut self, key: Key, host: HostStream) -> Result<(), Error> {
        if self.expected.len() + self.entries.len() >= MAX_STREAMS {
            return Err(Error::TooManyStreams(MAX_STREAMS));
        }
        if self.is_in_use(key.host_port) {
            return Err(Error::PortInUse(key.host_port));
        }
        self.expected.insert(key, host);
        Ok(())
    }

    /// Offers a stream for a connection between two ports that nobody can guess.
    pub(super) fn offer(&mut self, host: HostStream) -> Result<Key, Error> {
        loop {
            let key = Key {
                guest_port: random_port()?,
                host_port: random_port()?,
            };
            if !self.is_in_use(key.host_port) {
                return self.expect(key, host).map(|()| key);
            }
        }
    }

    /// Whether the end of a stream on this port of the host is still to be reported.
    fn is_in_use(&self, port: Port) -> bool {
        let connected = |entry: &Entry| !entry.reported && entry.stream.port() == port;
        self.expected.keys().any(|key| key.host_port == port)
            || self.entries.values().any(connected)
    }

    /// Offers a stream for every connection to `port`, `most` at a time.
    pub(super) fn accept(&mut self, port: Port, most: usize, connect: Connect) {
        self.services.push(Service {
            port,
            most,
            connect,
        });
    }

    /// The host's end of one more connection to a port that is served.
    fn serve(&mut self, port: Port) -> Option<HostStream> {
        let service = self.services.iter_mut().find(|s| s.port == port)?;
        let theirs = self.entries.values().filter(|e| e.stream.port() == port);
        let room =
            theirs.count() < service.most && self.expected.len() + self.entries.len() < MAX_STREAMS;
        room.then(|| (service.connect)()).flatten()
    }

    /// Gives up a stream that is offered or connected; its closing is not reported. Whether the guest is to be told.
    pub(super) fn abandon(&mut self, port: Port) -> bool {
        let offered = self.expected.len();
        self.expected.retain(|key, _| key.host_port != port);
        if self.expected.len() < offered {
            return false;
        }
        let current = |entry: &Entry| !entry.reported && entry.stream.port() == port;
        let Some((&id, entry)) = self.entries.iter_mut().find(|(_, entry)| current(entry)) else {
            return false;
        };
        entry.stream.abandon();
        entry.reported = true;
        self.settle(id);
        true
    }

    /// Streams whose closing is not reported yet.
    pub(super) fn open(&self) -> usize {
        self.expected.len()
            + self
                .entries
                .values()
                .filter(|entry| !entry.reported)
                .count()
    }

    /// The ports of the streams that closed since the last call.
    pub(super) fn take_closed(&mut self) -> Vec<Port> {
        std::mem::take(&mut self.closed)
    }

    /// An event of a stream's descriptor.
    pub(super) fn event(&mut self, data: u64) {
        let Some(number) = data.checked_sub(token::STREAMS) else {
            return;
        };
        let id = number / 2;
        if let Some(entry) = self.entries.get_mut(&id) {
            if number & 1 == 0 {
                entry.stream.source_ready();
            } else {
                entry.stream.flush();
            }
            self.settle(id);
        }
    }

    /// Takes a packet of the guest with the CID `guest_cid`.
    pub(super) fn receive(&mut self, guest_cid: u64, packet: Received<'_>) {
        let header = packet.header;
        if header.src_cid.get() != guest_cid {
            // There is nobody to answer to.
            return;
        }
        if header.dst_cid.get() != HOST_CID || header.type_.get() != TYPE_STREAM {
            return self.refuse(&header);
        }
        let key = Key {
            guest_port: header.src_port.get(),
            host_port: header.dst_port.get(),
        };
        if let Some(&id) = self.connected.get(&key) {
            let entry = self.entries.get_mut(&id);
            if let Some(rst) = entry.and_then(|entry| entry.stream.receive(packet)) {
                self.answer(rst);
            }
            self.settle(id);
        } else if header.op.get() == op::REQUEST && header.len.get() == 0 {
            if let Some(host) = self.expected.remove(&key) {
                self.connect(&header, host, false);
            } else if let Some(host) = self.serve(key.host_port) {
                self.connect(&header, host, true);
            } else {
                self.refuse(&header);
            }
        } else {
            self.refuse(&header);
        }
    }

    fn connect(&mut self, request: &Header, host: HostStream, of_service: bool) {
        let id = self.next;
        self.next += 1;
        let source = token::STREAMS + 2 * id;
        let tokens = Tokens {
            epoll: &self.epoll,
            source,
            sink: source + 1,
        };
        let stream = Stream::join(Connection::accept(request), host, &tokens);
        self.connected.insert(stream.key(), id);
        self.entries.insert(
            id,
            Entry {
                stream,
                queued: false,
                reported: of_service,
            },
        );
        self.settle(id);
    }

    /// Answers a packet that belongs to no stream. RST is never answered.
    fn refuse(&mut self, header: &Header) {
        if header.op.get() != op::RST {
            self.answer(header.refusal());
        }
    }

    fn answer(&mut self, rst: Header) {
        if self.refusals.len() < MAX_REFUSALS {
            self.refusals.push_back(rst);
        }
    }

    /// Draws the conclusions from a change of a stream: gets it in line, reports it, forgets it.
    fn settle(&mut self, id: Id) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let stream = &entry.stream;
        if !entry.queued && stream.has_work() {
            entry.queued = true;
            self.work.push_back(id);
        }
        if stream.is_closed() && !entry.reported {
            entry.reported = true;
            self.closed.push(stream.port());
        }
        if !stream.is_connected() {
            // No later connection has the same ports: until here, a REQUEST with them was a packet of this one.
            self.connected.remove(&stream.key());
            if stream.is_closed() {
                self.entries.remove(&id);
            }
        }
    }

    /// Whether [`Streams::transmit`] may have a packet.
    pub(super) fn has_work(&self) -> bool {
        !self.refusals.is_empty() || !self.work.is_empty()
    }

    /// Writes the next packet for the guest into `buffer` and returns its size. `None`: there is none after all.
    pub(super) fn transmit(&mut self, buffer: &RxBuffer<'_>) -> Option<u32> {
        if let Some(rst) = self.refusals.pop_front() {
            return Some(buffer.finish(&rst));
        }
        // Whoever has nothing leaves the line, so this ends.
        while let Some(id) = self.work.pop_front() {
            let Some(entry) = self.entries.get_mut(&id) else {
                continue;
            };
            entry.queued = false;
            let header = entry.stream.fill(buffer);
            self.settle(id);
            if let Some(header) = header {
                return Some(buffer.finish(&header));
            }
        }
        None
    }

    /// Ends all connections. What is expected stays expected, what is pending for a sink stays pending.
    pub(super) fn disconnect_all(&mut self) {
        self.refusals.clear();
        self.work.clear();
        let ids: Vec<Id> = self.entries.keys().copied().collect();
        for id in ids {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.stream.disconnect();
            }
            self.settle(id);
        }
    }

    /// Gives up what is expected.
    pub(super) fn forget_expected(&mut self) {
        self.services.clear();
        self.closed
            .extend(self.expected.drain().map(|(key, _)| key.host_port));
    }
}

/// A port that nobody can guess.
fn random_port() -> Result<Port, Error> {
    let mut bytes = [0; size_of::<Port>()];
    // A request of this size is never cut short (getrandom(2)).
    sys::random(&mut bytes).map_err(Error::Random)?;
    // VMADDR_PORT_ANY, the highest number, is not a port.
    Ok(FIRST_PORT + Port::from_ne_bytes(bytes) % (Port::MAX - FIRST_PORT))
}
