//! A driver that breaks the rules: the device stops, the process does not mind.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use super::driver::{KEY, MEMORY};
use super::*;
use crate::virtio::VirtioDevice;
use crate::vsock::connection::Key;
use crate::vsock::packet::Header;

const HEADER: u32 = 44;
/// Address, length, flags, next.
type Descriptor = (u64, u32, u32, u16);

/// Free guest memory.
const SPACE: u64 = 0xc0_0000;

/// A driver with one end connected, and the peer of the stream.
fn connected() -> (Driver, UnixStream) {
    let (stream, peer) = socket();
    let mut driver = Driver::new();
    driver.connect(stream);
    (driver, peer)
}

fn data_header(driver: &Driver, len: u32) -> Header {
    Header {
        len: len.into(),
        ..driver.header(KEY, op::RW)
    }
}

/// Offers a tx chain whose descriptors are given, beginning with descriptor 100.
fn offer(driver: &mut Driver, descriptors: &[Descriptor]) {
    for (index, &(address, len, flags, next)) in descriptors.iter().enumerate() {
        let index = 100 + u16::try_from(index).unwrap();
        driver.tx.describe(index, address, len, flags, next);
    }
    driver.tx.offer(100);
    driver.tx.kick();
    driver.run();
}

#[test]
fn broken_tx_chains_stop_the_device() {
    const NEXT: u32 = VRING_DESC_F_NEXT;
    type Check = fn(&Broken) -> bool;
    let endless: Check = |broken| matches!(broken, Broken::EndlessChain);
    let address: Check = |broken| matches!(broken, Broken::Address(_));
    let short: Check = |broken| matches!(broken, Broken::Short { .. });
    let direction: Check = |broken| matches!(broken, Broken::Direction);
    // The header at SPACE announces 100 bytes.
    let cases: &[(&[Descriptor], Check)] = &[
        (&[(SPACE, HEADER, NEXT, 100)], endless),
        (
            &[(SPACE, HEADER, NEXT, 101), (SPACE, 100, NEXT, 100)],
            endless,
        ),
        (&[(SPACE, HEADER, NEXT, 128)], endless),
        (&[(SPACE, HEADER, NEXT, 0xffff)], endless),
        (&[(SPACE, 17, VRING_DESC_F_INDIRECT, 0)], endless),
        (&[(u64::MAX - 15, 16, VRING_DESC_F_INDIRECT, 0)], endless),
        (&[(MEMORY - 20, HEADER, 0, 0)], address),
        (&[(u64::MAX - 10, HEADER, 0, 0)], address),
        (&[(SPACE, HEADER, NEXT, 101), (MEMORY, 100, 0, 0)], address),
        (
            &[(SPACE, HEADER, NEXT, 101), (SPACE, u32::MAX, 0, 0)],
            endless_or_address,
        ),
        (&[(SPACE, 0, 0, 0)], short),
        (&[(SPACE, HEADER - 1, 0, 0)], short),
        (&[(SPACE, HEADER, 0, 0)], short),
        (&[(SPACE, HEADER + 99, 0, 0)], short),
        (&[(SPACE, HEADER, NEXT, 101), (SPACE, 99, 0, 0)], short),
        (&[(SPACE, HEADER + 100, VRING_DESC_F_WRITE, 0)], direction),
        (
            &[
                (SPACE, HEADER, NEXT, 101),
                (SPACE, 100, VRING_DESC_F_WRITE, 0),
            ],
            direction,
        ),
    ];
    for (chain, check) in cases {
        let (mut driver, mut peer) = connected();
        let header = data_header(&driver, 100);
        driver
            .memory
            .write_slice(header.as_bytes(), GuestAddress(SPACE))
            .unwrap();
        offer(&mut driver, chain);
        assert!(driver.is_broken(), "{chain:x?}");
        let fault = driver.take_fault().unwrap();
        assert!(check(&fault), "{chain:x?}: {fault}");
        assert_eq!(driver.closed, [PORT]);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);

        // It does nothing more until it is reset, and then it works.
        driver.tx.kick();
        assert!(!driver.is_awake());
        driver.front.reset();
        driver.activate();
        driver.give_rx();
        driver.connect(socket().0);
    }
}

/// A length beyond 4 GiB in total ends virtio-queue's walk; one beyond guest memory is an address error.
fn endless_or_address(broken: &Broken) -> bool {
    matches!(broken, Broken::EndlessChain | Broken::Address(_))
}

#[test]
fn a_packet_beyond_the_longest_stops_the_device() {
    let (mut driver, _peer) = connected();
    let header = data_header(&driver, MAX_PAYLOAD + 1);
    driver
        .memory
        .write_slice(header.as_bytes(), GuestAddress(SPACE))
        .unwrap();
    offer(&mut driver, &[(SPACE, HEADER + MAX_PAYLOAD + 1, 0, 0)]);
    assert!(matches!(driver.take_fault(), Some(Broken::Long(_))));
}

#[test]
fn a_head_outside_the_table_stops_the_device() {
    let (mut driver, _peer) = connected();
    driver.tx.offer(128);
    driver.tx.kick();
    driver.run();
    assert!(matches!(driver.take_fault(), Some(Broken::EndlessChain)));
}

#[test]
fn an_available_index_that_jumps_stops_the_device() {
    for jump in [200, 0x8000, 0xffff] {
        let (mut driver, _peer) = connected();
        driver.tx.set_avail_index(jump);
        driver.tx.kick();
        driver.run();
        assert!(driver.is_broken());
        assert!(matches!(driver.take_fault(), Some(Broken::Queue(_))));
    }
}

#[test]
fn header_and_payload_may_lie_in_any_pieces() {
    let (mut driver, mut peer) = connected();
    let header = data_header(&driver, 100);
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(pattern(100));
    // Pieces of 1, 0, 20, 22, 51, 40 bytes, then trailing bytes that belong to nothing, far apart and in no order.
    let lengths = [1, 0, 20, 22, 51, 50, 10_000];
    let mut rest = &bytes[..];
    let mut descriptors = Vec::new();
    for (index, len) in (0_u16..).zip(lengths) {
        let place = SPACE + 0x1_0000 * u64::from(7 - index);
        let (piece, tail) = rest.split_at(rest.len().min(len));
        driver
            .memory
            .write_slice(piece, GuestAddress(place))
            .unwrap();
        rest = tail;
        let flags = if index == 6 { 0 } else { VRING_DESC_F_NEXT };
        descriptors.push((place, u32::try_from(len).unwrap(), flags, 101 + index));
    }
    offer(&mut driver, &descriptors);
    assert!(!driver.is_broken());
    let mut got = [0; 100];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(got[..], pattern(100));
}

#[test]
fn an_indirect_table_of_thousands_of_pieces_is_refused() {
    // (length of each piece, pieces)
    for (len, pieces) in [(HEADER, 2000_u16), (HEADER, 1025), (0, 2000)] {
        let (mut driver, _peer) = connected();
        let header = data_header(&driver, 2000);
        driver
            .memory
            .write_slice(header.as_bytes(), GuestAddress(SPACE))
            .unwrap();
        let table = SPACE + 0x1_0000;
        for index in 0..pieces {
            let next = if index + 1 == pieces {
                0
            } else {
                VRING_DESC_F_NEXT
            };
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&SPACE.to_le_bytes());
            bytes[8..12].copy_from_slice(&len.to_le_bytes());
            bytes[12..14].copy_from_slice(&u16::try_from(next).unwrap().to_le_bytes());
            bytes[14..].copy_from_slice(&(index + 1).to_le_bytes());
            let place = GuestAddress(table + 16 * u64::from(index));
            driver.memory.write_slice(&bytes, place).unwrap();
        }
        let size = 16 * u32::from(pieces);
        offer(&mut driver, &[(table, size, VRING_DESC_F_INDIRECT, 0)]);
        assert!(matches!(driver.take_fault(), Some(Broken::Pieces)));
    }
}

#[test]
fn broken_rx_buffers_stop_the_device() {
    let cases: &[(u64, u32, u32)] = &[
        (SPACE, HEADER, VRING_DESC_F_WRITE),
        (SPACE, 0, VRING_DESC_F_WRITE),
        (SPACE, 4096, 0),
        (MEMORY - 4, 4096, VRING_DESC_F_WRITE),
        (SPACE, 4096, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT),
    ];
    for &(address, len, flags) in cases {
        let mut driver = Driver::without_rx();
        driver.rx.describe(0, address, len, flags, 0);
        driver.rx.offer(0);
        driver.send(op::REQUEST);
        driver.run();
        assert!(driver.is_broken(), "{address:x} {len} {flags}");
    }
}

#[test]
fn an_rx_buffer_in_pieces_gets_header_and_payload() {
    let (stream, mut peer) = socket();
    let mut driver = Driver::without_rx();
    driver.refill = false;
    driver.vsock.expect(KEY, stream).unwrap();
    driver.send(op::REQUEST);
    peer.write_all(&pattern(100)).unwrap();
    // Two buffers of three pieces: for RESPONSE and for the data.
    for buffer in 0..2_u16 {
        for (piece, len) in (0..3_u16).zip([43, 3, 200]) {
            let flags = if piece == 2 { 0 } else { VRING_DESC_F_NEXT };
            let index = 3 * buffer + piece;
            let place = SPACE + 0x1000 * u64::from(index);
            driver
                .rx
                .describe(index, place, len, flags | VRING_DESC_F_WRITE, index + 1);
        }
        driver.rx.offer(3 * buffer);
    }
    driver.rx.kick();
    while driver.is_awake() {
        driver.vsock.handle_events();
    }
    assert_eq!(driver.rx.take_used(), Some((0, 44)));
    assert_eq!(driver.rx.take_used(), Some((3, 144)));
    let mut bytes = Vec::new();
    for (piece, len) in (3..6_u64).zip([43, 3, 98]) {
        let mut part = vec![0; len];
        driver
            .memory
            .read_slice(&mut part, GuestAddress(SPACE + 0x1000 * piece))
            .unwrap();
        bytes.extend(part);
    }
    assert_eq!(bytes[HEADER_SIZE..], pattern(100));
}

#[test]
fn a_flood_of_requests_needs_bounded_memory() {
    let mut driver = Driver::without_rx();
    driver.refill = false;
    for port in 0..5000 {
        let key = Key {
            guest_port: port,
            host_port: port,
        };
        let header = driver.header(key, op::REQUEST);
        driver.send_header(&header, &[]);
    }
    driver.run();
    assert!(!driver.is_awake());
    driver.refill = true;
    driver.give_rx();
    let answers = std::iter::from_fn(|| driver.packet()).count();
    assert_eq!(answers, MAX_REFUSALS);
    // And the device still works.
    driver.connect(socket().0);
}

#[test]
fn a_guest_that_confirms_no_end_cannot_use_up_more_than_the_limit() {
    let mut driver = Driver::new();
    for count in 0.. {
        let key = Key {
            guest_port: count,
            host_port: 10_000 + count,
        };
        let stream = HostStream {
            source: None,
            sink: None,
        };
        match driver.vsock.expect(key, stream) {
            Ok(()) => {}
            Err(Error::TooManyStreams(_)) => {
                assert_eq!(count as usize, MAX_STREAMS);
                break;
            }
            Err(error) => panic!("{error}"),
        }
        let header = driver.header(key, op::REQUEST);
        driver.send_header(&header, &[]);
        driver.run();
        while driver.packet().is_some() {}
    }
    assert_eq!(driver.closed.len(), MAX_STREAMS);
    driver.front.reset();
    driver.run();
    driver.vsock.expect(KEY, socket().0).unwrap();
}
