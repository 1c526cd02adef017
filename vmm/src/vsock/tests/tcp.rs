//! Connections of the host's that are joined with the guest: each end travels as what it is.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use super::*;

/// A connection as a stream, and its other side.
fn connection() -> (HostStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let (ours, _) = listener.accept().unwrap();
    (HostStream::connection(ours).unwrap(), peer)
}

/// What the other side reads, and whether it is reset then.
fn read(peer: &mut TcpStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    match peer.read_to_end(&mut bytes) {
        Ok(_) => (bytes, false),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => (bytes, true),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn what_the_guest_ends_in_order_is_ended() {
    let (stream, mut peer) = connection();
    let mut driver = Driver::new();
    driver.connect(stream);
    driver.write(b"last", 4);
    driver.shutdown(SHUTDOWN_SEND);
    driver.run();
    assert_eq!(read(&mut peer), (b"last".to_vec(), false));
    // The other direction goes on.
    peer.write_all(b"answer").unwrap();
    driver.run();
    assert_eq!(
        driver.expect_op(op::SHUTDOWN).header.flags.get(),
        SHUTDOWN_RECEIVE
    );
    assert_eq!(driver.data(), b"answer");
    drop(peer);
    assert_eq!(
        driver.expect_op(op::SHUTDOWN).header.flags.get(),
        SHUTDOWN_BOTH
    );
    assert_eq!(driver.closed, [PORT]);
}

#[test]
fn what_the_guest_drops_is_reset() {
    for end in [op::SHUTDOWN, op::RST] {
        let (stream, mut peer) = connection();
        let mut driver = Driver::new();
        driver.connect(stream);
        driver.write(b"half", 4);
        if end == op::RST {
            driver.send(end);
        } else {
            driver.shutdown(SHUTDOWN_BOTH);
        }
        driver.run();
        assert_eq!(driver.closed, [PORT]);
        assert_eq!(read(&mut peer), (b"half".to_vec(), true));
    }
}

/// It has sent all, and what the other side has not taken is delivered after it has gone.
#[test]
fn a_guest_that_goes_when_it_has_sent_all_is_heard_to_the_end() {
    let (stream, mut peer) = connection();
    let mut driver = Driver::new();
    driver.connect(stream);
    let data = pattern(64 << 20);
    let mut sent = 0;
    while let count @ 1.. = driver.write(&data[sent..], 60_000) {
        sent += count;
        driver.run();
    }
    assert!(sent < data.len(), "nobody reads");
    driver.shutdown(SHUTDOWN_SEND);
    driver.run();
    driver.shutdown(SHUTDOWN_BOTH);
    driver.run();
    assert!(driver.closed.is_empty(), "it is all delivered");
    let reader = std::thread::spawn(move || read(&mut peer));
    while driver.closed.is_empty() {
        driver.wait();
        driver.run();
    }
    let (bytes, reset) = reader.join().unwrap();
    assert!(bytes == data[..sent] && !reset);
}

#[test]
fn a_reset_is_the_guests() {
    let (stream, peer) = connection();
    let mut driver = Driver::new();
    driver.connect(stream);
    driver.write(b"unread", 6);
    driver.run();
    assert!(driver.packet().is_none());
    // With something unread, a connection is not closed in order.
    drop(peer);
    driver.expect_op(op::RST);
    assert_eq!(driver.closed, [PORT]);
}

#[test]
fn what_nobody_takes_is_reset() {
    let (stream, mut peer) = connection();
    drop(stream);
    assert_eq!(read(&mut peer), (Vec::new(), true));

    let (stream, mut peer) = connection();
    let mut driver = Driver::new();
    let key = driver.vsock.offer(stream).unwrap();
    driver.vsock.abandon(key.host_port);
    assert_eq!(read(&mut peer), (Vec::new(), true));

    let (stream, mut peer) = connection();
    driver.connect(stream);
    driver.vsock.abandon(PORT);
    assert_eq!(read(&mut peer), (Vec::new(), true));
}
