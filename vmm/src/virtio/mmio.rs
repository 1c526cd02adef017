//! virtio over MMIO, version 2 (virtio 1.2, section 4.2): the registers of one device.
//!
//! ```text
//!        ACKNOWLEDGE      DRIVER        FEATURES_OK       DRIVER_OK
//!  reset ──────────> seen ─────> driver ──────────> agreed ────────> running ──> needs reset
//!    ^                            │ features are     │ queues are             (device's)
//!    │                            │ written          │ written
//!    └────────────────────────────┴──── status = 0 ──┴──────────────────────────────┘
//! ```
//! Invariants: bits of the status are only added, one step after the other, and FAILED at any time; what is written in
//! another state than the one for it has no effect; FEATURES_OK holds only if the driver took nothing that was not
//! offered and took VERSION_1; the device has queues exactly while DRIVER_OK holds and activation went well.
//!
//! Notifications of the driver reach the device by a port of their own (see [`kvm::attach`](crate::kvm::attach)). One
//! that comes here raises the same event.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY,
    VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_BASE_LOW, VIRTIO_MMIO_SHM_LEN_HIGH,
    VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_SHM_SEL, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID,
    VIRTIO_MMIO_VERSION,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::eventfd::EventFd;

use super::queue_registers::{QueueRegisters, set_half};
use super::{Activation, ActiveQueue, Interrupt, Line, VirtioDevice};
use crate::address_space::AddressSpace;
use crate::fault::Fault;
use crate::report::Reporter;

/// "virt" (virtio 1.2, section 4.2.2).
pub(crate) const MAGIC: u32 = 0x7472_6976;

/// Version of the register layout.
pub(crate) const VERSION: u32 = 2;

/// Vendor id: "chtn". Ids are nobody's to assign. The guest's driver takes from this one that there is a port for
/// notifications ([`NOTIFICATIONS`](crate::layout::NOTIFICATIONS)).
const VENDOR: u32 = 0x6e74_6863;

/// Status bits before each step, and the bit of the step.
const STEPS: [(u32, u32); 4] = [
    (0, VIRTIO_CONFIG_S_ACKNOWLEDGE),
    (SEEN, VIRTIO_CONFIG_S_DRIVER),
    (DRIVER, VIRTIO_CONFIG_S_FEATURES_OK),
    (AGREED, VIRTIO_CONFIG_S_DRIVER_OK),
];
const SEEN: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = SEEN | VIRTIO_CONFIG_S_DRIVER;
const AGREED: u32 = DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;

/// A device behind its registers.
pub(crate) struct Transport {
    device: Box<dyn VirtioDevice>,
    space: AddressSpace,
    interrupt: Interrupt,
    /// The notification event of each queue.
    kicks: Vec<EventFd>,
    interrupt_status: Arc<AtomicU32>,
    status: Arc<AtomicU32>,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    shm_sel: u32,
    queues: Vec<QueueRegisters>,
    active: bool,
}

impl Transport {
    /// Puts a device behind registers. `line` raises its interrupt; `kicks` holds one event for each of its queues;
    /// `reporter` is told of its faults.
    pub(crate) fn new(
        device: Box<dyn VirtioDevice>,
        space: AddressSpace,
        line: Arc<dyn Line>,
        kicks: Vec<EventFd>,
        reporter: Reporter,
    ) -> Transport {
        let interrupt_status = Arc::new(AtomicU32::new(0));
        let status = Arc::new(AtomicU32::new(0));
        let interrupt = Interrupt::new(interrupt_status.clone(), status.clone(), line, reporter);
        let queues = device
            .queue_max_sizes()
            .iter()
            .map(|&max| QueueRegisters::new(max))
            .collect();
        Transport {
            device,
            space,
            interrupt,
            kicks,
            interrupt_status,
            status,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            shm_sel: 0,
            queues,
            active: false,
        }
    }

    /// The events of the queues' notifications. They stay open with the device.
    pub(crate) fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// A read at `offset` of the device's page. Registers are read as aligned 32-bit words; anything else yields zeros.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            Some(offset) => {
                let config = usize::try_from(offset).ok();
                let all = self.device.config();
                let config = config.and_then(|offset| all.get(offset..));
                for (to, from) in data.iter_mut().zip(config.unwrap_or_default()) {
                    *to = *from;
                }
            }
            None => {
                if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
                    *data = self.register(offset).to_le_bytes();
                }
            }
        }
    }

    /// A write at `offset` of the device's page. Registers are written as aligned 32-bit words; anything else is
    /// ignored.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        match offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            // The driver may use the configuration space once it knows the device (virtio 1.2, section 3.1.1).
            Some(config) => {
                if self.status() & DRIVER == DRIVER {
                    self.device.write_config(config, data);
                }
            }
            None => {
                if let Ok(data) = <[u8; 4]>::try_from(data) {
                    self.set_register(offset, u32::from_le_bytes(data));
                }
            }
        }
    }

    fn register(&self, offset: u64) -> u32 {
        let Ok(offset) = u32::try_from(offset) else {
            return 0;
        };
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.device_type(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.device.features(), self.device_features_sel),
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.queue().map_or(0, |queue| queue.max_size.into()),
            VIRTIO_MMIO_QUEUE_READY => self.queue().map_or(0, |queue| queue.ready.into()),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt_status.load(Ordering::SeqCst),
            VIRTIO_MMIO_STATUS => self.status(),
            VIRTIO_MMIO_SHM_LEN_LOW => half(self.shared_memory().1, 0),
            VIRTIO_MMIO_SHM_LEN_HIGH => half(self.shared_memory().1, 1),
            VIRTIO_MMIO_SHM_BASE_LOW => half(self.shared_memory().0, 0),
            VIRTIO_MMIO_SHM_BASE_HIGH => half(self.shared_memory().0, 1),
            VIRTIO_MMIO_CONFIG_GENERATION => self.device.config_generation(),
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        let Ok(offset) = u32::try_from(offset) else {
            return;
        };
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.accept_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            VIRTIO_MMIO_SHM_SEL => self.shm_sel = value,
            VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value),
            VIRTIO_MMIO_INTERRUPT_ACK => {
                self.interrupt_status.fetch_and(!value, Ordering::SeqCst);
            }
            VIRTIO_MMIO_STATUS => self.set_status(value),
            _ => self.set_queue_register(offset, value),
        }
    }

    fn set_queue_register(&mut self, offset: u32, value: u32) {
        if self.status() != AGREED {
            return;
        }
        let Some(queue) = index(self.queue_sel).and_then(|index| self.queues.get_mut(index)) else {
            return;
        };
        match offset {
            VIRTIO_MMIO_QUEUE_NUM => queue.size = value,
            VIRTIO_MMIO_QUEUE_READY => queue.ready = value == 1,
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(&mut queue.descriptors, false, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(&mut queue.descriptors, true, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(&mut queue.available, false, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(&mut queue.available, true, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_half(&mut queue.used, false, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(&mut queue.used, true, value),
            _ => {}
        }
    }

    fn accept_features(&mut self, value: u32) {
        if self.status() == DRIVER {
            match self.driver_features_sel {
                0 => set_half(&mut self.driver_features, false, value),
                1 => set_half(&mut self.driver_features, true, value),
                // No feature has a bit above 63; one that is set was not offered.
                _ => self.driver_features |= u64::from(value != 0) << 63,
            }
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let status = self.status();
        // The driver writes back what it read, the device's own bit included.
        let (held, written) = (
            status & !VIRTIO_CONFIG_S_NEEDS_RESET,
            value & !VIRTIO_CONFIG_S_NEEDS_RESET,
        );
        let added = written & !held;
        if held & !written != 0 {
            return;
        }
        if added == VIRTIO_CONFIG_S_FAILED {
            self.status
                .fetch_or(VIRTIO_CONFIG_S_FAILED, Ordering::SeqCst);
        } else if STEPS.contains(&(held, added)) {
            match added {
                VIRTIO_CONFIG_S_FEATURES_OK if !self.features_agree() => {}
                VIRTIO_CONFIG_S_DRIVER_OK => {
                    self.status.fetch_or(added, Ordering::SeqCst);
                    self.activate();
                }
                _ => {
                    self.status.fetch_or(added, Ordering::SeqCst);
                }
            }
        }
    }

    fn features_agree(&self) -> bool {
        self.driver_features & !self.device.features() == 0
            && self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn activate(&mut self) {
        let activated = self.active_queues().and_then(|queues| {
            let activation = Activation {
                space: self.space.clone(),
                queues,
                interrupt: self.interrupt.clone(),
                features: self.driver_features,
            };
            self.active = true;
            self.device.activate(activation).map_err(Fault::Activation)
        });
        if let Err(fault) = activated {
            self.interrupt.needs_reset(fault);
        }
    }

    /// The queues as devices use them, if none of them is invalid.
    fn active_queues(&self) -> Result<Vec<Option<ActiveQueue>>, Fault> {
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let build = |(registers, kick): (&QueueRegisters, &EventFd)| {
            if !registers.ready {
                return Ok(None);
            }
            let queue = registers.build(self.space.ram(), event_idx);
            Ok(Some(ActiveQueue {
                queue: queue.ok_or(Fault::Queue)?,
                kick: kick.try_clone().map_err(Fault::Activation)?,
            }))
        };
        self.queues.iter().zip(&self.kicks).map(build).collect()
    }

    fn reset(&mut self) {
        if self.active {
            self.device.reset();
            self.active = false;
        }
        self.status.store(0, Ordering::SeqCst);
        self.interrupt_status.store(0, Ordering::SeqCst);
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.shm_sel = 0;
        for queue in &mut self.queues {
            *queue = QueueRegisters::new(queue.max_size);
        }
    }

    /// A notification by the device's port that is an exit of the vCPU.
    pub(crate) fn notified(&mut self, queue: u32) {
        if !self.device.notified(queue) {
            self.notify(queue);
        }
    }

    fn notify(&self, queue: u32) {
        if let Some(kick) = index(queue).and_then(|index| self.kicks.get(index)) {
            // Fails only when the counter is full: then the event is pending.
            let _ = kick.write(1);
        }
    }

    /// Address and length of the selected region; all bits are ones where there is none.
    fn shared_memory(&self) -> (u64, u64) {
        self.device
            .shared_memory(self.shm_sel)
            .unwrap_or((u64::MAX, u64::MAX))
    }

    fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(index(self.queue_sel)?)
    }

    fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }
}

/// The word of a feature set that a selector register names.
fn half(features: u64, selector: u32) -> u32 {
    let bytes = features.to_le_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    match selector {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

fn index(value: u32) -> Option<usize> {
    usize::try_from(value).ok()
}

#[cfg(test)]
#[path = "mmio_tests.rs"]
mod tests;
