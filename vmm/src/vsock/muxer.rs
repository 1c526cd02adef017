//! The back half: moves packets between the queues and the streams.
//!
//! Everything happens in [`Vsock::handle_events`], in batches of bounded size. When a batch ends with work left, an
//! eventfd keeps the epoll descriptor readable; in every other state it is readable only if something has happened.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::connection::Key;
use super::front::{Active, Link, State, VsockFront};
use super::host_stream::HostStream;
use super::packet::{Broken, Received, RxBuffer};
use super::streams::Streams;
use super::{Error, Port, sys, token};

/// Most events taken at a time; the rest stays in epoll.
const MAX_EVENTS: usize = 32;
/// Most packets taken from the guest in a batch (64 KiB each at most).
pub(super) const TX_BATCH: usize = 32;
/// Most packets given to the guest in a batch (Linux gives buffers of less than 4 KiB).
pub(super) const RX_BATCH: usize = 32;

/// The back half of the vsock device and the host's vsock endpoint. Owned and driven by one event loop.
pub struct Vsock {
    guest_cid: u64,
    link: Arc<Link>,
    /// Keeps the epoll descriptor readable while work is left.
    again: EventFd,
    /// The generation of queues that the connections belong to.
    generation: u64,
    streams: Streams,
}

/// How a batch on one queue ended.
#[derive(Clone, Copy)]
struct Batch {
    /// The batch was full.
    more: bool,
    /// The driver wants an interrupt for the used buffers.
    interrupt: bool,
}

impl Vsock {
    /// Both halves of a device for the guest with the CID `guest_cid`.
    ///
    /// # Errors
    /// [`Error::Events`].
    pub fn new(guest_cid: u64) -> Result<(VsockFront, Vsock), Error> {
        let epoll = Arc::new(Epoll::new().map_err(Error::Events)?);
        let link = Arc::new(Link::new(Arc::clone(&epoll)).map_err(Error::Events)?);
        let again = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::Events)?;
        let event = EpollEvent::new(EventSet::IN, token::AGAIN);
        epoll
            .ctl(ControlOperation::Add, again.as_raw_fd(), event)
            .map_err(Error::Events)?;
        let front = VsockFront::new(guest_cid, Arc::clone(&link));
        let streams = Streams::new(epoll);
        Ok((
            front,
            Vsock {
                guest_cid,
                link,
                again,
                generation: 0,
                streams,
            },
        ))
    }

    /// The connection that the guest makes between these two ports is joined with `stream`; one connection only. Every
    /// other connection attempt is refused. Any process of the guest can make that connection, so it must come before
    /// there are others than the one that is meant. The end is reported, by the host's port, by
    /// [`Vsock::handle_events`] or [`Vsock::drain`].
    ///
    /// # Errors
    /// [`Error::PortInUse`] as long as the end of an earlier stream on this port of the host is not reported,
    /// [`Error::TooManyStreams`].
    pub fn expect(&mut self, key: Key, stream: HostStream) -> Result<(), Error> {
        self.streams.expect(key, stream)
    }

    /// As [`Vsock::expect`], between two random ports: 64 bits that only those who are told them know. A process of the
    /// guest that tries ports does not find the connection that is meant for another.
    ///
    /// # Errors
    /// [`Error::TooManyStreams`], [`Error::Random`].
    pub fn offer(&mut self, stream: HostStream) -> Result<Key, Error> {
        self.streams.offer(stream)
    }

    /// Every connection of the guest to `port`, `most` at a time, is joined with what `connect` makes for it; without
    /// that it is refused. `connect` must not wait. The ends of these streams are not reported, and nothing waits for
    /// what their sinks have not taken. For a port that is not used otherwise.
    pub fn accept(
        &mut self,
        port: Port,
        most: usize,
        connect: impl FnMut() -> Option<HostStream> + Send + 'static,
    ) {
        self.streams.accept(port, most, Box::new(connect));
    }

    /// Gives up the stream of a port: the guest's connection is reset or, if there was none, refused when it comes. The
    /// host's descriptors are closed before this returns, with what the sink has not taken; the end of the stream is
    /// not reported. Does nothing when the port has no stream.
    pub fn abandon(&mut self, port: Port) {
        if self.streams.abandon(port) {
            // Fails only when the counter is full, and then the event is already pending.
            let _ = self.again.write(1);
        }
    }

    /// A descriptor that is readable when [`Vsock::handle_events`] has work.
    #[must_use]
    pub fn epoll_fd(&self) -> BorrowedFd<'_> {
        sys::epoll_fd(&self.link.epoll)
    }

    /// Handles what is ready, or a fair part of it; never waits. Returns the ports of the streams that are done: both
    /// directions have ended, what the guest has sent is delivered as far as the sink took it, and the host's
    /// descriptors are closed.
    pub fn handle_events(&mut self) -> Vec<Port> {
        let link = Arc::clone(&self.link);
        // Before epoll_wait: with the lock held, an event of a queue is one of the queues that are there.
        let mut state = link.lock();
        self.adopt(&state);
        let mut events = [EpollEvent::default(); MAX_EVENTS];
        // It cannot fail but by a signal, and then the events are still there at the next call.
        let count = link.epoll.wait(0, &mut events).unwrap_or(0);
        for event in &events[..count] {
            self.note(event.data(), state.active.as_ref());
        }
        self.serve(&mut state);
        drop(state);
        self.streams.take_closed()
    }

    /// The guest will never run again: the vCPUs have stopped. Takes what its tx queue still holds, ends all
    /// connections, gives up all expectations. What a sink has not taken yet stays, and is delivered by further calls
    /// of [`Vsock::handle_events`]; until all is delivered [`Vsock::open_streams`] is not 0. Returns the ports of the
    /// streams that are done, as `handle_events` does.
    pub fn drain(&mut self) -> Vec<Port> {
        let link = Arc::clone(&self.link);
        let mut state = link.lock();
        self.adopt(&state);
        // A queue holds no more than its size, so this is all of it, whoever should still be adding to it.
        let size = state
            .active
            .as_ref()
            .map_or(0, |active| active.tx.queue.size());
        for _ in 0..usize::from(size).div_ceil(TX_BATCH) {
            let Some(active) = &mut state.active else {
                break;
            };
            match self.serve_tx(active) {
                Ok(Batch { more: true, .. }) => {}
                Ok(_) => break,
                Err(broken) => {
                    active.interrupt.needs_reset(broken);
                    break;
                }
            }
        }
        link.retire(&mut state);
        self.adopt(&state);
        drop(state);
        self.streams.forget_expected();
        self.streams.take_closed()
    }

    /// The number of streams, expected or connected, whose end has not been reported.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.open()
    }

    /// Ends the connections of queues that are gone.
    fn adopt(&mut self, state: &State) {
        if self.generation != state.generation {
            self.generation = state.generation;
            self.streams.disconnect_all();
        }
    }

    fn note(&mut self, data: u64, active: Option<&Active>) {
        let event = match (data, active) {
            (token::CHANGED, _) => Some(&self.link.changed),
            (token::AGAIN, _) => Some(&self.again),
            (token::RX_KICK, Some(active)) => Some(&active.rx.kick),
            (token::TX_KICK, Some(active)) => Some(&active.tx.kick),
            (token::RX_KICK | token::TX_KICK, None) => None,
            _ => return self.streams.event(data),
        };
        // The queues are looked at in any case; the count does not matter.
        let _ = event.map(EventFd::read);
    }

    /// One batch on each queue.
    fn serve(&mut self, state: &mut State) {
        let Some(active) = &mut state.active else {
            return;
        };
        match self.serve_queues(active) {
            Ok(Batch { more, interrupt }) => {
                if interrupt {
                    active.interrupt.signal_used();
                }
                if more {
                    // Fails only when the counter is full, and then the event is already pending.
                    let _ = self.again.write(1);
                }
            }
            Err(broken) => {
                active.interrupt.needs_reset(broken);
                self.link.retire(state);
                self.adopt(state);
            }
        }
    }

    fn serve_queues(&mut self, active: &mut Active) -> Result<Batch, Broken> {
        let tx = self.serve_tx(active)?;
        let rx = self.serve_rx(active)?;
        Ok(Batch {
            more: tx.more || rx.more,
            interrupt: tx.interrupt || rx.interrupt,
        })
    }

    /// Takes packets from the guest.
    fn serve_tx(&mut self, active: &mut Active) -> Result<Batch, Broken> {
        let Active { space, tx, .. } = active;
        let (memory, mut copier) = (space.ram(), space.copier());
        let queue = &mut tx.queue;
        queue.disable_notification(memory)?;
        let mut used = 0;
        while used < TX_BATCH {
            let Some(head) = next_chain(queue, memory, |chain| {
                let packet = Received::parse(memory, &mut copier, chain)?;
                self.streams.receive(self.guest_cid, packet);
                Ok(Some(0))
            })?
            else {
                break;
            };
            queue.add_used(memory, head.index, head.written)?;
            used += 1;
        }
        let interrupt = used > 0 && queue.needs_notification(memory)?;
        Ok(Batch {
            more: used == TX_BATCH,
            interrupt,
        })
    }

    /// Gives packets to the guest.
    fn serve_rx(&mut self, active: &mut Active) -> Result<Batch, Broken> {
        let Active { space, rx, .. } = active;
        let memory = space.ram();
        let queue = &mut rx.queue;
        let mut used = 0;
        // While there is nothing to send, buffers the driver adds are of no interest.
        queue.disable_notification(memory)?;
        while used < RX_BATCH && self.streams.has_work() {
            let Some(head) = next_chain(queue, memory, |chain| {
                let buffer = RxBuffer::parse(memory, chain)?;
                Ok(self.streams.transmit(&buffer))
            })?
            else {
                break;
            };
            queue.add_used(memory, head.index, head.written)?;
            used += 1;
        }
        let interrupt = used > 0 && queue.needs_notification(memory)?;
        Ok(Batch {
            more: used == RX_BATCH,
            interrupt,
        })
    }
}

/// A chain that has been used.
struct Used {
    index: u16,
    written: u32,
}

/// Takes the next chain of a queue and lets `serve` use it; it returns the bytes written, or `None` to leave the chain
/// in the queue. When there is no chain, the driver's notification of the next one is enabled.
fn next_chain<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemoryMmap,
    serve: impl FnOnce(
        virtio_queue::DescriptorChain<&'m GuestMemoryMmap>,
    ) -> Result<Option<u32>, Broken>,
) -> Result<Option<Used>, Broken> {
    let mut next = queue.iter(memory)?.next();
    if next.is_none() {
        if !queue.enable_notification(memory)? {
            return Ok(None);
        }
        // One came in between.
        queue.disable_notification(memory)?;
        next = queue.iter(memory)?.next();
    }
    let Some(chain) = next else {
        return Err(Broken::AvailRing);
    };
    let index = chain.head_index();
    let written = serve(chain)?;
    if written.is_none() {
        queue.go_to_previous_position();
    }
    Ok(written.map(|written| Used { index, written }))
}
