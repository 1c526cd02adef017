//! What the threads of vCPUs and devices tell the machine: that it has ended, and which devices have stopped.
//!
//! One eventfd is raised for both, so that the machine need not ask. Nothing here grows with what the guest does: the
//! end is kept once, and of each device one fault, the first that the machine has not taken yet.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::end::EndReason;
use crate::fault::{Device, Fault};
use crate::sys;

/// The machine's report.
pub(crate) struct Report {
    state: Mutex<State>,
    first_run: OnceLock<Duration>,
    event: EventFd,
}

#[derive(Default)]
struct State {
    ended: bool,
    /// The end, until it is taken.
    end: Option<EndReason>,
    /// At most one of each device, until they are taken.
    faults: Vec<(Device, Fault)>,
}

impl Report {
    /// Nothing to report. `event` is raised when there is.
    pub(crate) fn new(event: EventFd) -> Report {
        Report {
            state: Mutex::default(),
            first_run: OnceLock::new(),
            event,
        }
    }

    /// A vCPU is about to call `KVM_RUN`.
    pub(crate) fn running(&self) {
        self.first_run.get_or_init(sys::monotonic);
    }

    /// CLOCK_MONOTONIC just before the first `KVM_RUN`.
    pub(crate) fn first_run(&self) -> Option<Duration> {
        self.first_run.get().copied()
    }

    /// A vCPU has ended. The first to end is the machine's end.
    pub(crate) fn end(&self, reason: EndReason) {
        let mut state = self.lock();
        if !state.ended {
            state.ended = true;
            state.end = Some(reason);
            self.raise();
        }
    }

    /// Why the machine has ended: once, when it has.
    pub(crate) fn take_end(&self) -> Option<EndReason> {
        self.lock().end.take()
    }

    /// The faults since the last call, at most one of each device.
    pub(crate) fn take_faults(&self) -> Vec<(Device, Fault)> {
        std::mem::take(&mut self.lock().faults)
    }

    /// Raised when there is something to take.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    fn fault(&self, device: Device, fault: Fault) {
        let mut state = self.lock();
        if state.faults.iter().all(|(known, _)| *known != device) {
            state.faults.push((device, fault));
            self.raise();
        }
    }

    fn raise(&self) {
        // Fails only when the counter is full: then the event is pending.
        let _ = self.event.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that change it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A device's way to report a fault.
#[derive(Clone)]
pub(crate) struct Reporter {
    report: Arc<Report>,
    device: Device,
}

impl Reporter {
    /// Reports for `device`.
    pub(crate) fn new(report: Arc<Report>, device: Device) -> Reporter {
        Reporter { report, device }
    }

    /// The device has stopped. Dropped while an earlier fault of the device has not been taken.
    pub(crate) fn fault(&self, fault: Fault) {
        self.report.fault(self.device, fault);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    fn report() -> Arc<Report> {
        Arc::new(Report::new(EventFd::new(EFD_NONBLOCK).unwrap()))
    }

    #[test]
    fn the_first_end_is_the_machines_and_is_taken_once() {
        let report = report();
        assert_eq!(report.take_end(), None);
        report.end(EndReason::Reset);
        report.end(EndReason::Vcpu { errno: 1 });
        assert_eq!(report.event().read().unwrap(), 1);
        assert_eq!(report.take_end(), Some(EndReason::Reset));
        report.end(EndReason::Reset);
        assert_eq!(report.take_end(), None);
        assert!(report.event().read().is_err());
    }

    #[test]
    fn a_device_that_faults_on_and_on_takes_one_place() {
        let report = report();
        let rng = Reporter::new(Arc::clone(&report), Device::Rng);
        let net = Reporter::new(Arc::clone(&report), Device::Net(1));
        for _ in 0..1000 {
            rng.fault(Fault::Queue);
        }
        net.fault(Fault::Queue);
        assert_eq!(report.event().read().unwrap(), 2);
        let devices = || -> Vec<_> {
            let faults = report.take_faults().into_iter();
            faults.map(|(device, _)| device).collect()
        };
        assert_eq!(devices(), [Device::Rng, Device::Net(1)]);
        assert_eq!(devices(), []);
        // Taken: the next one is told again.
        rng.fault(Fault::Queue);
        assert_eq!(report.event().read().unwrap(), 1);
        assert_eq!(devices(), [Device::Rng]);
    }

    #[test]
    fn the_first_run_is_kept() {
        let report = report();
        assert_eq!(report.first_run(), None);
        report.running();
        let first = report.first_run();
        assert!(first.is_some());
        report.running();
        assert_eq!(report.first_run(), first);
    }
}
