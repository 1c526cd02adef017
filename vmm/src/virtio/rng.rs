//! virtio-rng (virtio 1.2, section 5.4): random bytes of the host's kernel.
//!
//! The device works in the event loop. The queue is shared with the transport's front half by a mutex that the loop holds for one batch.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::{Activation, Interrupt, VirtioDevice, chain};
use crate::sys;

/// The driver keeps one request in flight.
const QUEUE_SIZES: [u16; 1] = [8];

/// Most bytes for one request; the driver asks again for more.
const REQUEST_LIMIT: usize = 256;

/// Most requests before the event loop sees to its other work.
const BATCH: usize = 16;

/// The front half.
pub(crate) struct Rng(Arc<Mutex<Option<Active>>>);

/// The back half: what the event loop holds.
pub(crate) struct RngWork(Arc<Mutex<Option<Active>>>);

/// The device while the driver has it running.
struct Active {
    memory: Arc<GuestMemoryMmap>,
    queue: Queue,
    kick: EventFd,
    interrupt: Interrupt,
}

impl Rng {
    /// Both halves of a new device.
    pub(crate) fn new() -> (Rng, RngWork) {
        let active = Arc::new(Mutex::new(None));
        (Rng(active.clone()), RngWork(active))
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let Activation {
            memory,
            queues,
            interrupt,
            ..
        } = activation;
        let queue = queues.into_iter().next().flatten();
        let queue = queue.ok_or_else(|| io::Error::other("the request queue is not ready"))?;
        // A notification from before this moment found no device.
        queue.kick.write(1)?;
        *lock(&self.0) = Some(Active {
            memory,
            queue: queue.queue,
            kick: queue.kick,
            interrupt,
        });
        Ok(())
    }

    fn reset(&mut self) {
        *lock(&self.0) = None;
    }
}

impl RngWork {
    /// Serves a batch of requests. To be called when the queue's event is raised; raises it again when more are left.
    pub(crate) fn process(&self) {
        let mut slot = lock(&self.0);
        if let Some(active) = slot.as_mut()
            && let Err(error) = active.process()
        {
            let _: Broken = error;
            active.interrupt.needs_reset();
            *slot = None;
        }
    }
}

/// The driver broke the rules of the queue.
struct Broken;

impl Active {
    fn process(&mut self) -> Result<(), Broken> {
        let memory = &*self.memory;
        let mut served = 0;
        while let Some(chain) = self.queue.iter(memory).map_err(|_| Broken)?.next() {
            let head = chain.head_index();
            let buffers = chain::buffers(memory, chain, self.queue.size()).map_err(|_| Broken)?;
            if !buffers.readable.is_empty() {
                return Err(Broken);
            }
            let mut random = [0; REQUEST_LIMIT];
            let wanted: usize = buffers.writable.iter().map(|slice| slice.len()).sum();
            let wanted = wanted.min(REQUEST_LIMIT);
            let filled = sys::random(&mut random[..wanted]).unwrap_or(0);
            let mut rest = &random[..filled];
            for slice in &buffers.writable {
                let (part, behind) = rest.split_at(slice.len().min(rest.len()));
                slice.copy_from(part);
                rest = behind;
            }
            let filled = u32::try_from(filled).map_err(|_| Broken)?;
            self.queue
                .add_used(memory, head, filled)
                .map_err(|_| Broken)?;
            served += 1;
            if served == BATCH {
                // Fails only when the counter is full: then the event is pending.
                let _ = self.kick.write(1);
                break;
            }
        }
        if served > 0 {
            self.interrupt.signal_used();
        }
        Ok(())
    }
}

/// A thread that panicked left the device either whole or not; both are safe to go on with.
fn lock(slot: &Mutex<Option<Active>>) -> MutexGuard<'_, Option<Active>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "rng_tests.rs"]
mod tests;
