//! Which connections are joined with which streams.

use super::driver::{KEY, to};
use super::*;
use crate::vsock::connection::Key;
use crate::vsock::packet::Header;
use crate::vsock::{GUEST_CID, Vsock};

#[test]
fn an_expectation_serves_one_connection() {
    let (stream, _peer) = socket();
    let mut driver = Driver::new();
    driver.connect(stream);
    let other = Key {
        guest_port: GUEST_PORT + 1,
        host_port: PORT,
    };
    let header = driver.header(other, op::REQUEST);
    driver.send_header(&header, &[]);
    assert_eq!(
        driver.expect_op(op::RST).header.dst_port.get(),
        GUEST_PORT + 1
    );
    assert_eq!(driver.vsock.open_streams(), 1);
}

#[test]
fn whoever_does_not_know_both_ports_neither_gets_the_stream_nor_uses_it_up() {
    let (stream, mut peer) = socket();
    let mut driver = Driver::new();
    let key = driver.vsock.offer(stream).unwrap();
    let other = driver.vsock.offer(socket().0).unwrap();
    assert_ne!(key.host_port, other.host_port);
    assert!(key.guest_port >= 1024 && key.host_port >= 1024);
    peer.write_all(b"secret").unwrap();
    let wrong = [
        (key.guest_port ^ 1, key.host_port),
        (key.guest_port, key.host_port ^ 1),
        (key.host_port, key.guest_port),
        (other.guest_port, key.host_port),
        (key.guest_port, other.host_port),
    ];
    for (guest_port, host_port) in wrong {
        let key = Key {
            guest_port,
            host_port,
        };
        let header = driver.header(key, op::REQUEST);
        driver.send_header(&header, &[]);
        driver.expect_op(op::RST);
    }
    let header = driver.header(key, op::REQUEST);
    driver.send_header(&header, &[]);
    driver.expect_op(op::RESPONSE);
    assert_eq!(driver.expect_op(op::RW).payload, b"secret");
}

#[test]
fn wrong_addresses_and_types_do_not_use_up_the_expectation() {
    let (stream, _peer) = socket();
    let mut driver = Driver::new();
    driver.vsock.expect(KEY, stream).unwrap();
    let good = driver.header(KEY, op::REQUEST);

    driver.send_header(
        &Header {
            src_cid: 4.into(),
            ..good
        },
        &[],
    );
    assert!(
        driver.packet().is_none(),
        "a packet of somebody else is dropped"
    );
    for bad in [
        Header {
            dst_cid: 1.into(),
            ..good
        },
        Header {
            dst_cid: (1_u64 << 32 | 2).into(),
            ..good
        },
        Header {
            type_: 2.into(),
            ..good
        },
        Header {
            type_: 0.into(),
            ..good
        },
    ] {
        driver.send_header(&bad, &[]);
        let rst = driver.expect_op(op::RST).header;
        assert_eq!((rst.src_cid, rst.type_), (bad.dst_cid, bad.type_));
    }
    driver.send_header(
        &Header {
            len: 1.into(),
            ..good
        },
        b"x",
    );
    driver.expect_op(op::RST);
    driver.send_header(&good, &[]);
    driver.expect_op(op::RESPONSE);
}

#[test]
fn ports_and_numbers_are_limited() {
    let (_front, mut vsock) = Vsock::new(GUEST_CID).unwrap();
    let empty = || HostStream {
        source: None,
        sink: None,
    };
    vsock.expect(to(0), empty()).unwrap();
    let elsewhere = Key {
        guest_port: GUEST_PORT + 1,
        host_port: 0,
    };
    for key in [to(0), elsewhere] {
        let again = vsock.expect(key, empty());
        assert!(matches!(again, Err(Error::PortInUse(0))));
    }
    for port in 1..u32::try_from(MAX_STREAMS).unwrap() {
        vsock.expect(to(port), empty()).unwrap();
    }
    for one_more in [
        vsock.expect(to(9999), empty()),
        vsock.offer(empty()).map(drop),
    ] {
        assert!(matches!(one_more, Err(Error::TooManyStreams(MAX_STREAMS))));
    }
    assert_eq!(vsock.open_streams(), MAX_STREAMS);
    assert_eq!(vsock.drain().len(), MAX_STREAMS);
    assert_eq!(vsock.open_streams(), 0);
}

#[test]
fn a_port_is_in_use_until_its_end_is_reported() {
    let (stream, peer) = socket();
    let mut driver = Driver::new();
    driver.connect(stream);
    let again = driver.vsock.expect(KEY, socket().0);
    assert!(matches!(again, Err(Error::PortInUse(PORT))));
    drop(peer);
    driver.shutdown(SHUTDOWN_SEND);
    driver.run();
    assert_eq!(driver.closed, [PORT]);
    // The guest has not confirmed the end yet, but its ports are its own business.
    driver.vsock.expect(KEY, socket().0).unwrap();
}

#[test]
fn a_port_that_is_served_has_so_many_connections_at_a_time() {
    let mut driver = Driver::new();
    let (sender, peers) = std::sync::mpsc::channel();
    let mut offers = 3;
    driver.vsock.accept(PORT, 2, move || {
        offers -= 1;
        let (stream, peer) = (offers >= 0).then(socket)?;
        sender.send(peer).unwrap();
        Some(stream)
    });
    let request = |driver: &mut Driver, guest_port| {
        let key = Key {
            guest_port,
            host_port: PORT,
        };
        let header = driver.header(key, op::REQUEST);
        driver.send_header(&header, &[]);
        driver.packet().unwrap().op()
    };
    assert_eq!(request(&mut driver, GUEST_PORT), op::RESPONSE);
    assert_eq!(request(&mut driver, GUEST_PORT + 1), op::RESPONSE);
    assert_eq!(request(&mut driver, GUEST_PORT + 2), op::RST, "a third one");
    assert_eq!(
        driver.vsock.open_streams(),
        0,
        "nobody waits for their ends"
    );
    let mut peer = peers.recv().unwrap();
    peer.write_all(b"hello").unwrap();
    driver.wait();
    assert_eq!(driver.data(), b"hello");
    // One that has ended makes room for another.
    driver.send(op::RST);
    driver.run();
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    assert_eq!(request(&mut driver, GUEST_PORT + 3), op::RESPONSE);
    driver.vsock.drain();
    assert!(driver.closed.is_empty(), "no end is reported");
}

#[test]
fn a_service_that_has_no_stream_refuses() {
    let mut driver = Driver::new();
    driver.vsock.accept(PORT, 2, || None);
    driver.send(op::REQUEST);
    driver.expect_op(op::RST);
}
