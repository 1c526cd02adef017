//! A vCPU's thread.
//!
//! ```text
//!            ┌───────── MMIO, port I/O ─────────┐
//!            v                                  │
//! start ─> KVM_RUN ─────────────────────────────┼─ reset, shutdown, error ─> first to end? report ─> sleeps
//!            ^                                  │
//!            └── gate (waits while paused) <────┘ signal
//! ```
//! Invariants: the machine's end is reported once, by the first vCPU that ends; the others run on until the process
//! ends. Signals are blocked in the thread, and the kick alone is let through within `KVM_RUN` (see
//! [`gate`](crate::gate)).

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::bus::Bus;
use crate::end::EndReason;
use crate::gate::Pass;
use crate::report::Report;
use crate::sys;
use crate::threads::{Thread, Threads};

/// Stack of a vCPU thread, bytes: device code on it neither recurses nor holds large objects.
const STACK: usize = 128 << 10;

/// Command port of the keyboard controller, whose command 0xfe pulses the reset line (IBM PC AT Technical Reference).
const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;

/// [`FileServer::mend`](crate::virtio::FileServer::mend) of the server.
pub(crate) type Mend = Arc<dyn Fn(&mut u64) -> bool + Send + Sync>;

/// Starts the thread of vCPU `id`. The kick must be blocked in the calling thread: the new one inherits that.
pub(crate) fn start(
    threads: &Threads,
    id: u8,
    mut vcpu: VcpuFd,
    bus: Arc<Bus>,
    mend: Mend,
    report: Arc<Report>,
    mut pass: Pass,
) -> io::Result<JoinHandle<()>> {
    sys::let_kick_through(&vcpu)?;
    let run = move || {
        pass.wait();
        if id == 0 {
            report.running();
        }
        let end = run(&mut vcpu, &bus, &mend, &mut pass);
        drop(pass);
        report.end(end);
        // The process is about to end. A thread's own end takes system calls that nothing else here does.
        loop {
            thread::park();
        }
    };
    threads.start(Thread::Vcpu(id), STACK, run)
}

/// Runs the vCPU until it ends.
fn run(vcpu: &mut VcpuFd, bus: &Bus, mend: &Mend, pass: &mut Pass) -> EndReason {
    let mut seen = 0;
    loop {
        match step(vcpu, bus) {
            Step::Continue => {}
            Step::Interrupted => {
                if pass.wait() {
                    // The guest's watchdogs forgive the time that is missing. A guest that has not set its clock up has
                    // none to forgive (EINVAL).
                    let _ = vcpu.kvmclock_ctrl();
                }
            }
            Step::InternalError => {
                return EndReason::InternalError {
                    suberror: sys::internal_suberror(vcpu),
                };
            }
            // What a mapped file has lost is zeros from now on.
            Step::End(
                EndReason::MemoryFault { .. }
                | EndReason::Vcpu {
                    errno: libc::EFAULT,
                },
            ) if mend(&mut seen) => {}
            Step::End(reason) => return reason,
        }
    }
}

enum Step {
    Continue,
    Interrupted,
    InternalError,
    End(EndReason),
}

fn step(vcpu: &mut VcpuFd, bus: &Bus) -> Step {
    match vcpu.run() {
        Ok(VcpuExit::MmioRead(address, data)) => bus.read(address, data),
        Ok(VcpuExit::MmioWrite(address, data)) => bus.write(address, data),
        Ok(VcpuExit::IoOut(I8042_COMMAND, [I8042_RESET])) => return Step::End(EndReason::Reset),
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
