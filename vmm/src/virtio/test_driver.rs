//! A driver for tests: it lays out queues in guest memory and writes whatever descriptors a test wants.

#![allow(
    clippy::cast_possible_truncation,
    reason = "small numbers of the tests' own"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Activation, ActiveQueue, Interrupt};
use crate::address_space::AddressSpace;
use crate::fault::{Device, Fault};
use crate::report::{Report, Reporter};

pub(super) use virtio_bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};

/// Bytes of guest memory.
pub(super) const MEMORY: u64 = 1 << 20;

/// Where tests put their buffers: above all queues.
pub(super) const BUFFERS: u64 = 0x8_0000;

/// Each queue has 16 KiB: descriptors, available ring, used ring.
const QUEUE_SPACE: u64 = 0x4000;

pub(super) type Descriptor = (u64, u32, u32, u16);

pub(super) struct Driver {
    pub(super) memory: Arc<GuestMemoryMmap>,
    pub(super) irqfd: Arc<EventFd>,
    pub(super) kicks: Vec<EventFd>,
    status: Arc<AtomicU32>,
    report: Arc<Report>,
    sizes: Vec<u16>,
}

impl Driver {
    pub(super) fn new(sizes: &[u16]) -> Driver {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Driver {
            memory: Arc::new(memory),
            irqfd: Arc::new(event()),
            kicks: sizes.iter().map(|_| event()).collect(),
            status: Arc::new(AtomicU32::new(0)),
            report: Arc::new(Report::new(event())),
            sizes: sizes.to_vec(),
        }
    }

    pub(super) fn activation(&self, event_idx: bool) -> Activation {
        let interrupt_status = Arc::new(AtomicU32::new(0));
        let queues = (0..self.sizes.len())
            .map(|index| {
                let mut queue = Queue::new(self.sizes[index]).unwrap();
                let base = Self::base(index) as u32;
                queue.set_desc_table_address(Some(base), None);
                queue.set_avail_ring_address(Some(base + 0x2000), None);
                queue.set_used_ring_address(Some(base + 0x2800), None);
                queue.set_event_idx(event_idx);
                queue.set_ready(true);
                assert!(queue.is_valid(&*self.memory));
                Some(ActiveQueue {
                    queue,
                    kick: self.kicks[index].try_clone().unwrap(),
                })
            })
            .collect();
        Activation {
            space: AddressSpace::new(self.memory.clone(), None),
            queues,
            interrupt: Interrupt::new(
                interrupt_status,
                self.status.clone(),
                self.irqfd.clone(),
                Reporter::new(self.report.clone(), Device::Rng),
            ),
            features: 0,
        }
    }

    /// From address 0x1000 on: a ring at 0 counts as not set up.
    fn base(queue: usize) -> u64 {
        0x1000 + queue as u64 * QUEUE_SPACE
    }

    /// Begins anew after a reset of the device, with empty queues.
    pub(super) fn clear(&self) {
        let zeros = vec![0; self.sizes.len() * QUEUE_SPACE as usize];
        let at = GuestAddress(Self::base(0));
        self.memory.write_slice(&zeros, at).unwrap();
        self.status.store(0, Ordering::SeqCst);
    }

    /// Writes descriptors into a table.
    pub(super) fn table(&self, address: u64, descriptors: &[Descriptor]) {
        for (index, &(buffer, length, flags, next)) in descriptors.iter().enumerate() {
            let at = GuestAddress(address + index as u64 * 16);
            self.memory.write_obj(buffer, at).unwrap();
            self.memory
                .write_obj(length, GuestAddress(at.0 + 8))
                .unwrap();
            self.memory
                .write_obj(flags as u16, GuestAddress(at.0 + 12))
                .unwrap();
            self.memory
                .write_obj(next, GuestAddress(at.0 + 14))
                .unwrap();
        }
    }

    /// Writes descriptors into a queue's table.
    pub(super) fn descriptors(&self, queue: usize, descriptors: &[Descriptor]) {
        self.table(Self::base(queue), descriptors);
    }

    /// Makes a chain available.
    pub(super) fn offer(&self, queue: usize, head: u16) {
        let index = self.available(queue);
        let slot = u64::from(index % self.sizes[queue]);
        let ring = Self::base(queue) + 0x2000;
        self.memory
            .write_obj(head, GuestAddress(ring + 4 + slot * 2))
            .unwrap();
        self.set_available(queue, index.wrapping_add(1));
    }

    pub(super) fn available(&self, queue: usize) -> u16 {
        self.memory
            .read_obj(GuestAddress(Self::base(queue) + 0x2002))
            .unwrap()
    }

    pub(super) fn set_available(&self, queue: usize, index: u16) {
        let at = GuestAddress(Self::base(queue) + 0x2002);
        self.memory.store(index, at, Ordering::Release).unwrap();
    }

    pub(super) fn kick(&self, queue: usize) {
        self.kicks[queue].write(1).unwrap();
    }

    /// The used ring: heads and lengths so far.
    pub(super) fn used(&self, queue: usize) -> Vec<(u32, u32)> {
        let ring = Self::base(queue) + 0x2800;
        let count: u16 = self
            .memory
            .load(GuestAddress(ring + 2), Ordering::Acquire)
            .unwrap();
        (0..u64::from(count))
            .map(|index| {
                let at = ring + 4 + index % u64::from(self.sizes[queue]) * 8;
                let read = |at| self.memory.read_obj(GuestAddress(at)).unwrap();
                (read(at), read(at + 4))
            })
            .collect()
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.status.load(Ordering::SeqCst) & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    /// The device's fault since the last call: at most one, and the machine's event loop has been told.
    pub(super) fn fault(&self) -> Option<Fault> {
        let mut faults = self.report.take_faults();
        assert!(faults.len() <= 1);
        let raised = self.report.event().read().is_ok();
        assert_eq!(raised, !faults.is_empty());
        faults.pop().map(|(_, fault)| fault)
    }

    /// Whether the device has stopped because of what the driver did, and has said so once.
    pub(super) fn is_blamed(&self) -> bool {
        self.needs_reset() && matches!(self.fault(), Some(Fault::Driver(_)))
    }
}

/// Chains no correct driver makes, by what is wrong with them: descriptors for the table, and for an indirect table at
/// [`BUFFERS`].
pub(super) fn broken_chains() -> Vec<(&'static str, Vec<Descriptor>, Vec<Descriptor>)> {
    let (next, write, indirect) = (VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_DESC_F_INDIRECT);
    let buffer = BUFFERS + 0x1000;
    let chain = |descriptors: &[Descriptor]| descriptors.to_vec();
    vec![
        ("loop", chain(&[(buffer, 8, write | next, 0)]), vec![]),
        (
            "loop of two",
            chain(&[(buffer, 8, write | next, 1), (buffer, 8, write | next, 0)]),
            vec![],
        ),
        (
            "next outside the table",
            chain(&[(buffer, 8, write | next, 0xffff)]),
            vec![],
        ),
        ("outside memory", chain(&[(MEMORY, 8, write, 0)]), vec![]),
        (
            "over the end of memory",
            chain(&[(MEMORY - 4, 8, write, 0)]),
            vec![],
        ),
        (
            "address wraps",
            chain(&[(u64::MAX - 3, 8, write, 0)]),
            vec![],
        ),
        ("huge", chain(&[(buffer, u32::MAX, write, 0)]), vec![]),
        (
            "readable behind writable",
            chain(&[(buffer, 8, write | next, 1), (buffer, 8, 0, 0)]),
            vec![],
        ),
        (
            "indirect of odd length",
            chain(&[(BUFFERS, 17, indirect, 0)]),
            vec![],
        ),
        (
            "indirect of no length",
            chain(&[(BUFFERS, 0, indirect, 0)]),
            vec![],
        ),
        (
            "indirect outside memory",
            chain(&[(MEMORY, 16, indirect, 0)]),
            vec![],
        ),
        (
            "indirect in indirect",
            chain(&[(BUFFERS, 16, indirect, 0)]),
            chain(&[(BUFFERS, 16, indirect, 0)]),
        ),
        (
            "loop in indirect",
            chain(&[(BUFFERS, 0xf_fff0, indirect, 0)]),
            chain(&[(buffer, 8, write | next, 0)]),
        ),
        (
            "next outside the indirect table",
            chain(&[(BUFFERS, 16, indirect, 0)]),
            chain(&[(buffer, 8, write | next, 1)]),
        ),
    ]
}
