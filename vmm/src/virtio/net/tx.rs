//! Packets from the driver to the tap.

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestMemoryMmap, VolatileSlice};

use super::ring::{self, Batch};
use super::{Broken, HEADER, PACKET_MAX, Tap};
use crate::copier::Copier;
use crate::sys::Outgoing;

/// Maximum number of packets in a turn.
pub(super) const BATCH: usize = 64;

/// The tx queue.
pub(super) struct Tx {
    queue: Queue,
    copier: Copier,
}

impl Tx {
    /// `copier` is for what can be sent besides RAM.
    pub(super) fn new(queue: Queue, copier: Copier) -> Tx {
        Tx { queue, copier }
    }

    /// Sends packets until the queue is empty, the tap is full, the budget is used up or one is longer than `longest`.
    pub(super) fn send(
        &mut self,
        memory: &GuestMemoryMmap,
        tap: &mut Tap,
        longest: usize,
    ) -> Result<Batch, Broken> {
        let Tx { queue, copier } = self;
        let before = queue.next_used();
        let mut sent = 0;
        let mut too_long = false;
        queue.disable_notification(memory)?;
        while sent < BATCH && tap.writable {
            let Some(chain) = ring::next(queue, memory, copier, true)? else {
                break;
            };
            let pieces = &chain.buffers.readable;
            let length: usize = pieces.iter().map(VolatileSlice::len).sum();
            if !chain.buffers.writable.is_empty() {
                return Err(Broken::Direction);
            }
            if length < HEADER {
                return Err(Broken::Length);
            }
            too_long = length > longest && length <= PACKET_MAX;
            if too_long {
                ring::put_back(queue, 1);
                break;
            }
            if length <= PACKET_MAX {
                tap.write(&Outgoing::from_guest(pieces, length));
                if !tap.writable {
                    ring::put_back(queue, 1);
                    break;
                }
            }
            ring::publish(queue, memory, &[(chain.head, 0)])?;
            sent += 1;
        }
        Ok(Batch {
            more: sent == BATCH || too_long,
            interrupt: ring::wants_interrupt(queue, memory, before)?,
        })
    }
}
