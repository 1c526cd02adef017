//! Bytes in both directions, back-pressure, and the kinds of descriptors.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use super::driver::{KEY, to};
use super::*;
use crate::vsock::muxer::{RX_BATCH, TX_BATCH};

#[test]
fn megabytes_to_the_guest_over_a_pipe() {
    let (reader, writer) = pipe();
    let mut driver = Driver::new();
    driver.connect(source(reader));
    assert_eq!(
        driver.expect_op(op::SHUTDOWN).header.flags.get(),
        SHUTDOWN_RECEIVE
    );
    let sent = pattern(5 << 20);
    let expected = sent.clone();
    let feeder = std::thread::spawn(move || File::from(writer).write_all(&sent).unwrap());
    let mut got = Vec::new();
    while got.len() < expected.len() {
        driver.wait();
        got.extend(driver.data());
    }
    feeder.join().unwrap();
    assert!(got == expected);
    assert_eq!(
        driver.expect_op(op::SHUTDOWN).header.flags.get(),
        SHUTDOWN_BOTH
    );
    assert_eq!(driver.closed, [PORT]);
}

#[test]
fn megabytes_from_the_guest_to_a_file_and_the_file_is_complete_at_the_end() {
    let mut file = tempfile::tempfile().unwrap();
    let mut driver = Driver::new();
    driver.connect(sink(file.try_clone().unwrap()));
    assert_eq!(
        driver.expect_op(op::SHUTDOWN).header.flags.get(),
        SHUTDOWN_SEND
    );
    let data = pattern(5 << 20);
    let mut sent = 0;
    while sent < data.len() {
        sent += driver.write(&data[sent..], MAX_PAYLOAD as usize);
        driver.run();
        while driver.packet().is_some() {}
    }
    driver.shutdown(SHUTDOWN_BOTH);
    driver.expect_op(op::RST);
    assert_eq!(driver.closed, [PORT]);
    let mut written = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut written).unwrap();
    assert!(written == data);
}

#[test]
fn a_socket_carries_both_directions_at_once() {
    let (stream, mut peer) = socket();
    let mut driver = Driver::new();
    driver.connect(stream);
    let data = pattern(3 << 20);
    let echo = std::thread::spawn(move || {
        let mut chunk = [0; 10_000];
        loop {
            match peer.read(&mut chunk).unwrap() {
                0 => return,
                count => peer.write_all(&chunk[..count]).unwrap(),
            }
        }
    });
    let (mut sent, mut got) = (0, Vec::new());
    while got.len() < data.len() {
        sent += driver.write(&data[sent..], 7777);
        got.extend(driver.data());
        if sent == data.len() && got.len() < data.len() {
            driver.wait();
        }
    }
    assert!(got == data);
    driver.send(op::RST);
    driver.run();
    assert_eq!(driver.closed, [PORT]);
    echo.join().unwrap();
}

/// What the guest does with its end is done to the host's only where that is the guest's.
#[test]
fn a_half_close_travels_to_a_socket_that_was_given_away() {
    for (given_away, flags, expected) in [
        (true, SHUTDOWN_SEND, true),
        (true, SHUTDOWN_BOTH, false),
        (false, SHUTDOWN_SEND, false),
    ] {
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let callers = ours.try_clone().unwrap();
        let sink = Sink::new(ours.try_clone().unwrap().into()).unwrap();
        let sink = if given_away { sink.given_away() } else { sink };
        let mut driver = Driver::new();
        driver.connect(HostStream {
            source: Some(Source::new(ours.into()).unwrap()),
            sink: Some(sink),
        });
        assert_eq!(driver.write(b"last", 4), 4);
        driver.shutdown(flags);
        driver.run();
        let mut text = [0; 4];
        peer.read_exact(&mut text).unwrap();
        peer.set_nonblocking(true).unwrap();
        let ended = matches!(peer.read(&mut text), Ok(0));
        assert_eq!(ended, expected, "{given_away} {flags}");
        drop(callers);
    }
}

#[test]
fn a_sink_that_is_not_read_stops_the_guest_and_loses_nothing() {
    let (reader, writer) = pipe();
    let mut driver = Driver::new();
    driver.connect(sink(writer));
    let data = pattern(2 << 20);
    let mut sent = 0;
    loop {
        let count = driver.write(&data[sent..], 10_000);
        driver.run();
        while driver.packet().is_some() {}
        if count == 0 {
            break;
        }
        sent += count;
    }
    // The pipe is full, so is the buffer, and nothing keeps the event loop awake.
    assert!(sent >= BUF_ALLOC as usize && sent < data.len(), "{sent}");
    assert!(!driver.is_awake());
    let mut got = Vec::new();
    while got.len() < data.len() {
        let part = available(&reader);
        assert!(!part.is_empty());
        got.extend(part);
        driver.run();
        while driver.packet().is_some() {}
        sent += driver.write(&data[sent..], 10_000);
        driver.run();
    }
    assert!(got == data);
    driver.shutdown(SHUTDOWN_BOTH);
    driver.expect_op(op::RST);
    assert!(at_end(&reader));
}

#[test]
fn a_source_is_read_no_further_than_the_guests_credit() {
    let (reader, writer) = pipe();
    let mut driver = Driver::new();
    driver.buf_alloc = 10;
    driver.connect(source(reader));
    driver.expect_op(op::SHUTDOWN);
    File::from(writer).write_all(&pattern(25)).unwrap();
    let first = driver.expect_op(op::RW);
    assert_eq!(first.payload, pattern(25)[..10]);
    assert!(driver.packet().is_none());
    assert!(
        !driver.is_awake(),
        "a readable source without credit keeps the loop awake"
    );
    driver.consumed = 10;
    driver.send(op::CREDIT_UPDATE);
    assert_eq!(driver.expect_op(op::RW).payload, pattern(25)[10..20]);
    driver.consumed = 20;
    driver.send(op::CREDIT_UPDATE);
    assert_eq!(driver.expect_op(op::RW).payload, pattern(25)[20..]);
    driver.expect_op(op::SHUTDOWN);
}

#[test]
fn without_rx_buffers_a_source_waits_and_the_loop_sleeps() {
    for mut driver in [Driver::without_rx(), Driver::without_event_idx()] {
        let (reader, writer) = pipe();
        driver.vsock.expect(KEY, source(reader)).unwrap();
        File::from(writer).write_all(b"early").unwrap();
        driver.send(op::REQUEST);
        driver.run();
        assert!(!driver.is_awake());
        driver.give_rx();
        assert!(driver.is_awake(), "the device has not asked to be notified");
        driver.expect_op(op::RESPONSE);
        driver.expect_op(op::SHUTDOWN);
        assert_eq!(driver.expect_op(op::RW).payload, b"early");
        // The tx queue was empty in between, so its notifications are on as well.
        driver.shutdown(SHUTDOWN_BOTH);
        while driver.packet().is_some() {}
        assert_eq!(driver.closed, [PORT]);
    }
}

#[test]
fn without_event_idx_everything_arrives_too() {
    let mut driver = Driver::without_event_idx();
    driver.give_rx();
    let (stream, mut peer) = socket();
    driver.connect(stream);
    let data = pattern(1 << 20);
    let (mut there, mut back) = (Vec::new(), Vec::new());
    peer.set_nonblocking(true).unwrap();
    let (mut sent, mut fed) = (0, 0);
    while there.len() < data.len() || back.len() < data.len() {
        sent += driver.write(&data[sent..], 5000);
        fed += peer.write(&data[fed..]).unwrap_or(0);
        back.extend(driver.data());
        let mut chunk = [0; 65_536];
        let count = peer.read(&mut chunk).unwrap_or(0);
        there.extend_from_slice(&chunk[..count]);
    }
    assert!(there == data && back == data);
}

#[test]
fn a_guarded_sink_stops_the_guest_and_keeps_the_callers_flags() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    sys::make_fifo(&path);
    let mut open = OpenOptions::new();
    let first = open
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .unwrap();
    let writer = OpenOptions::new().write(true).open(&path).unwrap();
    drop(first);
    // No reader: it cannot be re-opened without waiting.
    let stream = sink(writer.try_clone().unwrap());
    let reader: OwnedFd = open.open(&path).unwrap().into();
    let mut driver = Driver::new();
    driver.connect(stream);
    driver.expect_op(op::SHUTDOWN);
    let data = pattern(BUF_ALLOC as usize);
    assert_eq!(driver.write(&data, 60_000), data.len());
    driver.run();
    assert!(!driver.is_awake(), "a full pipe keeps the loop awake");
    let mut got = Vec::new();
    while got.len() < data.len() {
        got.extend(available(&reader));
        driver.run();
    }
    assert!(got == data);
    assert_eq!(sys::flags(writer.as_fd()).unwrap() & libc::O_NONBLOCK, 0);
}

#[test]
fn a_guarded_source_is_read_and_waited_for() {
    let (master, slave) = sys::terminal();
    let mut driver = Driver::new();
    driver.connect(source(master));
    driver.expect_op(op::SHUTDOWN);
    assert!(driver.packet().is_none());
    let mut slave = File::from(slave);
    for round in 0..3 {
        slave.write_all(&[b'0' + round; 100]).unwrap();
        let mut got = Vec::new();
        while got.len() < 100 {
            // The terminal passes bytes on when it gets to it.
            driver.wait();
            got.extend(driver.data());
        }
        assert_eq!(got, [b'0' + round; 100]);
        assert!(!driver.is_awake());
    }
}

#[test]
fn a_regular_file_is_a_source_and_leaves_room_for_others() {
    let data = pattern(2 << 20);
    let mut driver = Driver::new();
    driver.connect(source(file_with(&data)));
    assert!(driver.data().is_empty());
    driver.expect_op(op::SHUTDOWN);
    let got = driver.data();
    assert!(got == data);
    assert_eq!(
        driver.expect_op(op::SHUTDOWN).header.flags.get(),
        SHUTDOWN_BOTH
    );
    assert_eq!(driver.closed, [PORT]);
}

#[test]
fn a_batch_to_the_guest_is_bounded_and_the_rest_keeps_the_loop_awake() {
    let mut driver = Driver::new();
    driver.buf_alloc = u32::MAX;
    driver
        .vsock
        .expect(KEY, source(file_with(&pattern(4 << 20))))
        .unwrap();
    driver.send(op::REQUEST);
    let (mut calls, mut packets) = (0, 0);
    while driver.is_awake() {
        driver.vsock.handle_events();
        let count = driver.recycle_rx();
        assert!(count <= RX_BATCH);
        packets += count;
        calls += 1;
    }
    let expected = (4_usize << 20).div_ceil(4096 - HEADER_SIZE);
    // RESPONSE and two times SHUTDOWN; at most some calls in vain.
    assert_eq!(packets, expected + 3);
    assert!(
        calls >= packets / RX_BATCH && calls <= packets / RX_BATCH + 3,
        "{calls}"
    );
}

#[test]
fn a_batch_from_the_guest_is_bounded_and_the_rest_keeps_the_loop_awake() {
    let (reader, writer) = pipe();
    let mut driver = Driver::new();
    driver.connect(sink(writer));
    driver.expect_op(op::SHUTDOWN);
    let data = pattern(TX_BATCH + 10);
    assert_eq!(driver.write(&data, 1), data.len());
    driver.vsock.handle_events();
    assert_eq!(available(&reader), data[..TX_BATCH]);
    assert!(driver.is_awake());
    driver.vsock.handle_events();
    assert_eq!(available(&reader), data[TX_BATCH..]);
    assert!(!driver.is_awake());
}

#[test]
fn dev_null_is_an_empty_source_and_a_bottomless_sink() {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap();
    let mut driver = Driver::new();
    let stream = HostStream {
        source: Some(Source::new(null.try_clone().unwrap().into()).unwrap()),
        sink: Some(Sink::new(null.into()).unwrap()),
    };
    driver.connect(stream);
    assert_eq!(
        driver.expect_op(op::SHUTDOWN).header.flags.get(),
        SHUTDOWN_SEND
    );
    let data = pattern(1 << 20);
    let mut sent = 0;
    while sent < data.len() {
        let count = driver.write(&data[sent..], 50_000);
        driver.run();
        let updated = driver.received_credit();
        assert!(count > 0 || updated);
        sent += count;
    }
    driver.shutdown(SHUTDOWN_SEND);
    while driver.received_credit() {}
    driver.run();
    assert_eq!(driver.closed, [PORT]);
}

#[test]
fn a_fifo_is_reopened_and_the_callers_flags_stay() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    sys::make_fifo(&path);
    // The callers' descriptors block, as a shell's do.
    let reader = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .unwrap();
    let writer = OpenOptions::new().write(true).open(&path).unwrap();
    let reader_again = OpenOptions::new().read(true).open(&path).unwrap();
    drop(reader);
    let before = [
        sys::flags(writer.as_fd()).unwrap(),
        sys::flags(reader_again.as_fd()).unwrap(),
    ];
    let mut driver = Driver::new();
    driver.connect(sink(writer.try_clone().unwrap()));
    driver.expect_op(op::SHUTDOWN);
    driver.write(&pattern(200_000), 60_000);
    driver.run();
    let after = [
        sys::flags(writer.as_fd()).unwrap(),
        sys::flags(reader_again.as_fd()).unwrap(),
    ];
    assert_eq!(before, after);
    assert_eq!(before.map(|flags| flags & libc::O_NONBLOCK), [0, 0]);
    let reader: OwnedFd = reader_again.into();
    let mut got = Vec::new();
    while got.len() < 200_000 {
        got.extend(available(&reader));
        driver.run();
    }
    assert!(got == pattern(200_000));
}

#[test]
fn a_terminal_is_a_source_and_its_hangup_the_end() {
    let (master, slave) = sys::terminal();
    let mut driver = Driver::new();
    driver.connect(source(slave));
    driver.expect_op(op::SHUTDOWN);
    let mut master = File::from(master);
    master.write_all(b"line\n").unwrap();
    // The terminal passes bytes on when it gets to it.
    driver.wait();
    assert_eq!(driver.expect_op(op::RW).payload, b"line\n");
    drop(master);
    assert_eq!(
        driver.expect_op(op::SHUTDOWN).header.flags.get(),
        SHUTDOWN_BOTH
    );
    assert_eq!(driver.closed, [PORT]);
}

#[test]
fn two_streams_take_turns() {
    let mut driver = Driver::new();
    let data = pattern(64 * 1024);
    for port in [1, 2] {
        let key = to(port);
        driver.vsock.expect(key, source(file_with(&data))).unwrap();
        let header = driver.header(key, op::REQUEST);
        driver.send_header(&header, &[]);
    }
    let mut order = Vec::new();
    while let Some(packet) = driver.packet() {
        if packet.op() == op::RW {
            order.push(packet.header.src_port.get());
        }
    }
    assert!(order.len() > 30);
    assert!(order.windows(2).all(|pair| pair[0] != pair[1]), "{order:?}");
}

#[test]
fn a_reopened_terminal_is_source_and_sink_and_its_hangup_ends_both() {
    let (master, slave) = sys::terminal();
    let (slave, own) = crate::vsock::reopen(slave).unwrap();
    assert!(own);
    let stream = HostStream {
        source: Some(Source::reopened(slave.try_clone().unwrap()).unwrap()),
        sink: Some(Sink::reopened(slave).unwrap()),
    };
    let mut driver = Driver::new();
    driver.connect(stream);
    let mut user = File::from(master.try_clone().unwrap());
    user.write_all(b"ls\n").unwrap();
    driver.wait();
    assert_eq!(driver.data(), b"ls\n");
    driver.write(b"a b c", 100);
    driver.run();
    // What was typed is echoed by the terminal, which was not made raw.
    assert_eq!(available(&master), b"ls\r\na b c");

    drop((user, master));
    driver.wait();
    assert_eq!(
        driver.expect_op(op::SHUTDOWN).header.flags.get(),
        SHUTDOWN_SEND
    );
    assert!(driver.closed.is_empty());
    driver.write(b"to nobody", 100);
    assert_eq!(
        driver.expect_op(op::SHUTDOWN).header.flags.get(),
        SHUTDOWN_BOTH
    );
    driver.run();
    assert_eq!(driver.closed, [PORT]);
}
