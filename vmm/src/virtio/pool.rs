//! Threads that serve the requests of a device's queues.
//!
//! ```text
//!            ┌──────────── nothing in the queues ────────────┐
//!            v                                               │
//! start ─> waits ── kick ──> takes a request ──> serves it ──> returns it ─┐
//!                                  ^                                       │
//!                                  └───────────────────────────────────────┘
//! ```
//! Invariants: the queues are touched under the mutex only, which is held while a request is taken or returned and
//! never while one is served; a slow request holds up others only when all of the [`WORKERS`] serve one; a broken queue
//! is never touched again; after a reset no worker touches guest memory. The workers are there before the driver has
//! the device running, and wait.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Activation, Broken, Interrupt, chain};
use crate::address_space::AddressSpace;
use crate::copier::Copier;
use crate::threads::{Thread, Threads};

/// Number of worker threads of a device.
pub(crate) const WORKERS: u8 = 4;

/// Stack of a worker thread, bytes.
const STACK: usize = 256 << 10;

/// What answers requests.
pub trait RequestServer: Send + Sync + 'static {
    /// Serves one request and returns how many bytes of `reply` are written; 0 means no reply.
    fn serve(&self, request: &[VolatileSlice<'_>], reply: &[VolatileSlice<'_>]) -> usize;
}

/// The back half: what the workers share.
pub(crate) struct Pool<S> {
    space: AddressSpace,
    server: Arc<S>,
    /// Readiness of the queues' events, edge-triggered: one notification wakes one worker.
    ready: Epoll,
    /// Raised to get another worker to look at the queues.
    more: EventFd,
    state: Mutex<State>,
    /// Told when the last worker has returned its request, while the device is not running.
    at_rest: Condvar,
}

/// What the mutex protects.
#[derive(Default)]
struct State {
    /// The device while the driver has it running and keeps the rules.
    active: Option<Active>,
    /// Workers that wait, or are about to.
    idle: usize,
    /// Workers that serve a request.
    busy: usize,
}

/// A running device.
struct Active {
    /// The most urgent first.
    queues: Vec<Queue>,
    interrupt: Arc<Interrupt>,
}

/// A request that a worker has taken.
struct Taken<'a> {
    queue: usize,
    head: u16,
    buffers: chain::Buffers<'a, 'a>,
}

impl<S: RequestServer> Pool<S> {
    /// A pool without workers. What descriptors name is in `space`.
    pub(crate) fn new(space: AddressSpace, server: Arc<S>) -> io::Result<Pool<S>> {
        let pool = Pool {
            space,
            server,
            ready: Epoll::new()?,
            more: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            state: Mutex::default(),
            at_rest: Condvar::new(),
        };
        pool.watch(&pool.more)?;
        Ok(pool)
    }

    /// Has the events of the queues' notifications wake workers. They may be raised while the device is not running.
    pub(crate) fn watch_queues(&self, kicks: &[EventFd]) -> io::Result<()> {
        kicks.iter().try_for_each(|kick| self.watch(kick))
    }

    fn watch(&self, kick: &EventFd) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        self.ready
            .ctl(ControlOperation::Add, kick.as_raw_fd(), event)
    }

    /// Starts the workers.
    pub(crate) fn start(
        self: &Arc<Self>,
        threads: &Threads,
        thread: impl Fn(u8) -> Thread,
    ) -> io::Result<()> {
        for number in 0..WORKERS {
            let pool = Arc::clone(self);
            threads.start(thread(number), STACK, move || pool.work())?;
        }
        Ok(())
    }

    /// The driver has the device running: serves its first `count` queues, the most urgent first.
    pub(crate) fn activate(&self, activation: Activation, count: usize) -> io::Result<()> {
        let queues = activation.queues.into_iter().flatten();
        let queues: Vec<_> = queues.map(|active| active.queue).collect();
        if queues.len() != count {
            return Err(io::Error::other("a queue is not ready"));
        }
        self.lock().active = Some(Active {
            queues,
            interrupt: Arc::new(activation.interrupt),
        });
        // A notification from before this moment found no device.
        self.wake();
        Ok(())
    }

    /// The driver has reset the device. Returns when no worker touches guest memory any more.
    pub(crate) fn reset(&self) {
        let mut state = self.lock();
        state.active = None;
        drop(
            self.at_rest
                .wait_while(state, |state| state.busy > 0)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// A worker's life.
    fn work(&self) {
        let mut copier = self.space.copier();
        loop {
            self.serve_all(&mut copier);
            // An interrupted wait is one that found nothing.
            let _ = self.ready.wait(-1, &mut [EpollEvent::default()]);
            self.lock().idle -= 1;
        }
    }

    /// What a worker does when it is woken, for a caller without workers.
    #[cfg(fuzzing)]
    pub(crate) fn turn(&self) {
        self.serve_all(&mut self.space.copier());
        self.lock().idle -= 1;
    }

    /// Serves requests until there is none. From then on the worker counts as idle.
    fn serve_all(&self, copier: &mut Copier) {
        while let Some(taken) = self.next(copier) {
            self.serve(&taken);
        }
    }

    /// A request, if there is one.
    fn next<'a>(&'a self, copier: &'a mut Copier) -> Option<Taken<'a>> {
        let mut state = self.lock();
        let taken = self.take(&mut state, copier).unwrap_or_else(|broken| {
            state.break_down(broken);
            None
        });
        // In the same critical section as the look at the queues: who finds a request later finds this worker.
        match taken {
            Some(_) => state.busy += 1,
            None => state.idle += 1,
        }
        taken
    }

    fn serve(&self, taken: &Taken<'_>) {
        let written = (self.server).serve(&taken.buffers.readable, &taken.buffers.writable);
        let mut state = self.lock();
        state.busy -= 1;
        if state.active.is_none() && state.busy == 0 {
            self.at_rest.notify_all();
        }
        let interrupt = self
            .give_back(&mut state, taken, written)
            .unwrap_or_else(|broken| {
                state.break_down(broken);
                None
            });
        drop(state);
        if let Some(interrupt) = interrupt {
            interrupt.signal_used();
        }
    }

    /// Takes a request off the first queue that has one, and sees that somebody is there for the next.
    fn take<'a>(
        &'a self,
        state: &mut State,
        copier: &'a mut Copier,
    ) -> Result<Option<Taken<'a>>, Broken> {
        let memory = self.space.ram();
        let idle = state.idle;
        let queues = state
            .active
            .iter_mut()
            .flat_map(|active| &mut active.queues);
        for (index, queue) in queues.enumerate() {
            loop {
                let next = queue.iter(memory)?.next();
                // The driver is to notify of what it adds from here on, whether this worker is free then or another
                // one.
                let more = queue.enable_notification(memory)?;
                if let Some(chain) = next {
                    let head = chain.head_index();
                    let buffers = chain::buffers(memory, copier, chain, queue.size())?;
                    if more && idle > 0 {
                        self.wake();
                    }
                    return Ok(Some(Taken {
                        queue: index,
                        head,
                        buffers,
                    }));
                }
                if !more {
                    break;
                }
            }
        }
        Ok(None)
    }

    /// Returns a request to the driver, and the interrupt if the driver wants one.
    fn give_back(
        &self,
        state: &mut State,
        taken: &Taken<'_>,
        written: usize,
    ) -> Result<Option<Arc<Interrupt>>, Broken> {
        let Some(active) = &mut state.active else {
            return Ok(None);
        };
        let Some(queue) = active.queues.get_mut(taken.queue) else {
            return Ok(None);
        };
        let written = u32::try_from(written).map_err(|_| Broken::Length)?;
        let memory = self.space.ram();
        queue.add_used(memory, taken.head, written)?;
        let wanted = queue.needs_notification(memory)?;
        Ok(wanted.then(|| Arc::clone(&active.interrupt)))
    }

    fn wake(&self) {
        // Fails only when the counter is full: then the event is pending.
        let _ = self.more.write(1);
    }

    /// A worker that panicked left the queues as they were before or after one operation.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The driver has broken the rules: nothing is done until it has reset the device.
    fn break_down(&mut self, broken: Broken) {
        if let Some(active) = self.active.take() {
            active.interrupt.needs_reset(broken);
        }
    }
}
