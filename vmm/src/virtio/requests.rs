//! Devices whose requests the event loop serves, from one queue: each says what it does with a request, the rest is
//! here.
//!
//! The queue is shared with the transport's front half by a mutex that the loop holds for one batch.

use std::io;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{self, Buffers};
use super::{Activation, Broken, Interrupt, VirtioDevice};
use crate::address_space::AddressSpace;
use crate::copier::Copier;

/// What such a device is.
pub(crate) trait Requests: Send {
    /// Device type (virtio 1.2, section 5).
    const DEVICE_TYPE: u32;
    /// Feature bits the device offers.
    const FEATURES: u64;
    /// Largest size of each virtqueue.
    const QUEUE_SIZES: &'static [u16];
    /// The queue that requests come by. Nothing is taken from the others.
    const QUEUE: usize;
    /// Maximum number of requests before the event loop sees to its other work.
    const BATCH: usize;

    /// Serves a request; how many bytes it has written.
    fn serve(buffers: &Buffers<'_, '_>) -> Result<u32, Broken>;
}

/// The front half.
pub(crate) struct Front<R>(Arc<Mutex<Option<Active>>>, PhantomData<R>);

/// The back half: what the event loop holds.
pub(crate) struct Work<R>(Arc<Mutex<Option<Active>>>, PhantomData<R>);

/// The device while the driver has it running.
struct Active {
    space: AddressSpace,
    queue: Queue,
    kick: EventFd,
    interrupt: Interrupt,
}

/// Both halves of a new device.
pub(crate) fn device<R: Requests>() -> (Front<R>, Work<R>) {
    let active = Arc::new(Mutex::new(None));
    (
        Front(active.clone(), PhantomData),
        Work(active, PhantomData),
    )
}

impl<R: Requests> VirtioDevice for Front<R> {
    fn device_type(&self) -> u32 {
        R::DEVICE_TYPE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        R::QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        R::FEATURES
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let Activation {
            space,
            queues,
            interrupt,
            ..
        } = activation;
        let queue = queues.into_iter().nth(R::QUEUE).flatten();
        let queue = queue.ok_or_else(|| io::Error::other("the request queue is not ready"))?;
        // A notification from before this moment found no device.
        queue.kick.write(1)?;
        *lock(&self.0) = Some(Active {
            space,
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

impl<R: Requests> Work<R> {
    /// Serves a batch of requests. Must be called when the queue's event is raised; raises it again when more are left.
    pub(crate) fn process(&self) {
        let mut slot = lock(&self.0);
        if let Some(active) = slot.as_mut()
            && let Err(broken) = active.process::<R>()
        {
            active.interrupt.needs_reset(broken);
            *slot = None;
        }
    }
}

impl Active {
    fn process<R: Requests>(&mut self) -> Result<(), Broken> {
        let memory = self.space.ram();
        // These devices read nothing.
        let mut nothing = Copier::new(None);
        let mut served = 0;
        while let Some(chain) = self.queue.iter(memory)?.next() {
            let head = chain.head_index();
            let buffers = chain::buffers(memory, &mut nothing, chain, self.queue.size())?;
            let written = R::serve(&buffers)?;
            self.queue.add_used(memory, head, written)?;
            served += 1;
            if served == R::BATCH {
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
