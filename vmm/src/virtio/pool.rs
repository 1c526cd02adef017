//! Threads that serve the requests of a device's queues.
//!
//! ```text
//!            ┌──────────── nothing in the queues ────────────┐
//!            v                                               │
//! start ─> waits ── kick ──> takes a request ──> serves it ──> returns it ─┐
//!                                  ^                                       │
//!                                  └───────────────────────────────────────┘
//! ```
//! The thread of a vCPU serves too, where it would have to wake a worker otherwise: it lends its vCPU for that time,
//! and a worker relieves it if it takes long (see [`vcpu`](crate::vcpu)). What has taken long is left to workers for a
//! while.
//!
//! Invariants: there is an idle worker for each vCPU that is lent, which nothing but that takes away, and what nobody
//! might take for that is looked for when a vCPU is back. The queues are touched under the mutex only, which is held
//! while a request is taken or returned and never while one is served; a slow request holds up others only when all of
//! the [`WORKERS`] serve one; a broken queue is never touched again; after a reset no thread touches guest memory. The
//! workers are there before the driver has the device running, and wait.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
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

/// Number of kinds of requests that are told apart.
const KINDS: usize = 64;

/// How many requests of a kind are left to workers when one has kept a vCPU waiting.
const CAUTION: u8 = 64;

/// What has become readable, as the epoll says.
const QUEUE: u64 = 0;
const TIMER: u64 = 1;

/// What answers requests.
pub trait RequestServer: Send + Sync + 'static {
    /// The kind of a request: those of one kind take about equally long. A number that means nothing else.
    fn kind(&self, _request: &[VolatileSlice<'_>]) -> u32 {
        0
    }

    /// Serves one request and returns how many bytes of `reply` are written; 0 means no reply.
    fn serve(&self, request: &[VolatileSlice<'_>], reply: &[VolatileSlice<'_>]) -> usize;
}

/// Requests that threads serve which run vCPUs as well.
pub(crate) trait FileRequests: Send + Sync {
    /// What each of the threads needs to serve.
    fn copier(&self) -> Copier;

    /// Has [`FileRequests::work`] return when the timer goes off. It need not be read.
    fn watch_timer(&self, timer: BorrowedFd<'_>) -> io::Result<()>;

    /// So many vCPUs are lent, each until the thread that is to run it has it.
    fn expect(&self, vcpus: usize);

    /// Serves what comes, until the timer goes off.
    fn work(&self, copier: &mut Copier);

    /// The calling thread is about to lend its vCPU. Returns whether it may: whether there is a thread that could
    /// relieve it. If not, others are woken for the request.
    fn lend(&self) -> bool;

    /// Serves what is there, by a thread that has lent its vCPU, and no longer than it is lent.
    fn serve_lent(&self, copier: &mut Copier, is_lent: &dyn Fn() -> bool);

    /// A vCPU that was lent is not any more.
    fn back(&self);
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
    /// Threads that serve a request.
    busy: usize,
    /// vCPUs that are lent.
    lent: usize,
    /// Requests may be there that a thread was not to take.
    left: bool,
    /// How many requests of each kind are left to workers.
    slow: Slow,
}

struct Slow([u8; KINDS]);

impl Default for Slow {
    fn default() -> Slow {
        Slow([0; KINDS])
    }
}

/// Who serves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Worker,
    /// A thread that has lent its vCPU.
    Lender,
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
    kind: usize,
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
        pool.watch(pool.more.as_raw_fd(), QUEUE)?;
        Ok(pool)
    }

    /// Has the events of the queues' notifications wake workers. They may be raised while the device is not running.
    pub(crate) fn watch_queues(&self, kicks: &[EventFd]) -> io::Result<()> {
        let mut kicks = kicks.iter();
        kicks.try_for_each(|kick| self.watch(kick.as_raw_fd(), QUEUE))
    }

    fn watch(&self, fd: RawFd, what: u64) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, what);
        self.ready.ctl(ControlOperation::Add, fd, event)
    }

    /// Starts workers that do nothing else.
    pub(crate) fn start(
        self: &Arc<Self>,
        threads: &Threads,
        thread: impl Fn(u8) -> Thread,
    ) -> io::Result<()> {
        for number in 0..WORKERS {
            let pool = Arc::clone(self);
            let life = move || {
                let mut copier = pool.copier();
                loop {
                    pool.work(&mut copier);
                }
            };
            threads.start(thread(number), STACK, life)?;
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

    /// What the thread of a vCPU does when the guest notifies, with or without its vCPU in the end, and then what a
    /// worker does when it is woken, for a caller without workers.
    #[cfg(fuzzing)]
    pub(crate) fn turn(&self, is_lent: bool) {
        let copier = &mut self.space.copier();
        self.lock().idle += 1;
        if self.lend() {
            self.serve_lent(copier, &|| is_lent);
            self.back();
        }
        self.lock().idle -= 1;
        self.serve_all(copier);
        self.lock().idle -= 1;
    }

    /// Serves requests until there is none. From then on the worker counts as idle.
    fn serve_all(&self, copier: &mut Copier) {
        while let Some(taken) = self.next(copier, By::Worker) {
            self.serve(&taken);
        }
    }

    /// A request, if there is one that the calling thread may take.
    fn next<'a>(&'a self, copier: &'a mut Copier, by: By) -> Option<Taken<'a>> {
        let mut state = self.lock();
        // With one idle worker less a vCPU could not be relieved.
        state.left = state.idle < state.lent;
        let taken = match state.left {
            true => None,
            false => self.take(&mut state, copier, by).unwrap_or_else(|broken| {
                state.break_down(broken);
                None
            }),
        };
        // In the same critical section as the look at the queues: who finds a request later finds this worker.
        match taken {
            Some(_) => state.busy += 1,
            None if by == By::Worker => state.idle += 1,
            None => {}
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
        by: By,
    ) -> Result<Option<Taken<'a>>, Broken> {
        let memory = self.space.ram();
        let State {
            active,
            idle,
            lent,
            left,
            slow,
            ..
        } = state;
        let queues = active.iter_mut().flat_map(|active| &mut active.queues);
        for (index, queue) in queues.enumerate() {
            loop {
                let next = queue.iter(memory)?.next();
                // The driver is to notify of what it adds from here on, whether this worker is free then or another
                // one.
                let more = queue.enable_notification(memory)?;
                if let Some(chain) = next {
                    let head = chain.head_index();
                    let buffers = chain::buffers(memory, copier, chain, queue.size())?;
                    let kind = self.server.kind(&buffers.readable);
                    let kind = usize::try_from(kind).unwrap_or_default() % KINDS;
                    match &mut slow.0[kind] {
                        0 => {}
                        _ if by == By::Lender => {
                            queue.set_next_avail(queue.next_avail().wrapping_sub(1));
                            *left = true;
                            return Ok(None);
                        }
                        slow => *slow -= 1,
                    }
                    if more && *idle > *lent {
                        self.wake();
                    }
                    return Ok(Some(Taken {
                        queue: index,
                        head,
                        kind,
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

impl<S: RequestServer> FileRequests for Pool<S> {
    fn copier(&self) -> Copier {
        self.space.copier()
    }

    fn watch_timer(&self, timer: BorrowedFd<'_>) -> io::Result<()> {
        self.watch(timer.as_raw_fd(), TIMER)
    }

    fn expect(&self, vcpus: usize) {
        self.lock().lent += vcpus;
    }

    fn work(&self, copier: &mut Copier) {
        loop {
            self.serve_all(copier);
            let mut event = [EpollEvent::default()];
            // An interrupted wait is one that found nothing.
            let _ = self.ready.wait(-1, &mut event);
            self.lock().idle -= 1;
            if event[0].data() == TIMER {
                return;
            }
        }
    }

    fn lend(&self) -> bool {
        let mut state = self.lock();
        let may = state.idle > state.lent;
        if may {
            state.lent += 1;
        } else {
            self.wake();
        }
        may
    }

    fn serve_lent(&self, copier: &mut Copier, is_lent: &dyn Fn() -> bool) {
        while let Some(taken) = self.next(copier, By::Lender) {
            self.serve(&taken);
            if !is_lent() {
                self.lock().slow.0[taken.kind] = CAUTION;
                return;
            }
        }
    }

    fn back(&self) {
        let mut state = self.lock();
        state.lent -= 1;
        if state.left {
            self.wake();
        }
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
