//! The front half: configuration, activation, reset.

use std::borrow::Cow;
use std::io;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_MRG_RXBUF,
};

use super::rx::Rx;
use super::tx::Tx;
use super::{Active, FEATURES, QUEUE_SIZES, State, TX, lock};
use crate::virtio::{Activation, ActiveQueue, VirtioDevice};

/// The front half of a network device.
pub(crate) struct NetFront(pub(super) Arc<Mutex<State>>);

impl VirtioDevice for NetFront {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn is_served_by_vcpus(&self, queue: u32) -> bool {
        queue == TX
    }

    fn notified(&mut self, queue: u32) -> bool {
        match self.0.try_lock() {
            Ok(mut state) if queue == TX => {
                state.turn(Active::send_frames);
                true
            }
            _ => false,
        }
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    /// The configuration space is the address; what follows belongs to features that are not offered (virtio 1.2,
    /// section 5.1.4). It changes with the tap.
    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Owned(lock(&self.0).mac.to_vec())
    }

    fn config_generation(&self) -> u32 {
        lock(&self.0).taps
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let Activation {
            space,
            queues,
            interrupt,
            features,
        } = activation;
        let mut queues = queues.into_iter();
        let mut required = || {
            let queue: Option<ActiveQueue> = queues.next().flatten();
            queue.ok_or_else(|| io::Error::other("a queue is not ready"))
        };
        let (rx, tx) = (required()?, required()?);
        let offloads = offloads(features)?;
        let mut state = lock(&self.0);
        let tap = state.tap.as_mut();
        let tap = tap.ok_or_else(|| io::Error::other("the device has no tap"))?;
        tap.set_offloads(offloads).map_err(io::Error::other)?;
        // A notification from before this moment found no device.
        tx.kick.write(1)?;
        state.active = Some(Active {
            rx: Rx::new(rx.queue, features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0),
            tx: Tx::new(tx.queue, space.copier()),
            space,
            again: tx.kick,
            interrupt,
        });
        Ok(())
    }

    fn reset(&mut self) {
        lock(&self.0).active = None;
    }
}

/// What the host's kernel may leave to the guest's, by what the driver takes.
fn offloads(features: u64) -> io::Result<libc::c_uint> {
    let known = [
        (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
        (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
        (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    ];
    let offloads = known
        .into_iter()
        .filter(|(feature, _)| features & 1 << feature != 0)
        .fold(0, |all, (_, offload)| all | offload);
    // virtio 1.2, section 5.1.3.1
    if offloads != 0 && offloads & libc::TUN_F_CSUM == 0 {
        return Err(io::Error::other("segmentation without checksums"));
    }
    Ok(offloads)
}
