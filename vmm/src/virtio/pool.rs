//! Threads that serve the requests of a device's queues.
//!
//! ```text
//!            ┌──────────── nothing in the queues ────────────┐
//!            v                                               │
//! start ─> waits ── kick ──> takes a request ──> serves it ──> returns it ─┐
//!            │                     ^                                       │
//!            └─ stop ─> ends       └───────────────────────────────────────┘
//! ```
//! Invariants: the queues are touched under the mutex only, which is held while a request is taken or returned and
//! never while one is served; while fewer than [`MAX_WORKERS`] threads exist, one of them is free for the next request,
//! so that a slow request does not hold up others; a broken queue is never touched again; after a reset no worker
//! exists.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{io, thread};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Activation, Broken, Interrupt, chain};
use crate::address_space::AddressSpace;
use crate::copier::Copier;
use crate::fault::Fault;

/// Maximum number of worker threads.
pub(crate) const MAX_WORKERS: usize = 4;

/// Stack of a worker thread, bytes.
const STACK: usize = 256 << 10;

/// What answers requests.
pub trait RequestServer: Send + Sync + 'static {
    /// Prepares a thread for calls of [`RequestServer::serve`]. Most servers need nothing.
    ///
    /// # Errors
    /// The thread cannot serve.
    fn enter_worker_thread(&self) -> io::Result<()> {
        Ok(())
    }

    /// Serves one request and returns how many bytes of `reply` are written; 0 means no reply.
    fn serve(&self, request: &[VolatileSlice<'_>], reply: &[VolatileSlice<'_>]) -> usize;
}

/// The back half: what the workers share while the driver has the device running.
pub(crate) struct Pool<S> {
    /// What the threads' names begin with.
    name: &'static str,
    space: AddressSpace,
    server: Arc<S>,
    interrupt: Interrupt,
    /// Readiness of the queues' events, edge-triggered: one notification wakes one worker. And of `stop`, which wakes
    /// all.
    ready: Epoll,
    /// Raised to get another worker to look at the queues.
    more: EventFd,
    stop: EventFd,
    state: Mutex<State>,
}

/// What the mutex protects.
struct State {
    /// The queues, with the most urgent first. None after one has broken.
    queues: Vec<Queue>,
    /// The queues' events stay open while `ready` watches them.
    _kicks: Vec<EventFd>,
    workers: Vec<thread::JoinHandle<()>>,
    /// Workers that wait, or are about to.
    idle: usize,
    /// No worker takes a request or starts another worker any more.
    stopping: bool,
}

/// A request that a worker has taken.
struct Taken<'a> {
    queue: usize,
    head: u16,
    buffers: chain::Buffers<'a, 'a>,
}

impl<S: RequestServer> Pool<S> {
    /// Starts serving `count` queues, the most urgent first. Threads are called `name` and a number.
    pub(crate) fn start(
        name: &'static str,
        activation: Activation,
        count: usize,
        server: Arc<S>,
    ) -> io::Result<Arc<Pool<S>>> {
        let pool = Arc::new(Pool::new(name, activation, count, server)?);
        Pool::add_worker(&pool, &mut pool.lock())?;
        Ok(pool)
    }

    fn new(
        name: &'static str,
        activation: Activation,
        count: usize,
        server: Arc<S>,
    ) -> io::Result<Pool<S>> {
        let Activation {
            space,
            queues,
            interrupt,
            ..
        } = activation;
        let (queues, kicks): (Vec<_>, Vec<_>) = queues
            .into_iter()
            .flatten()
            .map(|active| (active.queue, active.kick))
            .unzip();
        if queues.len() != count {
            return Err(io::Error::other("a queue is not ready"));
        }
        let ready = Epoll::new()?;
        let more = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        let stop = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        let watch = |event: &EventFd, set| {
            ready.ctl(
                ControlOperation::Add,
                event.as_raw_fd(),
                EpollEvent::new(set, 0),
            )
        };
        for kick in kicks.iter().chain([&more]) {
            watch(kick, EventSet::IN | EventSet::EDGE_TRIGGERED)?;
        }
        watch(&stop, EventSet::IN)?;
        let state = State {
            queues,
            _kicks: kicks,
            workers: Vec::new(),
            idle: 0,
            stopping: false,
        };
        Ok(Pool {
            name,
            space,
            server,
            interrupt,
            ready,
            more,
            stop,
            state: Mutex::new(state),
        })
    }

    /// Starts one more worker. It looks at the queues before it waits.
    fn add_worker(pool: &Arc<Pool<S>>, state: &mut State) -> io::Result<()> {
        let name = format!("{}{}", pool.name, state.workers.len());
        let worker = pool.clone();
        let thread = thread::Builder::new()
            .name(name)
            .stack_size(STACK)
            .spawn(move || worker.work())?;
        state.workers.push(thread);
        Ok(())
    }

    /// Ends all workers. Returns when none touches guest memory any more.
    pub(crate) fn stop(&self) {
        let workers = {
            let mut state = self.lock();
            state.stopping = true;
            std::mem::take(&mut state.workers)
        };
        // Fails only when the counter is full: then the event is pending.
        let _ = self.stop.write(1);
        for worker in workers {
            // A worker that panicked has ended too.
            let _ = worker.join();
        }
    }

    /// A worker's life.
    fn work(self: Arc<Self>) {
        if let Err(error) = self.server.enter_worker_thread() {
            self.break_down(&mut self.lock(), Fault::Thread(error));
            return;
        }
        let mut copier = self.space.copier();
        while let Some(taken) = self.next(&mut copier) {
            match taken {
                Some(taken) => self.serve(&taken),
                None => self.wait(),
            }
        }
    }

    /// A request, or nothing when there is none, or the end.
    #[allow(clippy::option_option, reason = "nothing to do now is not the end")]
    fn next<'a>(self: &'a Arc<Self>, copier: &'a mut Copier) -> Option<Option<Taken<'a>>> {
        let mut state = self.lock();
        if state.stopping {
            return None;
        }
        let taken = self.take(&mut state, copier).unwrap_or_else(|broken| {
            self.break_down(&mut state, broken.into());
            None
        });
        // In the same critical section as the look at the queues: who finds a request later finds this worker.
        state.idle += usize::from(taken.is_none());
        Some(taken)
    }

    fn serve(self: &Arc<Self>, taken: &Taken<'_>) {
        let Taken {
            queue,
            head,
            buffers,
        } = taken;
        let written = self.server.serve(&buffers.readable, &buffers.writable);
        let signal = match self.give_back(&mut self.lock(), *queue, *head, written) {
            Ok(signal) => signal,
            Err(broken) => return self.break_down(&mut self.lock(), broken.into()),
        };
        if signal {
            self.interrupt.signal_used();
        }
    }

    /// Takes a request off the first queue that has one, and sees that somebody is there for the next.
    fn take<'a>(
        self: &'a Arc<Self>,
        state: &mut State,
        copier: &'a mut Copier,
    ) -> Result<Option<Taken<'a>>, Broken> {
        let memory = self.space.ram();
        for index in 0..state.queues.len() {
            let queue = &mut state.queues[index];
            loop {
                let next = queue.iter(memory)?.next();
                // The driver is to notify of what it adds from here on, whether this worker is free then or another
                // one.
                let more = queue.enable_notification(memory)?;
                if let Some(chain) = next {
                    let head = chain.head_index();
                    let buffers = chain::buffers(memory, copier, chain, queue.size())?;
                    self.relieve(state, more);
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

    /// Makes another worker ready while this one serves; wakes it if it has work already.
    fn relieve(self: &Arc<Self>, state: &mut State, more: bool) {
        if state.idle > 0 {
            if more {
                // Fails only when the counter is full: then the event is pending.
                let _ = self.more.write(1);
            }
        } else if state.workers.len() < MAX_WORKERS {
            // Without another thread requests wait for this one.
            let _ = Pool::add_worker(self, state);
        }
    }

    /// Returns a request to the driver. Says whether the driver wants an interrupt.
    fn give_back(
        &self,
        state: &mut State,
        queue: usize,
        head: u16,
        written: usize,
    ) -> Result<bool, Broken> {
        let Some(queue) = state.queues.get_mut(queue) else {
            return Ok(false);
        };
        let written = u32::try_from(written).map_err(|_| Broken::Length)?;
        let memory = self.space.ram();
        queue.add_used(memory, head, written)?;
        Ok(queue.needs_notification(memory)?)
    }

    fn wait(&self) {
        let mut events = [EpollEvent::default(); 1];
        // An interrupted wait is one that found nothing.
        let _ = self.ready.wait(-1, &mut events);
        self.lock().idle -= 1;
    }

    fn break_down(&self, state: &mut State, fault: Fault) {
        if !state.queues.is_empty() {
            state.queues.clear();
            self.interrupt.needs_reset(fault);
        }
    }

    /// A worker that panicked left the queues as they were before or after one operation.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
