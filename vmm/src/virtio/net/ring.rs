//! What the two queues have in common: chains are taken from the available ring, and put into the used ring so that the
//! driver sees the chains of one packet all at once (a driver that reads `num_buffers` does not wait for the others).

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::chain::{self, Buffers};
use super::Broken;
use crate::copier::Copier;

/// How a turn on a queue ended.
#[derive(Clone, Copy, Default)]
pub(super) struct Batch {
    /// The budget was used up.
    pub(super) more: bool,
    /// The driver wants an interrupt for the used chains.
    pub(super) interrupt: bool,
}

/// A chain that the driver has made available.
pub(super) struct Chain<'c, 'm> {
    pub(super) head: u16,
    pub(super) buffers: Buffers<'c, 'm>,
}

/// Takes the next chain; `copier` is for what the device is to read. When there is none and `ask`, the driver notifies
/// of the next one.
pub(super) fn next<'c, 'm: 'c>(
    queue: &mut Queue,
    memory: &'m GuestMemoryMmap,
    copier: &'c mut Copier,
    ask: bool,
) -> Result<Option<Chain<'c, 'm>>, Broken> {
    let mut next = queue.iter(memory)?.next();
    if next.is_none() && ask && queue.enable_notification(memory)? {
        // One came in between.
        queue.disable_notification(memory)?;
        next = queue.iter(memory)?.next();
    }
    let Some(chain) = next else {
        return Ok(None);
    };
    let head = chain.head_index();
    let buffers = chain::buffers(memory, copier, chain, queue.size())?;
    Ok(Some(Chain { head, buffers }))
}

/// Leaves the last `count` chains taken to be taken again. A notification that was asked for still comes for chains
/// behind them.
pub(super) fn put_back(queue: &mut Queue, count: usize) {
    for _ in 0..count {
        queue.go_to_previous_position();
    }
}

/// Returns chains, given by head and bytes written, to the driver.
pub(super) fn publish(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    used: &[(u16, u32)],
) -> Result<(), Broken> {
    // `struct virtq_used` (virtio 1.2, section 2.7.8): flags, index, ring. That it lies in guest memory was checked at
    // activation.
    let ring = queue.used_ring();
    let mut next = queue.next_used();
    for &(head, written) in used {
        let element = u64::from(head) | u64::from(written) << 32;
        let slot = u64::from(next % queue.size());
        memory.write_obj(element.to_le(), GuestAddress(ring + 4 + slot * 8))?;
        next = next.wrapping_add(1);
    }
    memory.store(next.to_le(), GuestAddress(ring + 2), Ordering::Release)?;
    queue.set_next_used(next);
    Ok(())
}

/// Whether the driver wants an interrupt for the chains returned since the used index was `before`.
pub(super) fn wants_interrupt(
    queue: &Queue,
    memory: &GuestMemoryMmap,
    before: u16,
) -> Result<bool, Broken> {
    let next = queue.next_used();
    if next == before || !queue.event_idx_enabled() {
        return Ok(next != before);
    }
    // The index is written before the driver's wish is read.
    fence(Ordering::SeqCst);
    // `used_event` is behind the available ring (virtio 1.2, section 2.7.10).
    let at = queue.avail_ring() + 4 + 2 * u64::from(queue.size());
    let event = u16::from_le(memory.load(GuestAddress(at), Ordering::Relaxed)?);
    Ok(next.wrapping_sub(event).wrapping_sub(1) < next.wrapping_sub(before))
}
