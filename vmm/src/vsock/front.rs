//! The front half, and what it shares with the back half.
//!
//! The queues are in one `Mutex<State>`. The back half holds the lock for one bounded batch of work; activation puts
//! the queues in, reset takes them out. So when reset has the lock no batch runs, and when it returns none can run:
//! there are no queues to be had. Every activation and every reset gets a new generation number, by which the back half
//! learns that the connections it knows belong to queues that are gone, even when a new activation has followed before
//! it looked.

use std::borrow::Cow;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::token;
use crate::address_space::AddressSpace;
use crate::virtio::{Activation, ActiveQueue, Interrupt, VirtioDevice};

/// Sizes of the rx, tx and event queue. Linux fills the rx queue with 4 KiB buffers when it finds the device, so a
/// longer queue costs guest memory and start time; it puts 8 buffers into the event queue
/// (net/vmw_vsock/virtio_transport.c).
const QUEUE_SIZES: [u16; 3] = [64, 128, 16];

/// The front half of the vsock device.
pub struct VsockFront {
    /// The configuration space: the guest's CID (virtio 1.2, section 5.10.4).
    guest_cid: [u8; 8],
    link: Arc<Link>,
}

/// What the two halves share.
pub(super) struct Link {
    /// Watches the driver's notifications, `changed`, and the back half's descriptors.
    pub(super) epoll: Arc<Epoll>,
    /// Raised at activation and reset.
    pub(super) changed: EventFd,
    state: Mutex<State>,
}

/// The queues, if the driver has given them.
pub(super) struct State {
    /// Counts activations and resets.
    pub(super) generation: u64,
    /// The device while it is active and not broken.
    pub(super) active: Option<Active>,
}

/// An active device.
pub(super) struct Active {
    /// What the driver's descriptors name.
    pub(super) space: AddressSpace,
    /// Buffers for packets to the driver.
    pub(super) rx: ActiveQueue,
    /// Packets from the driver.
    pub(super) tx: ActiveQueue,
    /// How the driver is told of used buffers.
    pub(super) interrupt: Interrupt,
    /// Not used: no transport reset is ever reported. Kept for as long as the driver believes in it.
    _event: Option<ActiveQueue>,
}

impl Link {
    /// An inactive device.
    pub(super) fn new(epoll: Arc<Epoll>) -> io::Result<Link> {
        let changed = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        epoll.ctl(
            ControlOperation::Add,
            changed.as_raw_fd(),
            EpollEvent::new(EventSet::IN, token::CHANGED),
        )?;
        let state = Mutex::new(State {
            generation: 0,
            active: None,
        });
        Ok(Link {
            epoll,
            changed,
            state,
        })
    }

    /// Waits for the end of a batch, or of an activation or reset.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that change it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the queues out of use.
    pub(super) fn retire(&self, state: &mut State) {
        state.generation += 1;
        if let Some(active) = state.active.take() {
            for queue in [&active.rx, &active.tx] {
                // The transport may hold the event open, so that closing ours does not end the watch. That it is
                // registered makes this succeed.
                let kick = queue.kick.as_raw_fd();
                let _ = self
                    .epoll
                    .ctl(ControlOperation::Delete, kick, EpollEvent::default());
            }
        }
    }

    fn watch(&self, queue: &ActiveQueue, token: u64) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, token);
        self.epoll
            .ctl(ControlOperation::Add, queue.kick.as_raw_fd(), event)
    }
}

impl VsockFront {
    /// The front half of a device whose guest has the CID `guest_cid`.
    pub(super) fn new(guest_cid: u64, link: Arc<Link>) -> VsockFront {
        VsockFront {
            guest_cid: guest_cid.to_le_bytes(),
            link,
        }
    }
}

impl VirtioDevice for VsockFront {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// No socket type is named, which means streams only (virtio 1.2, section 5.10.3).
    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.guest_cid)
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let Activation {
            space,
            queues,
            interrupt,
            features,
        } = activation;
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut queues = queues.into_iter();
        let mut required = |name: &str| {
            let mut active = queues
                .next()
                .flatten()
                .ok_or_else(|| invalid(name, "not ready"))?;
            active.queue.set_event_idx(event_idx);
            let valid = active.queue.is_valid(space.ram());
            valid
                .then_some(active)
                .ok_or_else(|| invalid(name, "outside guest memory"))
        };
        let (rx, tx) = (required("rx")?, required("tx")?);
        let event = queues.next().flatten();

        let mut state = self.link.lock();
        self.link.retire(&mut state);
        self.link.watch(&rx, token::RX_KICK)?;
        if let Err(error) = self.link.watch(&tx, token::TX_KICK) {
            let kick = rx.kick.as_raw_fd();
            let _ = self
                .link
                .epoll
                .ctl(ControlOperation::Delete, kick, EpollEvent::default());
            return Err(error);
        }
        state.active = Some(Active {
            space,
            rx,
            tx,
            interrupt,
            _event: event,
        });
        self.link.changed.write(1)
    }

    fn reset(&mut self) {
        self.link.retire(&mut self.link.lock());
        // Fails only when the counter is full, and then the event is already pending.
        let _ = self.link.changed.write(1);
    }
}

fn invalid(queue: &str, what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("vsock: the {queue} queue is {what}"),
    )
}
