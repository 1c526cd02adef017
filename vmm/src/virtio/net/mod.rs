//! virtio-net (virtio 1.2, section 5.1) on a tap device of the host, with one pair of queues.
//!
//! ```text
//!  driver ── tx ──> front half (vCPU) ───── writev ──> tap
//!         <── rx ── back half (event loop) <── readv ──
//!         <── interrupt, registers ── front half
//! ```
//! A packet goes between guest memory and the tap as it is, with its `virtio_net_hdr` in front, which the host's kernel
//! reads and writes: checksums and segmentation are the two kernels' affair.
//!
//! Packets of one frame are sent in the exit that the driver's notification is, by the vCPU's own thread, unless the
//! event loop is at the queues: a vCPU never waits for that. Longer ones are part of a stream. The driver adds more of
//! them while it is left alone, so the event loop sends them, many in a turn.
//!
//! Invariants: queues and tap are used under one mutex, which is held for one bounded turn, so that after a reset no
//! turn touches the queues; a turn leaves work behind only if something will start the next turn: the driver's
//! notification, the tap's (edge-triggered) event, or the tx queue's own event. That is raised by a turn that has used
//! up its budget or leaves a packet to the event loop, and by a notification that finds the mutex taken.
//!
//! Nothing is lost because room ran out but in the tap's own queue: without rx buffers the tap is not read, and when the
//! tap takes no more the tx queue is left alone until it does. What has no place to go is dropped: packets that the tap
//! refuses, and received packets that the driver's buffers cannot hold.
//!
//! A device whose tap has been taken away stays in its slot, does nothing, and may get another one. The driver is to be
//! unbound in between, for the address is another one then.

mod front;
mod ring;
mod rx;
mod sys;
mod tap;
#[cfg(test)]
mod tests;
mod tx;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::EventFd;

use super::{Broken, Interrupt};
use crate::address_space::AddressSpace;
use front::NetFront;
use ring::Batch;
use rx::Rx;
use tx::Tx;

pub(crate) use tap::Tap;

/// An Ethernet address.
pub type MacAddress = [u8; 6];

/// Number of the tx queue (virtio 1.2, section 5.1.2).
const TX: u32 = 1;

/// Sizes of the rx and the tx queue.
const QUEUE_SIZES: [u16; 2] = [256, 256];

/// Size of the header in front of each packet, bytes (virtio 1.2, section 5.1.6: `struct virtio_net_hdr` with
/// `num_buffers`).
const HEADER: usize = 12;

/// Longest packet with its header, bytes. A segmentation offload packet has at most 65550 bytes (virtio 1.2, section
/// 5.1.6.3.1); 12 more leave room for VLAN tags.
const PACKET_MAX: usize = HEADER + 65562;

/// Longest packet of one frame with its header, bytes: an Ethernet header, a VLAN tag and 1500 bytes.
const FRAME_MAX: usize = HEADER + 1518;

/// What the device offers. `VIRTIO_NET_F_MTU` is not among it: it would bound the MTU that the guest may set, at the
/// driver's start; nor is `VIRTIO_NET_F_STATUS`: the link is up from the device's first moment to its last.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6;

/// Why a slot gets no tap.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The descriptor is a tap of the wrong kind.
    #[error("the tap's flags are {0:#x} and not IFF_TAP|IFF_NO_PI|IFF_VNET_HDR")]
    Flags(libc::c_short),
    /// A system call on the descriptor failed.
    #[error("{call}")]
    System {
        /// Which one.
        call: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// The back half: what the event loop holds.
pub(crate) struct Net(Arc<Mutex<State>>);

/// What the two halves share.
struct State {
    mac: MacAddress,
    tap: Option<Tap>,
    /// Number of taps that it has had.
    taps: u32,
    /// The device while it has a tap, and the driver has it running and keeps the rules.
    active: Option<Active>,
}

/// A running device.
struct Active {
    space: AddressSpace,
    rx: Rx,
    tx: Tx,
    /// The tx queue's event.
    again: EventFd,
    interrupt: Interrupt,
}

impl Net {
    /// Both halves of a device.
    pub(crate) fn new(mac: MacAddress, tap: Tap) -> (NetFront, Net) {
        let state = Arc::new(Mutex::new(State {
            mac,
            tap: Some(tap),
            taps: 1,
            active: None,
        }));
        (NetFront(Arc::clone(&state)), Net(state))
    }

    /// Whether it has no tap.
    pub(crate) fn is_free(&self) -> bool {
        lock(&self.0).tap.is_none()
    }

    /// Gives it a tap in place of one that was taken away.
    pub(crate) fn attach(&self, mac: MacAddress, tap: Tap) {
        let mut state = lock(&self.0);
        state.mac = mac;
        state.tap = Some(tap);
        state.taps = state.taps.wrapping_add(1);
    }

    /// Takes its tap away, whatever the driver does with it.
    pub(crate) fn detach(&self) {
        let mut state = lock(&self.0);
        state.active = None;
        state.tap = None;
    }

    /// Must be called when one of the queues' events is raised.
    pub(crate) fn kicked(&self) {
        lock(&self.0).turn(Active::send_and_receive);
    }

    /// Must be called when the tap has an event.
    pub(crate) fn tap_ready(&self) {
        let mut state = lock(&self.0);
        let Some(tap) = &mut state.tap else { return };
        let packets_wait = !tap.writable;
        tap.ready();
        match packets_wait {
            true => state.turn(Active::send_and_receive),
            false => state.turn(Active::receive),
        }
    }

    /// Sends what the tx queue holds. Must be called when the guest has ended.
    pub(crate) fn drain(&self) {
        for _ in 0..usize::from(QUEUE_SIZES[1]).div_ceil(tx::BATCH) {
            self.kicked();
        }
    }
}

impl State {
    /// A turn of bounded work on queues.
    fn turn(&mut self, work: impl FnOnce(&mut Active, &mut Tap) -> Result<Batch, Broken>) {
        let (Some(active), Some(tap)) = (&mut self.active, &mut self.tap) else {
            return;
        };
        match work(active, tap) {
            Ok(Batch { more, interrupt }) => {
                if interrupt {
                    active.interrupt.signal_used();
                }
                if more {
                    // Fails only when the counter is full: then the event is pending.
                    let _ = active.again.write(1);
                }
            }
            Err(broken) => {
                active.interrupt.needs_reset(broken);
                self.active = None;
            }
        }
    }
}

impl Active {
    fn send(&mut self, tap: &mut Tap) -> Result<Batch, Broken> {
        self.tx.send(self.space.ram(), tap, PACKET_MAX)
    }

    fn send_frames(&mut self, tap: &mut Tap) -> Result<Batch, Broken> {
        self.tx.send(self.space.ram(), tap, FRAME_MAX)
    }

    fn receive(&mut self, tap: &mut Tap) -> Result<Batch, Broken> {
        self.rx.receive(self.space.ram(), tap)
    }

    fn send_and_receive(&mut self, tap: &mut Tap) -> Result<Batch, Broken> {
        let sent = self.send(tap)?;
        let received = self.receive(tap)?;
        Ok(Batch {
            more: sent.more || received.more,
            interrupt: sent.interrupt || received.interrupt,
        })
    }
}

/// A thread that panicked left the device either whole or not; both are safe to go on with.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
