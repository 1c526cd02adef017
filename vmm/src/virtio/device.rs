//! What a virtio device is to its transport.
//!
//! ```text
//!              DRIVER_OK                    bad queue or bad request
//!  inactive ──────────────> active ───────────────────────────────> needs reset
//!     ^                       │                                         │
//!     └───────────────────────┴───────────── status = 0 ────────────────┘
//! ```
//! A device is in two halves. The front half lives in the transport, answers configuration accesses on a vCPU thread
//! and is described by [`VirtioDevice`]. The back half moves data: it receives the queues, whole and by value, in an
//! [`Activation`] and runs where the device wants it (the event loop, worker threads). Before activation no code can
//! reach guest memory.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use crate::address_space::AddressSpace;
use crate::fault::Fault;
use crate::report::Reporter;

/// The front half of a virtio device: what its transport asks of it.
pub trait VirtioDevice: Send {
    /// Device type (virtio 1.2, section 5).
    fn device_type(&self) -> u32;

    /// Largest size of each virtqueue; the length is the number of queues.
    fn queue_max_sizes(&self) -> &[u16];

    /// Whether a notification of the queue is an exit of the vCPU, which its thread serves, rather than an event.
    fn is_served_by_vcpus(&self, _queue: u32) -> bool {
        false
    }

    /// The driver has notified of such a queue. A short and bounded piece of work, by the thread of the vCPU. Returns
    /// whether it was done; if not, the queue's event is raised.
    fn notified(&mut self, _queue: u32) -> bool {
        false
    }

    /// Feature bits the device offers.
    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
    }

    /// The device configuration space; what is beyond its end reads as zeros. Some devices have none.
    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&[])
    }

    /// Address and length of the shared memory region `id` (virtio 1.2, section 2.10). Most devices have none.
    fn shared_memory(&self, _id: u32) -> Option<(u64, u64)> {
        None
    }

    /// Changes whenever the configuration space does (virtio 1.2, section 2.5.1). Most never change it.
    fn config_generation(&self) -> u32 {
        0
    }

    /// Writes the device configuration space. Most devices have nothing to write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver has set DRIVER_OK: the queues are the device's from here on.
    ///
    /// # Errors
    /// The device cannot run; the transport then reports that and marks the device as needing reset.
    fn activate(&mut self, activation: Activation) -> std::io::Result<()>;

    /// The driver has written status 0: the back half must stop using the queues and guest memory before this returns.
    fn reset(&mut self);
}

/// All that the back half of a device needs to move data.
pub struct Activation {
    /// The memory that the driver's descriptors name.
    pub space: AddressSpace,
    /// The queues, by index, each with the event the driver's notification raises. A queue that the driver left unready
    /// is `None`.
    pub queues: Vec<Option<ActiveQueue>>,
    /// How the device interrupts the driver.
    pub interrupt: Interrupt,
    /// Feature bits the driver accepted.
    pub features: u64,
}

/// A virtqueue in use.
pub struct ActiveQueue {
    /// The virtqueue.
    pub queue: Queue,
    /// Raised by the driver's write to QueueNotify (an ioeventfd).
    pub kick: EventFd,
}

/// What a device's interrupt is raised by: an edge of a line.
pub(crate) trait Line: Send + Sync {
    /// Raises the interrupt. What a driver looks for behind it must be there before.
    fn raise(&self);
}

/// Counts the interrupts.
#[cfg(any(test, fuzzing))]
impl Line for vmm_sys_util::eventfd::EventFd {
    fn raise(&self) {
        // Fails only when the counter is full.
        let _ = self.write(1);
    }
}

/// The device's interrupt line and interrupt status.
#[derive(Clone)]
pub struct Interrupt {
    /// InterruptStatus register (virtio 1.2, section 4.2.2).
    status: Arc<AtomicU32>,
    /// Device status, shared with the transport for DEVICE_NEEDS_RESET.
    device_status: Arc<AtomicU32>,
    line: Arc<dyn Line>,
    reporter: Reporter,
}

impl Interrupt {
    /// Ties the transport's status registers to an interrupt line.
    pub(crate) fn new(
        status: Arc<AtomicU32>,
        device_status: Arc<AtomicU32>,
        line: Arc<dyn Line>,
        reporter: Reporter,
    ) -> Interrupt {
        Interrupt {
            status,
            device_status,
            line,
            reporter,
        }
    }

    /// Tells the driver that a used ring has new entries.
    pub fn signal_used(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// Tells the driver that the configuration space has changed.
    pub fn config_changed(&self) {
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// Marks the device as broken and reports why: it processes nothing more until the driver resets it.
    pub fn needs_reset(&self, fault: impl Into<Fault>) {
        self.reporter.fault(fault.into());
        self.device_status
            .fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.line.raise();
    }
}
