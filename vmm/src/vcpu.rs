//! The threads that run vCPUs and serve the guest's file system. They take each other's place.
//!
//! ```text
//!  vcpu0..                                            fs0..
//!     │                                                │
//!     v                a vCPU is lent for too long     v
//!  runs a vCPU <──────────────────────────────── serves requests <──┐
//!     │     ^                                                       │
//!     │     └── vCPU back ──┐                                       │
//!     └─ lends it, serves ──┴── somebody else runs it by now ───────┘
//!
//! running a vCPU:
//!              ┌───────── MMIO, port I/O ─────────┐
//!              v                                  │
//!           KVM_RUN ──────────────────────────────┼─ reset, shutdown, error ─> first to end? report ─> sleeps
//!              ^                                  │
//!              └── gate (waits while paused) <────┘ signal
//! ```
//! A request of the file system is served in the exit that its notification is, by the vCPU's own thread: the guest
//! goes on with the answer, and no other thread is woken for it. The vCPU is lent to the [`gate`](crate::gate) for that
//! time. What else is done in such an exit is short and bounded.
//!
//! Invariants: each vCPU that the gate has is one that is lent, also before its thread has begun; the machine's end is
//! reported once, by the first vCPU that ends; the others run on until the process ends. Signals are blocked in these
//! threads, and the kick alone is let through within `KVM_RUN`.

use std::io;
use std::sync::Arc;
use std::thread;

use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::bus::Bus;
use crate::copier::Copier;
use crate::end::EndReason;
use crate::gate::Gate;
use crate::layout::NOTIFICATIONS;
use crate::report::Report;
use crate::sys;
use crate::threads::{Thread, Threads};
use crate::virtio::{FileRequests, WORKERS};

/// Stack of a thread, bytes: device code on it neither recurses nor holds large objects.
const STACK: usize = 256 << 10;

/// Command port of the keyboard controller, whose command 0xfe pulses the reset line (IBM PC AT Technical Reference).
const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;

/// [`FileServer::mend`](crate::virtio::FileServer::mend) of the server.
pub(crate) type Mend = Box<dyn Fn(&mut u64) -> bool + Send + Sync>;

/// What the threads share.
pub(crate) struct Crew {
    pub(crate) gate: Arc<Gate<VcpuFd>>,
    pub(crate) bus: Arc<Bus>,
    pub(crate) requests: Arc<dyn FileRequests>,
    /// The port that the guest writes to when there are requests.
    pub(crate) notification: u16,
    pub(crate) mend: Mend,
    pub(crate) report: Arc<Report>,
}

/// A vCPU that a thread has.
struct Running {
    number: usize,
    vcpu: VcpuFd,
    /// The machine was paused since the vCPU was run last.
    paused: bool,
}

impl Crew {
    /// Starts the threads of the vCPUs, as many as the gate has, and of the file system. The kick must be blocked in
    /// the calling thread: the new ones inherit that.
    pub(crate) fn start(self: Arc<Self>, threads: &Threads, vcpus: u8) -> io::Result<()> {
        self.requests.expect(vcpus.into());
        for number in 0..WORKERS {
            let crew = Arc::clone(&self);
            threads.start(Thread::Fs(number), STACK, move || crew.live(None))?;
        }
        for number in 0..vcpus {
            let crew = Arc::clone(&self);
            let life = move || crew.live(Some(number.into()));
            threads.start(Thread::Vcpu(number), STACK, life)?;
        }
        Ok(())
    }

    /// The life of a thread, with a vCPU at first or without one.
    fn live(&self, number: Option<usize>) {
        let mut copier = self.requests.copier();
        let mut running = number.and_then(|number| self.back(number));
        loop {
            if let Some(running) = running {
                self.run(running, &mut copier);
            }
            self.requests.work(&mut copier);
            running = self.relieve();
        }
    }

    /// A vCPU that is lent, for this thread to run, unless another one does.
    fn back(&self, number: usize) -> Option<Running> {
        let (vcpu, paused) = self.gate.back(number)?;
        self.requests.back();
        Some(Running {
            number,
            vcpu,
            paused,
        })
    }

    /// A vCPU that has been lent for too long, if there is one.
    fn relieve(&self) -> Option<Running> {
        let (number, vcpu, paused) = self.gate.relieve()?;
        self.requests.back();
        Some(Running {
            number,
            vcpu,
            paused,
        })
    }

    /// Runs a vCPU until another thread does, or until it ends.
    fn run(&self, mut running: Running, copier: &mut Copier) {
        let number = running.number;
        if number == 0 {
            self.report.running();
        }
        let mut seen = 0;
        let end = loop {
            if std::mem::take(&mut running.paused) {
                // The guest's watchdogs forgive the time that is missing. A guest that has not set its clock up has
                // none to forgive (EINVAL).
                let _ = running.vcpu.kvmclock_ctrl();
            }
            match self.step(&mut running.vcpu) {
                Step::Continue => {}
                Step::Interrupted => running.paused = self.gate.wait(number),
                Step::Requests => {
                    if self.requests.lend() {
                        self.gate.lend(number, running.vcpu);
                        let is_lent = || self.gate.is_lent(number);
                        self.requests.serve_lent(copier, &is_lent);
                        let Some(back) = self.back(number) else {
                            return;
                        };
                        running = back;
                    }
                }
                Step::InternalError => {
                    break EndReason::InternalError {
                        suberror: sys::internal_suberror(&mut running.vcpu),
                    };
                }
                // What a mapped file has lost is zeros from now on.
                Step::End(
                    EndReason::MemoryFault { .. }
                    | EndReason::Vcpu {
                        errno: libc::EFAULT,
                    },
                ) if (self.mend)(&mut seen) => {}
                Step::End(reason) => break reason,
            }
        };
        self.gate.end(number);
        self.report.end(end);
        // The process is about to end. A thread's own end takes system calls that nothing else here does.
        loop {
            thread::park();
        }
    }

    fn step(&self, vcpu: &mut VcpuFd) -> Step {
        match vcpu.run() {
            Ok(VcpuExit::MmioRead(address, data)) => self.bus.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => self.bus.write(address, data),
            Ok(VcpuExit::IoOut(port, _)) if port == self.notification => return Step::Requests,
            Ok(VcpuExit::IoOut(port, queue)) if port >= NOTIFICATIONS => {
                self.bus.notify(port - NOTIFICATIONS, queue);
            }
            Ok(VcpuExit::IoOut(I8042_COMMAND, [I8042_RESET])) => {
                return Step::End(EndReason::Reset);
            }
            Ok(VcpuExit::IoOut(..)) => {}
            Ok(VcpuExit::Intr) => return Step::Interrupted,
            Ok(VcpuExit::IoIn(_, data)) => data.fill(0xff),
            Ok(VcpuExit::Shutdown) => return Step::End(EndReason::Reset),
            Ok(VcpuExit::InternalError) => return Step::InternalError,
            Ok(VcpuExit::FailEntry(hardware_reason, cpu)) => {
                return Step::End(EndReason::FailedEntry {
                    hardware_reason,
                    cpu,
                });
            }
            Ok(VcpuExit::SystemEvent(event, _)) => {
                return Step::End(match event {
                    KVM_SYSTEM_EVENT_SHUTDOWN | KVM_SYSTEM_EVENT_RESET | KVM_SYSTEM_EVENT_CRASH => {
                        EndReason::Reset
                    }
                    event => EndReason::SystemEvent { event },
                });
            }
            Ok(VcpuExit::MemoryFault { gpa, .. }) => {
                return Step::End(EndReason::MemoryFault { address: gpa });
            }
            Ok(other) => return Step::End(EndReason::UnexpectedExit(format!("{other:?}"))),
            Err(error) => match error.errno() {
                libc::EINTR => return Step::Interrupted,
                libc::EAGAIN => {}
                errno => return Step::End(EndReason::Vcpu { errno }),
            },
        }
        Step::Continue
    }
}

enum Step {
    Continue,
    Interrupted,
    /// The guest has made requests.
    Requests,
    InternalError,
    End(EndReason),
}
