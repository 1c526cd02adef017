//! Where vCPU threads wait while the machine is paused.
//!
//! ```text
//!                        close: closed, a kick for each thread
//!   inside KVM_RUN ──────────────── EINTR ────────────────> parked
//!         ^                                                    │
//!         └── kicks taken back, clock told ── open: woken ─────┘
//! ```
//! A kick is a signal ([`sys::kick`]) that is blocked in vCPU threads except within `KVM_RUN`. The kernel changes the
//! mask together with its look at pending signals, so a kick that comes a moment before `KVM_RUN` ends it as one that
//! comes within, and no flag need be looked at on the way into the guest. As no thread ever runs a handler, the same
//! signal sent to the whole process still is for whoever reads it, by signalfd for example.
//!
//! Invariants: when [`Gate::close`] returns true no thread is inside, and none gets inside until [`Gate::open`]; a
//! thread takes as many kicks as were meant for it, and only when the gate is open, which is after they were sent.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::sys;

/// The gate before `KVM_RUN`.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    closed: bool,
    /// Threads that may be in `KVM_RUN`.
    inside: usize,
    /// How often the gate was closed.
    closings: u64,
}

impl Gate {
    /// A thread more. It counts as inside until its pass is dropped.
    pub(crate) fn enter(self: &Arc<Gate>) -> Pass {
        let mut state = self.lock();
        state.inside += 1;
        Pass {
            gate: Arc::clone(self),
            taken: state.closings,
        }
    }

    /// Closes the gate, unless it is closed. `kick` must send one kick to every thread that has a pass. Returns whether
    /// all threads are out, which is waited for until `limit` has gone by.
    pub(crate) fn close<E>(
        &self,
        kick: impl FnOnce() -> Result<(), E>,
        limit: Duration,
    ) -> Result<bool, E> {
        let mut state = self.lock();
        if !state.closed {
            state.closed = true;
            state.closings += 1;
            drop(state);
            kick()?;
            state = self.lock();
        }
        let (_state, waited) = self
            .changed
            .wait_timeout_while(state, limit, |state| state.inside > 0)
            .unwrap_or_else(PoisonError::into_inner);
        Ok(!waited.timed_out())
    }

    /// Lets the threads go on. Does nothing when the gate is open.
    pub(crate) fn open(&self) {
        self.lock().closed = false;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that change it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread's right to be inside. To drop it is to be out for good.
pub(crate) struct Pass {
    gate: Arc<Gate>,
    /// The closings whose kick the thread has taken.
    taken: u64,
}

impl Pass {
    /// Waits until the gate is open. Must be called by the thread itself, when it starts and when it was interrupted.
    /// Returns whether the gate was closed since the last call.
    pub(crate) fn wait(&mut self) -> bool {
        let mut state = self.gate.lock();
        if state.closed {
            state.inside -= 1;
            self.gate.changed.notify_all();
            state = self
                .gate
                .changed
                .wait_while(state, |state| state.closed)
                .unwrap_or_else(PoisonError::into_inner);
            state.inside += 1;
        }
        let kicks = state.closings - self.taken;
        self.taken = state.closings;
        drop(state);
        for _ in 0..kicks {
            sys::take_kick();
        }
        kicks > 0
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.lock().inside -= 1;
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(20);

    fn close(gate: &Gate, limit: Duration) -> bool {
        gate.close(|| Ok::<_, ()>(()), limit).unwrap()
    }

    #[test]
    fn an_empty_gate_closes_at_once_and_twice() {
        let gate = Arc::new(Gate::default());
        assert!(close(&gate, SHORT));
        assert!(close(&gate, SHORT));
        assert_eq!(gate.lock().closings, 1);
        gate.open();
        gate.open();
        assert!(close(&gate, SHORT));
    }

    #[test]
    fn a_thread_inside_is_waited_for_until_the_limit() {
        let gate = Arc::new(Gate::default());
        let pass = gate.enter();
        assert!(!close(&gate, SHORT));
        // It ends: that is as good as being parked.
        drop(pass);
        assert!(close(&gate, SHORT));
    }

    #[test]
    fn what_the_kick_says_is_passed_on() {
        let gate = Arc::new(Gate::default());
        assert_eq!(gate.close(|| Err("no"), SHORT), Err("no"));
    }

    #[test]
    fn a_parked_thread_goes_on_when_the_gate_opens_and_not_before() {
        let gate = Arc::new(Gate::default());
        let mut pass = gate.enter();
        let (interrupt, interrupted) = mpsc::channel();
        let (report, reported) = mpsc::channel();
        let thread = thread::spawn(move || {
            for () in interrupted {
                report.send(pass.wait()).unwrap();
            }
        });
        // Interrupted by something else: nothing to wait for.
        interrupt.send(()).unwrap();
        assert!(!reported.recv_timeout(LONG).unwrap());
        for _ in 0..100 {
            let kick = || interrupt.send(());
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
    fn who_comes_while_it_is_closed_waits_and_was_not_kicked() {
        let gate = Arc::new(Gate::default());
        assert!(close(&gate, SHORT));
        let mut pass = gate.enter();
        let thread = thread::spawn(move || pass.wait());
        assert!(close(&gate, LONG));
        gate.open();
        assert!(!thread.join().unwrap());
    }
}
