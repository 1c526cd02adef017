//! What the driver has written about a virtqueue. Nothing is checked before the queue is wanted: then it must be right
//! as a whole.

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// The registers of one queue (virtio 1.2, section 4.2.2).
#[derive(Clone, Copy)]
pub(super) struct QueueRegisters {
    /// QueueNumMax: the device's.
    pub(super) max_size: u16,
    /// QueueNum.
    pub(super) size: u32,
    /// QueueReady.
    pub(super) ready: bool,
    /// QueueDesc, QueueDriver, QueueDevice.
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

impl QueueRegisters {
    /// The state after reset.
    pub(super) fn new(max_size: u16) -> QueueRegisters {
        QueueRegisters {
            max_size,
            size: 0,
            ready: false,
            descriptors: 0,
            available: 0,
            used: 0,
        }
    }

    /// The queue, if its size is allowed and its parts are aligned and in guest memory.
    pub(super) fn build(&self, memory: &GuestMemoryMmap, event_idx: bool) -> Option<Queue> {
        let mut queue = Queue::new(self.max_size).ok()?;
        queue.try_set_size(u16::try_from(self.size).ok()?).ok()?;
        queue
            .try_set_desc_table_address(GuestAddress(self.descriptors))
            .ok()?;
        queue
            .try_set_avail_ring_address(GuestAddress(self.available))
            .ok()?;
        queue
            .try_set_used_ring_address(GuestAddress(self.used))
            .ok()?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue.is_valid(memory).then_some(queue)
    }
}

/// Replaces the low or the high half of an address.
pub(super) fn set_half(address: &mut u64, high: bool, value: u32) {
    let (shift, keep) = if high {
        (32, 0xffff_ffff)
    } else {
        (0, 0xffff_ffff << 32)
    };
    *address = *address & keep | u64::from(value) << shift;
}
