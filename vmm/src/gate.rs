//! Who runs a vCPU, and where vCPUs are while nobody does.
//!
//! ```text
//!              lend: a request is served          back
//!   running ─────────────────────────────> lent ─────────> running, by the same thread
//!    │   ^                                  │  relieve, when that takes long
//!    │   │                                  └────────────> running, by another thread
//!    │   └─ kick taken back, clock told ── open ──┐
//!    └─ EINTR: close, a kick for who is running ──┴─ waiting
//! ```
//! A thread that serves a request for its vCPU lends the vCPU to the gate for that time. If it is not back within
//! [`PATIENCE`] to twice that, a thread that has nothing to do runs the vCPU from then on, and the one that served it
//! takes its place. So a guest never waits longer for a request that it could have slept for.
//!
//! Where processors are short, by a quota for example, both of these threads wait for one. It would help nobody then
//! that the vCPU changes threads, and the guest would take the time for its own: KVM tells it of the time that its
//! thread has been kept waiting. So who looks too late looks once more, [`LATE_LOOKS`] times.
//!
//! A kick is a signal ([`sys::kick`]) that is blocked in these threads except within `KVM_RUN`. The kernel changes the
//! mask together with its look at pending signals, so a kick that comes a moment before `KVM_RUN` ends it as one that
//! comes within, and no flag need be looked at on the way into the guest. As no thread ever runs a handler, the same
//! signal sent to the whole process still is for whoever reads it, by signalfd for example.
//!
//! Invariants: a vCPU is with one thread or with the gate; when [`Gate::close`] returns true no thread runs one, and
//! none does until [`Gate::open`]; a thread has at most one kick that it has not taken, however often the gate closes
//! before it runs, because kicks are real-time signals, which queue, and it takes the kick before it lends its vCPU or
//! runs it again; the timer is set while a vCPU is lent and the gate is open.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::sys::{self, ThreadId};

/// How long a request may be served before somebody looks whether it still is, nanoseconds. The look costs some ten
/// microseconds.
const PATIENCE: i64 = 1_000_000;

/// How often in a row somebody may look too late to tell.
const LATE_LOOKS: u8 = 3;

/// As soon as can be: a timer of no time would be none.
const AT_ONCE: i64 = 1;

/// The gate before `KVM_RUN`, for vCPUs `V`.
pub(crate) struct Gate<V> {
    state: Mutex<State<V>>,
    changed: Condvar,
    /// Goes off when somebody is to call [`Gate::relieve`].
    timer: OwnedFd,
}

struct State<V> {
    closed: bool,
    /// When the timer goes off, CLOCK_MONOTONIC, if it is set.
    due: Option<Duration>,
    /// How often in a row somebody has looked too late.
    late: u8,
    places: Vec<Place<V>>,
}

/// The place of a vCPU.
struct Place<V> {
    /// The vCPU, while no thread has it.
    lent: Option<V>,
    /// It has been lent since the timer went off last.
    fresh: bool,
    /// Who may be running it.
    running: Option<ThreadId>,
    /// That thread has a kick that it has not taken.
    kicked: bool,
    /// The gate was closed since a thread was told last.
    paused: bool,
}

impl<V> State<V> {
    fn is_any_running(&self) -> bool {
        self.places.iter().any(|place| place.running.is_some())
    }
}

impl<V> Gate<V> {
    /// A gate with vCPUs, which are named by their order. Each waits for a thread to take it [`back`](Gate::back).
    ///
    /// # Errors
    /// There can be no timer.
    pub(crate) fn new(vcpus: Vec<V>) -> io::Result<Gate<V>> {
        let place = |vcpu| Place {
            lent: Some(vcpu),
            fresh: true,
            running: None,
            kicked: false,
            paused: false,
        };
        let state = State {
            closed: false,
            due: None,
            late: 0,
            places: vcpus.into_iter().map(place).collect(),
        };
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Gate {
            state: Mutex::new(state),
            changed: Condvar::new(),
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
        })
    }

    /// Readable when somebody is to call [`Gate::relieve`]; it need not be read.
    pub(crate) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Closes the gate, unless it is closed. `kick` must send one kick to the thread. Returns whether no vCPU is run,
    /// which is waited for until `limit` has gone by.
    pub(crate) fn close<E>(
        &self,
        mut kick: impl FnMut(ThreadId) -> Result<(), E>,
        limit: Duration,
    ) -> Result<bool, E> {
        let mut state = self.lock();
        if !state.closed {
            state.closed = true;
            for place in &mut state.places {
                place.paused = true;
                if let Some(thread) = place.running.filter(|_| !place.kicked) {
                    kick(thread)?;
                    place.kicked = true;
                }
            }
        }
        let (_state, waited) = self
            .changed
            .wait_timeout_while(state, limit, |state| state.is_any_running())
            .unwrap_or_else(PoisonError::into_inner);
        Ok(!waited.timed_out())
    }

    /// Lets vCPUs be run. Does nothing when the gate is open.
    pub(crate) fn open(&self) {
        let mut state = self.lock();
        state.closed = false;
        self.changed.notify_all();
        if state.places.iter().any(|place| place.lent.is_some()) {
            self.time(&mut state, PATIENCE);
        }
    }

    /// Waits until the gate is open. Must be called by the thread that has the vCPU, when it was interrupted. Returns
    /// whether the gate was closed since the vCPU was run last.
    pub(crate) fn wait(&self, number: usize) -> bool {
        let mut state = self.lock();
        if state.closed {
            let running = state.places[number].running.take();
            self.changed.notify_all();
            state = self.wait_while_closed(state);
            state.places[number].running = running;
        }
        let place = &mut state.places[number];
        place.take_kick();
        std::mem::take(&mut place.paused)
    }

    /// The calling thread has something else to do than to run its vCPU.
    pub(crate) fn lend(&self, number: usize, vcpu: V) {
        let mut state = self.lock();
        let place = &mut state.places[number];
        place.take_kick();
        place.running = None;
        place.lent = Some(vcpu);
        place.fresh = true;
        if state.closed {
            self.changed.notify_all();
        } else {
            self.time(&mut state, PATIENCE);
        }
    }

    /// Whether nobody has relieved the thread that has lent this vCPU.
    pub(crate) fn is_lent(&self, number: usize) -> bool {
        self.lock().places[number].lent.is_some()
    }

    /// The vCPU for the calling thread to run, as soon as the gate is open, unless another thread has relieved it; and
    /// whether the gate was closed since it was run last.
    pub(crate) fn back(&self, number: usize) -> Option<(V, bool)> {
        let mut state = self.lock();
        if state.closed {
            state = self.wait_while_closed(state);
        }
        state.places[number].take()
    }

    /// The timer has gone off: a vCPU that the calling thread is to run from now on, if one has been lent for too long;
    /// and whether the gate was closed since it was run last.
    pub(crate) fn relieve(&self) -> Option<(usize, V, bool)> {
        let mut state = self.lock();
        let due = state.due.take();
        if state.closed {
            return None;
        }
        let patience = Duration::from_nanos(PATIENCE.unsigned_abs());
        let is_late = due.is_some_and(|due| sys::monotonic() > due + patience);
        state.late = match is_late {
            true => (state.late + 1) % (LATE_LOOKS + 1),
            false => 0,
        };
        let looks_again = state.late > 0;
        let mut relieved = None;
        let mut delay = None;
        let places = state.places.iter_mut().enumerate();
        for (number, place) in places.filter(|(_, place)| place.lent.is_some()) {
            if std::mem::take(&mut place.fresh) || looks_again {
                delay.get_or_insert(PATIENCE);
            } else if relieved.is_some() {
                delay = Some(AT_ONCE);
            } else {
                relieved = place.take().map(|(vcpu, paused)| (number, vcpu, paused));
            }
        }
        if let Some(delay) = delay {
            self.time(&mut state, delay);
        }
        relieved
    }

    /// The vCPU has ended: nobody runs it any more.
    pub(crate) fn end(&self, number: usize) {
        self.lock().places[number].running = None;
        self.changed.notify_all();
    }

    fn wait_while_closed<'a>(
        &'a self,
        state: MutexGuard<'a, State<V>>,
    ) -> MutexGuard<'a, State<V>> {
        self.changed
            .wait_while(state, |state| state.closed)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn time(&self, state: &mut State<V>, delay: i64) {
        if state.due.is_some() {
            return;
        }
        state.due = Some(sys::monotonic() + Duration::from_nanos(delay.unsigned_abs()));
        let nothing = Timespec::default();
        let once = Itimerspec {
            it_interval: nothing,
            it_value: Timespec {
                tv_nsec: delay,
                ..nothing
            },
        };
        // Fails for a descriptor that is no timer and for a time that is none.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }

    fn lock(&self) -> MutexGuard<'_, State<V>> {
        // The state is whole between any two statements that change it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V> Place<V> {
    /// The calling thread has the vCPU from now on, if the gate has it.
    fn take(&mut self) -> Option<(V, bool)> {
        let vcpu = self.lent.take()?;
        self.running = Some(sys::this_thread());
        Some((vcpu, std::mem::take(&mut self.paused)))
    }

    /// Takes the kick of the calling thread, which has the vCPU, if there is one.
    fn take_kick(&mut self) {
        if std::mem::take(&mut self.kicked) {
            sys::take_kick();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::thread;

    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(20);

    /// With vCPUs that are letters.
    fn gate(vcpus: &str) -> Arc<Gate<char>> {
        Arc::new(Gate::new(vcpus.chars().collect()).unwrap())
    }

    fn close(gate: &Gate<char>, limit: Duration) -> bool {
        gate.close(|_| Ok::<_, ()>(()), limit).unwrap()
    }

    /// Waits for the timer; whether it goes off.
    fn goes_off(gate: &Gate<char>, limit: Duration) -> bool {
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&gate.timer());
        epoll.ctl(ControlOperation::Add, fd, event).unwrap();
        let limit = i32::try_from(limit.as_millis()).unwrap();
        epoll.wait(limit, &mut [EpollEvent::default()]).unwrap() == 1
    }

    /// What a thread that has nothing to do does until it has a vCPU.
    fn relieve(gate: &Gate<char>) -> (usize, char, bool) {
        loop {
            assert!(goes_off(gate, LONG), "nobody is to relieve anybody");
            if let Some(relieved) = gate.relieve() {
                return relieved;
            }
        }
    }

    #[test]
    fn a_gate_whose_vcpus_nobody_runs_closes_at_once_and_twice() {
        for gate in [gate(""), gate("ab")] {
            assert!(close(&gate, SHORT));
            assert!(close(&gate, SHORT));
            gate.open();
            gate.open();
            assert!(close(&gate, SHORT));
        }
    }

    #[test]
    fn a_running_vcpu_is_waited_for_until_the_limit() {
        let gate = gate("a");
        assert_eq!(gate.back(0), Some(('a', false)));
        assert!(!close(&gate, SHORT));
        // It ends: that is as good as waiting.
        gate.end(0);
        assert!(close(&gate, SHORT));
    }

    #[test]
    fn what_the_kick_says_is_passed_on() {
        let gate = gate("a");
        gate.back(0).unwrap();
        assert_eq!(gate.close(|_| Err("no"), SHORT), Err("no"));
    }

    #[test]
    fn a_waiting_thread_goes_on_when_the_gate_opens_and_not_before() {
        let gate = gate("a");
        let (interrupt, interrupted) = mpsc::channel();
        let (report, reported) = mpsc::channel();
        let of_thread = Arc::clone(&gate);
        let thread = thread::spawn(move || {
            of_thread.back(0).unwrap();
            for () in interrupted {
                report.send(of_thread.wait(0)).unwrap();
            }
            of_thread.end(0);
        });
        // Interrupted by something else: nothing to wait for.
        interrupt.send(()).unwrap();
        assert!(!reported.recv_timeout(LONG).unwrap());
        for _ in 0..100 {
            let kick = |_| interrupt.send(());
            assert!(gate.close(kick, LONG).unwrap());
            assert!(
                reported.try_recv().is_err(),
                "it went through a closed gate"
            );
            gate.open();
            assert!(reported.recv_timeout(LONG).unwrap());
        }
        drop(interrupt);
        thread.join().unwrap();
        assert!(close(&gate, SHORT));
    }

    #[test]
    fn who_has_a_kick_gets_no_other_before_it_has_taken_it() {
        let gate = gate("ab");
        gate.back(0).unwrap();
        gate.back(1).unwrap();
        let kicks = |gate: &Gate<char>| {
            let mut kicks = 0;
            let kick = |_| {
                kicks += 1;
                Ok::<_, ()>(())
            };
            assert!(!gate.close(kick, SHORT).unwrap());
            gate.open();
            kicks
        };
        assert_eq!(kicks(&gate), 2);
        assert_eq!(kicks(&gate), 0);
        assert!(gate.wait(0), "the gate was closed");
        assert!(!gate.wait(0));
        assert_eq!(kicks(&gate), 1);
        // Lent, it needs none, and its thread has taken the one it had.
        gate.lend(0, 'a');
        assert_eq!(kicks(&gate), 0);
        assert_eq!(gate.back(0), Some(('a', true)));
        assert_eq!(kicks(&gate), 1);
    }

    #[test]
    fn who_comes_while_it_is_closed_waits() {
        let gate = gate("a");
        assert!(close(&gate, SHORT));
        let of_thread = Arc::clone(&gate);
        let thread = thread::spawn(move || of_thread.back(0));
        assert!(close(&gate, LONG));
        gate.open();
        assert_eq!(thread.join().unwrap(), Some(('a', true)));
    }

    #[test]
    fn what_is_lent_for_long_is_run_by_another_thread() {
        let gate = gate("ab");
        gate.back(0).unwrap();
        gate.back(1).unwrap();
        assert!(!goes_off(&gate, SHORT), "nothing is lent");
        gate.lend(1, 'b');
        assert!(gate.is_lent(1));
        assert_eq!(relieve(&gate), (1, 'b', false));
        assert!(!gate.is_lent(1));
        assert_eq!(gate.back(1), None);
        // Both at once, and one after the other.
        gate.lend(0, 'a');
        gate.lend(1, 'b');
        let mut both = [relieve(&gate).0, relieve(&gate).0];
        both.sort_unstable();
        assert_eq!(both, [0, 1]);
        assert!(gate.relieve().is_none());
    }

    #[test]
    fn who_is_back_in_time_goes_on() {
        let gate = gate("a");
        gate.back(0).unwrap();
        for _ in 0..3 {
            gate.lend(0, 'a');
            assert!(goes_off(&gate, LONG));
            // It was lent a moment ago, for all that is known.
            assert!(gate.relieve().is_none());
            assert_eq!(gate.back(0), Some(('a', false)));
            gate.lend(0, 'a');
            assert!(gate.relieve().is_none());
            assert_eq!(gate.back(0), Some(('a', false)));
        }
    }

    #[test]
    fn who_looks_too_late_looks_again_and_not_for_ever() {
        let gate = gate("a");
        gate.back(0).unwrap();
        for _ in 0..2 {
            gate.lend(0, 'a');
            for _ in 0..LATE_LOOKS {
                thread::sleep(Duration::from_millis(5));
                assert!(gate.relieve().is_none());
            }
            thread::sleep(Duration::from_millis(5));
            assert_eq!(gate.relieve(), Some((0, 'a', false)));
        }
    }

    #[test]
    fn nobody_is_relieved_while_it_is_closed() {
        let gate = gate("a");
        gate.back(0).unwrap();
        gate.lend(0, 'a');
        assert!(close(&gate, SHORT));
        assert!(goes_off(&gate, LONG));
        assert!(gate.relieve().is_none());
        assert!(gate.relieve().is_none());
        gate.open();
        assert_eq!(relieve(&gate), (0, 'a', true));
    }
}
