//! The network device against a driver, correct and hostile. Where a real tap would only be in the way, a socket that
//! keeps the bounds of packets takes its place.

#![allow(
    clippy::cast_possible_truncation,
    reason = "small numbers of the tests' own"
)]

mod hostile;
mod link;
mod receive;
mod send;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::super::VirtioDevice;
use super::super::test_driver::{
    BUFFERS, Descriptor, Driver, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    broken_chains,
};
use super::front::NetFront;
use super::*;

const RX: usize = 0;
const TX: usize = 1;
const MAC: MacAddress = [2, b'c', b'h', b'i', b't', 0];
const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

/// A running device and the other end of its tap.
struct Bench {
    driver: Driver,
    front: NetFront,
    net: Net,
    peer: File,
}

impl Bench {
    fn new(features: u64, event_idx: bool) -> Bench {
        let (tap, peer) = UnixDatagram::pair().unwrap();
        for socket in [&tap, &peer] {
            socket.set_nonblocking(true).unwrap();
        }
        let (front, net) = Net::new(MAC, Tap::ready_made(OwnedFd::from(tap)));
        let mut bench = Bench {
            driver: Driver::new(&QUEUE_SIZES),
            front,
            net,
            peer: OwnedFd::from(peer).into(),
        };
        bench.activate(features, event_idx);
        bench
    }

    fn activate(&mut self, features: u64, event_idx: bool) {
        let mut activation = self.driver.activation(event_idx);
        activation.features = features;
        self.front.activate(activation).unwrap();
        assert_eq!(self.kicks(), 1, "activation looks at the queues once");
        self.net.kicked();
    }

    /// How often the tx queue's event was raised since the last look.
    fn kicks(&self) -> u64 {
        self.driver.kicks[TX].read().unwrap_or(0)
    }

    fn interrupts(&self) -> u64 {
        self.driver.irqfd.read().unwrap_or(0)
    }

    /// Offers one chain, its first descriptor at place `head` of the table.
    fn offer(&self, queue: usize, head: u16, chain: &[(u64, u32)], last_flags: u32) {
        let last = chain.len() - 1;
        let descriptors: Vec<Descriptor> = chain
            .iter()
            .enumerate()
            .map(|(index, &(address, length))| {
                let next = if index < last { VRING_DESC_F_NEXT } else { 0 };
                (address, length, last_flags | next, head + index as u16 + 1)
            })
            .collect();
        let table = 0x1000 + queue as u64 * 0x4000 + u64::from(head) * 16;
        self.driver.table(table, &descriptors);
        self.driver.offer(queue, head);
    }

    /// Room of `length` bytes for received packets, one buffer.
    fn room(&self, head: u16, address: u64, length: u32) {
        self.offer(RX, head, &[(address, length)], VRING_DESC_F_WRITE);
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        let address = GuestAddress(address);
        self.driver.memory.write_slice(bytes, address).unwrap();
    }

    fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let address = GuestAddress(address);
        self.driver.memory.read_slice(&mut bytes, address).unwrap();
        bytes
    }

    /// A packet comes to the tap; the event loop is not told.
    fn deliver(&mut self, packet: &[u8]) {
        assert_eq!(self.peer.write(packet).unwrap(), packet.len());
    }

    /// The next packet the tap was given.
    fn sent(&mut self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 2 * PACKET_MAX];
        let length = self.peer.read(&mut bytes).ok()?;
        bytes.truncate(length);
        Some(bytes)
    }

    /// Whether the tap still has packets that the device has not read.
    fn tap_has_packets(&self) -> bool {
        let state = lock(&self.net.0);
        let tap = state.tap.as_ref().unwrap();
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll
            .ctl(ControlOperation::Add, tap.as_raw_fd(), event)
            .unwrap();
        epoll.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
    }
}

/// A tap that takes everything and gives nothing.
fn bottomless() -> Tap {
    let null = File::options().read(true).write(true).open("/dev/null");
    Tap::ready_made(null.unwrap().into())
}

/// A packet of `length` bytes in all: a header without offloads, then bytes that tell where they are.
fn packet(length: usize, seed: u8) -> Vec<u8> {
    let mut packet = vec![0; HEADER];
    packet.extend((HEADER..length).map(|at| (at % 251) as u8 ^ seed));
    packet
}

/// The packet as the driver gets it, in `buffers` buffers.
fn received(mut packet: Vec<u8>, buffers: u16) -> Vec<u8> {
    packet[10..12].copy_from_slice(&buffers.to_le_bytes());
    packet
}
