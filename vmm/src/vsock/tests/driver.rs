//! A driver: split virtqueues in guest memory, written as the specification describes them and independent of the
//! device's code.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, IntoBytes};

use crate::address_space::AddressSpace;
use crate::fault::{Device, Fault};
use crate::report::{Report, Reporter};
use crate::virtio::{Activation, ActiveQueue, Interrupt, VirtioDevice};
use crate::vsock::connection::{BUF_ALLOC, Key};
use crate::vsock::packet::{Broken, HEADER_SIZE, HOST_CID, Header, TYPE_STREAM, op};
use crate::vsock::{GUEST_CID, HostStream, Port, Vsock, VsockFront, sys};

/// The host's port in most tests.
pub(super) const PORT: Port = 1024;
/// The guest's port in most tests.
pub(super) const GUEST_PORT: u32 = 50_000;

pub(super) const MEMORY: u64 = 16 << 20;
const TX_SIZE: u16 = 128;
const RX_SIZE: u16 = 64;
/// Size of each rx buffer, header included.
pub(super) const RX_BUFFER: u32 = 4096;
/// Where things are in guest memory.
const TX_RING: u64 = 0x1000;
const RX_RING: u64 = 0x1_0000;
const RX_BUFFERS: u64 = 0x10_0000;
const TX_BUFFERS: u64 = 0x20_0000;
/// One slot of `TX_BUFFERS`: header and the longest payload.
const TX_SLOT: u64 = 0x1_1000;

/// One split virtqueue (virtio 1.2, section 2.7), driver's side.
pub(super) struct Ring {
    memory: Arc<GuestMemoryMmap>,
    base: u64,
    size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx: bool,
    kick: EventFd,
}

impl Ring {
    fn new(memory: &Arc<GuestMemoryMmap>, base: u64, size: u16, event_idx: bool) -> Ring {
        memory
            .write_slice(&[0; 0x2000], GuestAddress(base))
            .unwrap();
        let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        Ring {
            memory: Arc::clone(memory),
            base,
            size,
            next_avail: 0,
            next_used: 0,
            event_idx,
            kick,
        }
    }

    fn avail(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    fn used(&self) -> u64 {
        self.base + 0x1800
    }

    /// The device's view of the ring.
    fn active(&self) -> ActiveQueue {
        let mut queue = Queue::new(self.size).unwrap();
        let low = |address: u64| Some(u32::try_from(address).unwrap());
        queue.set_desc_table_address(low(self.base), None);
        queue.set_avail_ring_address(low(self.avail()), None);
        queue.set_used_ring_address(low(self.used()), None);
        queue.set_ready(true);
        // The transport keeps its own handle, as here.
        ActiveQueue {
            queue,
            kick: self.kick.try_clone().unwrap(),
        }
    }

    pub(super) fn describe(&self, index: u16, address: u64, len: u32, flags: u32, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&u16::try_from(flags).unwrap().to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let place = self.base + 16 * u64::from(index);
        self.memory
            .write_slice(&bytes, GuestAddress(place))
            .unwrap();
    }

    /// Makes the chain that begins with descriptor `head` available.
    pub(super) fn offer(&mut self, head: u16) {
        let slot = self.avail() + 4 + 2 * u64::from(self.next_avail % self.size);
        self.memory
            .write_obj(head.to_le(), GuestAddress(slot))
            .unwrap();
        self.next_avail = self.next_avail.wrapping_add(1);
        self.set_avail_index(self.next_avail);
    }

    pub(super) fn set_avail_index(&mut self, index: u16) {
        let place = GuestAddress(self.avail() + 2);
        self.memory
            .store(index.to_le(), place, Ordering::Release)
            .unwrap();
    }

    /// Notifies the device if it wants that, `old` being the available index before (virtio 1.2, section 2.7.10).
    fn notify(&self, old: u16) {
        let read = |place: u64| {
            let word: u16 = self.memory.read_obj(GuestAddress(place)).unwrap();
            u16::from_le(word)
        };
        let wanted = if self.event_idx {
            let event = read(self.used() + 4 + 8 * u64::from(self.size));
            let new = self.next_avail;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            u32::from(read(self.used())) & VRING_USED_F_NO_NOTIFY == 0
        };
        if wanted {
            self.kick.write(1).unwrap();
        }
    }

    pub(super) fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// The next used element: head and length.
    pub(super) fn take_used(&mut self) -> Option<(u16, u32)> {
        let place = GuestAddress(self.used() + 2);
        let index: u16 = u16::from_le(self.memory.load(place, Ordering::Acquire).unwrap());
        if index == self.next_used {
            return None;
        }
        let slot = self.used() + 4 + 8 * u64::from(self.next_used % self.size);
        let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
        let len: u32 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
        self.next_used = self.next_used.wrapping_add(1);
        // The event index: the driver wants an interrupt for the next one (virtio 1.2, section 2.7.7.1).
        let event = self.avail() + 4 + 2 * u64::from(self.size);
        self.memory
            .write_obj(self.next_used.to_le(), GuestAddress(event))
            .unwrap();
        Some((u16::try_from(head).unwrap(), len))
    }
}

/// A packet the driver got.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
}

impl Packet {
    pub(super) fn op(&self) -> u16 {
        self.header.op.get()
    }
}

/// The driver and the device under test.
pub(super) struct Driver {
    pub(super) vsock: Vsock,
    pub(super) front: VsockFront,
    pub(super) memory: Arc<GuestMemoryMmap>,
    pub(super) tx: Ring,
    pub(super) rx: Ring,
    pub(super) interrupt: Arc<EventFd>,
    pub(super) status: Arc<AtomicU32>,
    report: Arc<Report>,
    /// The features the driver accepts.
    pub(super) features: u64,
    /// Gives rx buffers back as soon as they are read.
    pub(super) refill: bool,
    pub(super) closed: Vec<Port>,
    /// Packets received and not asked for yet.
    received: VecDeque<Packet>,
    /// What the guest's sockets would know: bytes sent, and the host's last word on its credit.
    sent: u32,
    credit: (u32, u32),
    /// Bytes received and consumed; every packet says so.
    pub(super) consumed: u32,
    pub(super) buf_alloc: u32,
}

impl Driver {
    /// An active device with all rx buffers given.
    pub(super) fn new() -> Driver {
        let mut driver = Driver::without_rx();
        driver.give_rx();
        driver
    }

    /// An active device without rx buffers, whose driver has not accepted EVENT_IDX.
    pub(super) fn without_event_idx() -> Driver {
        Driver::with_features(1 << VIRTIO_F_VERSION_1)
    }

    /// An active device without rx buffers.
    pub(super) fn without_rx() -> Driver {
        Driver::with_features(1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX)
    }

    /// An active device without rx buffers.
    fn with_features(features: u64) -> Driver {
        let range = (GuestAddress(0), usize::try_from(MEMORY).unwrap());
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[range]).unwrap());
        let (front, vsock) = Vsock::new(GUEST_CID).unwrap();
        let mut driver = Driver {
            vsock,
            front,
            tx: Ring::new(&memory, TX_RING, TX_SIZE, true),
            rx: Ring::new(&memory, RX_RING, RX_SIZE, true),
            memory,
            interrupt: Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()),
            status: Arc::new(AtomicU32::new(0)),
            report: Arc::new(Report::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())),
            features,
            refill: true,
            closed: Vec::new(),
            received: VecDeque::new(),
            sent: 0,
            credit: (BUF_ALLOC, 0),
            consumed: 0,
            buf_alloc: 256 * 1024,
        };
        driver.activate();
        driver
    }

    /// Sets the queues up anew and activates the device.
    pub(super) fn activate(&mut self) {
        let event_idx = self.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        self.tx = Ring::new(&self.memory, TX_RING, TX_SIZE, event_idx);
        self.rx = Ring::new(&self.memory, RX_RING, RX_SIZE, event_idx);
        let irq_status = Arc::new(AtomicU32::new(0));
        let interrupt = Interrupt::new(
            irq_status,
            Arc::clone(&self.status),
            self.interrupt.clone(),
            self.reporter(),
        );
        let activation = Activation {
            space: self.space(),
            queues: vec![Some(self.rx.active()), Some(self.tx.active()), None],
            interrupt,
            features: self.features,
        };
        self.front.activate(activation).unwrap();
    }

    /// The guest's address space, without a window.
    pub(super) fn space(&self) -> AddressSpace {
        AddressSpace::new(Arc::clone(&self.memory), None)
    }

    /// The device's way to report faults.
    pub(super) fn reporter(&self) -> Reporter {
        Reporter::new(Arc::clone(&self.report), Device::Vsock)
    }

    /// What the driver has done wrong, if it has made the device stop since the last call.
    pub(super) fn take_fault(&mut self) -> Option<Broken> {
        let fault = self.report.take_faults().pop()?;
        match fault {
            (Device::Vsock, Fault::Driver(broken)) => Some(*broken.downcast().unwrap()),
            other => panic!("{other:?}"),
        }
    }

    /// Gives every rx buffer to the device.
    pub(super) fn give_rx(&mut self) {
        for index in 0..RX_SIZE {
            let address = RX_BUFFERS + u64::from(index) * u64::from(RX_BUFFER);
            self.rx
                .describe(index, address, RX_BUFFER, VRING_DESC_F_WRITE, 0);
            self.rx.offer(index);
        }
        self.rx.notify(0);
    }

    /// Whether the event loop would wake up.
    pub(super) fn is_awake(&self) -> bool {
        sys::ready(self.vsock.epoll_fd(), libc::POLLIN).unwrap()
    }

    /// Waits until the event loop would wake up.
    pub(super) fn wait(&self) {
        assert!(
            sys::ready_within(self.vsock.epoll_fd(), libc::POLLIN, 10_000).unwrap(),
            "nothing happens"
        );
    }

    /// Runs the event loop until it would sleep, reading what the device sends.
    pub(super) fn run(&mut self) {
        let mut turns = 0;
        while self.is_awake() {
            let closed = self.vsock.handle_events();
            self.closed.extend(closed);
            self.collect();
            turns += 1;
            assert!(turns < 100_000, "the event loop spins");
        }
    }

    /// Takes the used rx buffers, as far as the device has interrupted.
    fn collect(&mut self) {
        if self.interrupt.read().is_err() {
            return;
        }
        while self.tx.take_used().is_some() {}
        while let Some((head, len)) = self.rx.take_used() {
            let address = RX_BUFFERS + u64::from(head) * u64::from(RX_BUFFER);
            let mut bytes = vec![0; usize::try_from(len).unwrap()];
            self.memory
                .read_slice(&mut bytes, GuestAddress(address))
                .unwrap();
            let (header, payload) = Header::read_from_prefix(&bytes).unwrap();
            assert_eq!(header.len.get() as usize, payload.len());
            assert_eq!(header.dst_cid.get(), GUEST_CID);
            if header.op.get() != op::RST {
                self.credit = (header.buf_alloc.get(), header.fwd_cnt.get());
            }
            self.received.push_back(Packet {
                header,
                payload: payload.to_vec(),
            });
            if self.refill {
                let old = self.rx.next_avail;
                self.rx.offer(head);
                self.rx.notify(old);
            }
        }
    }

    /// The next packet from the device, after running until nothing more happens.
    pub(super) fn packet(&mut self) -> Option<Packet> {
        self.run();
        self.received.pop_front()
    }

    /// The next packet, which must be `operation`.
    pub(super) fn expect_op(&mut self, operation: u16) -> Packet {
        let packet = self.packet().expect("a packet");
        assert_eq!(packet.op(), operation, "{packet:?}");
        packet
    }

    /// All data received until nothing more happens, consumed at once and acknowledged.
    pub(super) fn data(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            self.run();
            self.received_credit();
            let mut some = false;
            while self
                .received
                .front()
                .is_some_and(|packet| packet.op() == op::RW)
            {
                let packet = self.received.pop_front().unwrap();
                self.consumed = self.consumed.wrapping_add(packet.header.len.get());
                all.extend(packet.payload);
                some = true;
            }
            if !some {
                return all;
            }
            self.send(op::CREDIT_UPDATE);
        }
    }

    /// A header from `key.guest_port` to `key.host_port`.
    pub(super) fn header(&self, key: Key, operation: u16) -> Header {
        Header {
            src_cid: GUEST_CID.into(),
            dst_cid: HOST_CID.into(),
            src_port: key.guest_port.into(),
            dst_port: key.host_port.into(),
            len: 0.into(),
            type_: TYPE_STREAM.into(),
            op: operation.into(),
            flags: 0.into(),
            buf_alloc: self.buf_alloc.into(),
            fwd_cnt: self.consumed.into(),
        }
    }

    /// Queues a packet: header and payload in descriptors of their own, as Linux does. Returns false when the queue is
    /// full.
    pub(super) fn queue(&mut self, header: &Header, payload: &[u8]) -> bool {
        while self.tx.take_used().is_some() {}
        if self.tx.next_avail.wrapping_sub(self.tx.next_used) >= TX_SIZE / 2 {
            return false;
        }
        let slot = self.tx.next_avail % (TX_SIZE / 2);
        let address = TX_BUFFERS + u64::from(slot) * TX_SLOT;
        self.memory
            .write_slice(header.as_bytes(), GuestAddress(address))
            .unwrap();
        self.memory
            .write_slice(payload, GuestAddress(address + 0x100))
            .unwrap();
        let head = 2 * slot;
        let size = u32::try_from(HEADER_SIZE).unwrap();
        let len = u32::try_from(payload.len()).unwrap();
        let more = if len == 0 { 0 } else { VRING_DESC_F_NEXT };
        self.tx.describe(head, address, size, more, head + 1);
        self.tx.describe(head + 1, address + 0x100, len, 0, 0);
        let old = self.tx.next_avail;
        self.tx.offer(head);
        self.tx.notify(old);
        true
    }

    /// Sends a packet, running the device when the queue is full.
    pub(super) fn send_header(&mut self, header: &Header, payload: &[u8]) {
        while !self.queue(header, payload) {
            assert!(self.is_awake(), "the device leaves packets in the queue");
            self.run();
        }
    }

    /// Sends a packet without payload on the connection most tests use.
    pub(super) fn send(&mut self, operation: u16) {
        let header = self.header(KEY, operation);
        self.send_header(&header, &[]);
    }

    /// Sends SHUTDOWN.
    pub(super) fn shutdown(&mut self, flags: u32) {
        let header = Header {
            flags: flags.into(),
            ..self.header(KEY, op::SHUTDOWN)
        };
        self.send_header(&header, &[]);
    }

    /// Sends one data packet, whatever the credit.
    pub(super) fn write_uncredited(&mut self, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap();
        let header = Header {
            len: len.into(),
            ..self.header(KEY, op::RW)
        };
        self.send_header(&header, payload);
        self.sent = self.sent.wrapping_add(len);
    }

    /// Sends as much of `data` as the credit allows, in packets of at most `max` bytes; returns how much.
    pub(super) fn write(&mut self, data: &[u8], max: usize) -> usize {
        let mut done = 0;
        while done < data.len() {
            let (alloc, forwarded) = self.credit;
            let credit = (alloc - self.sent.wrapping_sub(forwarded)) as usize;
            let count = credit.min(max).min(data.len() - done);
            if count == 0 {
                break;
            }
            self.write_uncredited(&data[done..done + count]);
            done += count;
        }
        done
    }

    /// Connects to [`PORT`], which is joined with `stream`.
    pub(super) fn connect(&mut self, stream: HostStream) {
        self.vsock.expect(KEY, stream).unwrap();
        self.send(op::REQUEST);
        self.expect_op(op::RESPONSE);
    }

    /// Whether the device says that it needs a reset.
    pub(super) fn is_broken(&self) -> bool {
        self.status.load(Ordering::SeqCst) & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    /// How many descriptors the device's epoll watches.
    pub(super) fn watched(&self) -> usize {
        let epoll = self.vsock.epoll_fd().as_raw_fd();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{epoll}")).unwrap();
        info.lines().filter(|line| line.starts_with("tfd:")).count()
    }

    /// Takes packets that only tell the credit; whether there was one.
    pub(super) fn received_credit(&mut self) -> bool {
        let before = self.received.len();
        self.received
            .retain(|packet| packet.op() != op::CREDIT_UPDATE);
        self.received.len() < before
    }

    /// Gives the used rx buffers back unread; how many.
    pub(super) fn recycle_rx(&mut self) -> usize {
        let old = self.rx.next_avail;
        let mut count = 0;
        while let Some((head, _)) = self.rx.take_used() {
            self.rx.offer(head);
            count += 1;
        }
        self.rx.notify(old);
        count
    }
}

/// The connection most tests use.
pub(super) const KEY: Key = to(PORT);

/// A connection to this port of the host, from the guest's port in most tests.
pub(super) const fn to(host_port: Port) -> Key {
    Key {
        guest_port: GUEST_PORT,
        host_port,
    }
}

impl Driver {
    /// Fills both rings with `byte`.
    pub(super) fn scribble(&self, byte: u8) {
        for base in [TX_RING, RX_RING] {
            self.memory
                .write_slice(&[byte; 0x2000], GuestAddress(base))
                .unwrap();
        }
    }

    /// Whether both rings hold nothing but `byte`.
    pub(super) fn holds(&self, byte: u8) -> bool {
        [TX_RING, RX_RING].iter().all(|&base| {
            let mut ring = [0; 0x2000];
            self.memory
                .read_slice(&mut ring, GuestAddress(base))
                .unwrap();
            ring == [byte; 0x2000]
        })
    }
}
