//! How connections begin and end.

use vmm_sys_util::eventfd::EventFd;

use super::driver::{KEY, to};
use super::*;
use crate::virtio::VirtioDevice;
use crate::vsock::packet::Header;
use crate::vsock::{GUEST_CID, Vsock};

#[test]
fn the_front_half_describes_the_device() {
    let driver = Driver::new();
    let front = &driver.front;
    assert_eq!(
        (front.device_type(), front.queue_max_sizes().len()),
        (19, 3)
    );
    assert_eq!(front.features(), 1 << 32 | 1 << 29);
    assert_eq!(*front.config(), [3, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_queue_outside_memory_is_refused() {
    let mut driver = Driver::new();
    driver.front.reset();
    let interrupt = crate::virtio::Interrupt::new(
        std::sync::Arc::default(),
        std::sync::Arc::default(),
        std::sync::Arc::new(EventFd::new(0).unwrap()),
        driver.reporter(),
    );
    let activation = crate::virtio::Activation {
        space: driver.space(),
        queues: vec![None, None, None],
        interrupt,
        features: 0,
    };
    let error = driver.front.activate(activation).unwrap_err();
    assert_eq!(error.to_string(), "vsock: the rx queue is not ready");
}

#[test]
fn what_is_not_expected_is_refused() {
    let mut driver = Driver::new();
    for operation in [op::REQUEST, op::RW, op::SHUTDOWN, op::CREDIT_UPDATE, 0, 99] {
        driver.send(operation);
        let rst = driver.expect_op(op::RST).header;
        assert_eq!((rst.src_cid.get(), rst.dst_cid.get()), (2, GUEST_CID));
        assert_eq!((rst.src_port.get(), rst.dst_port.get()), (PORT, GUEST_PORT));
    }
    driver.send(op::RST);
    assert!(driver.packet().is_none(), "RST is never answered");
}

#[test]
fn a_read_in_vain_costs_no_rx_buffer() {
    let mut driver = Driver::new();
    // More connections than rx buffers, each with a source that has nothing to read.
    for _ in 0..100 {
        let (stream, _peer) = socket();
        driver.connect(stream);
        driver.send(op::RST);
        driver.run();
    }
    assert_eq!(driver.closed.len(), 100);
}

#[test]
fn half_close_of_the_guest_then_of_the_host() {
    let (stream, mut peer) = socket();
    let mut driver = Driver::new();
    driver.connect(stream);
    driver.write(b"question", 100);
    driver.shutdown(SHUTDOWN_SEND);
    assert_eq!(
        driver.expect_op(op::SHUTDOWN).header.flags.get(),
        SHUTDOWN_RECEIVE
    );
    let mut question = [0; 8];
    peer.read_exact(&mut question).unwrap();
    assert_eq!(&question, b"question");
    assert!(driver.closed.is_empty());

    peer.write_all(b"answer").unwrap();
    assert_eq!(driver.data(), b"answer");
    drop(peer);
    assert_eq!(
        driver.expect_op(op::SHUTDOWN).header.flags.get(),
        SHUTDOWN_BOTH
    );
    assert_eq!(driver.closed, [PORT]);
    // Linux answers SHUTDOWN for both directions with RST.
    driver.send(op::RST);
    assert!(driver.packet().is_none());
    assert!(!driver.is_awake());
}

#[test]
fn half_close_of_the_host_then_of_the_guest() {
    let (reader, writer) = pipe();
    let (out, input) = pipe();
    let stream = HostStream {
        source: Some(Source::new(reader).unwrap()),
        sink: Some(Sink::new(input).unwrap()),
    };
    let mut driver = Driver::new();
    driver.connect(stream);
    drop(writer);
    assert_eq!(
        driver.expect_op(op::SHUTDOWN).header.flags.get(),
        SHUTDOWN_SEND
    );
    driver.write(b"still here", 100);
    driver.run();
    assert_eq!(available(&out), b"still here");
    assert!(driver.closed.is_empty());
    driver.shutdown(SHUTDOWN_BOTH);
    driver.expect_op(op::RST);
    assert_eq!(driver.closed, [PORT]);
    assert!(at_end(&out));
}

#[test]
fn a_guest_that_writes_and_exits_loses_no_byte() {
    let (reader, writer) = pipe();
    let mut driver = Driver::new();
    driver.connect(sink(writer));
    driver.expect_op(op::SHUTDOWN);
    // More than the pipe takes, and the end right behind it.
    let data = pattern(BUF_ALLOC as usize);
    assert_eq!(driver.write(&data, 40_000), data.len());
    driver.shutdown(SHUTDOWN_BOTH);
    let answer = std::iter::from_fn(|| driver.packet()).last().unwrap();
    assert_eq!(
        answer.op(),
        op::RST,
        "answered at once, not when the sink has it all"
    );
    assert!(driver.closed.is_empty());
    let mut got = Vec::new();
    while got.len() < data.len() {
        got.extend(available(&reader));
        driver.run();
    }
    assert!(got == data);
    assert_eq!(driver.closed, [PORT]);
    assert!(at_end(&reader));
}

#[test]
fn rst_of_the_guest_closes_after_delivery() {
    let (reader, writer) = pipe();
    let mut driver = Driver::new();
    driver.connect(sink(writer));
    let data = pattern(100_000);
    driver.write(&data, 40_000);
    driver.send(op::RST);
    driver.run();
    assert!(driver.closed.is_empty());
    let mut got = available(&reader);
    driver.run();
    got.extend(available(&reader));
    driver.run();
    assert!(got == data);
    assert_eq!(driver.closed, [PORT]);
}

#[test]
fn the_ports_can_be_used_again_when_the_older_stream_is_delivered() {
    let (reader, writer) = pipe();
    let mut driver = Driver::new();
    driver.connect(sink(writer));
    driver.write(&pattern(100_000), 40_000);
    driver.send(op::RST);
    driver.run();
    while driver.packet().is_some() {}
    assert!(matches!(
        driver.vsock.expect(KEY, socket().0),
        Err(Error::PortInUse(PORT))
    ));
    let mut got = 0;
    while driver.closed.is_empty() {
        got += available(&reader).len();
        driver.run();
    }
    got += available(&reader).len();
    assert_eq!(got, 100_000);
    driver.connect(socket().0);
}

#[test]
fn a_sink_whose_reader_is_gone_ends_that_direction() {
    let (stream, mut peer) = socket();
    let (reader, writer) = pipe();
    let stream = HostStream {
        source: stream.source,
        sink: Some(Sink::new(writer).unwrap()),
    };
    let mut driver = Driver::new();
    driver.connect(stream);
    drop(reader);
    driver.write(b"into the void", 100);
    assert_eq!(
        driver.expect_op(op::SHUTDOWN).header.flags.get(),
        SHUTDOWN_RECEIVE
    );
    // What the guest sent before it knew is dropped; its credit is not lost.
    driver.write_uncredited(&pattern(MAX_PAYLOAD as usize));
    let update = driver.expect_op(op::CREDIT_UPDATE).header;
    assert_eq!(update.fwd_cnt.get(), MAX_PAYLOAD + 13);
    peer.write_all(b"the other direction works").unwrap();
    assert_eq!(driver.data(), b"the other direction works");
    assert!(driver.closed.is_empty());
}

#[test]
fn a_reader_that_goes_with_bytes_pending_ends_that_direction() {
    let (reader, writer) = pipe();
    let mut driver = Driver::new();
    driver.connect(sink(writer));
    driver.expect_op(op::SHUTDOWN);
    driver.write(&pattern(200_000), 50_000);
    driver.run();
    while driver.packet().is_some() {}
    drop(reader);
    assert_eq!(
        driver.expect_op(op::SHUTDOWN).header.flags.get(),
        SHUTDOWN_BOTH
    );
    assert_eq!(driver.closed, [PORT]);
}

#[test]
fn more_than_the_credit_is_answered_with_rst() {
    let (reader, writer) = pipe();
    let mut driver = Driver::new();
    driver.connect(sink(writer));
    driver.expect_op(op::SHUTDOWN);
    let mut sent = 0;
    let rst = loop {
        driver.write_uncredited(&pattern(MAX_PAYLOAD as usize));
        sent += MAX_PAYLOAD as usize;
        assert!(sent < 1 << 20, "nothing stops the guest");
        match driver.packet() {
            Some(packet) if packet.op() == op::RST => break packet,
            _ => {}
        }
    };
    assert_eq!(rst.header.dst_port.get(), GUEST_PORT);
    // What was within the credit is delivered.
    let mut got = 0;
    while driver.closed.is_empty() {
        got += available(&reader).len();
        driver.run();
    }
    got += available(&reader).len();
    assert_eq!(got, sent - MAX_PAYLOAD as usize);
}

#[test]
fn nonsense_on_a_connection_is_answered_with_rst() {
    for operation in [0, op::REQUEST, op::RESPONSE, 8, 0xffff] {
        let (stream, mut peer) = socket();
        let mut driver = Driver::new();
        driver.connect(stream);
        driver.send(operation);
        driver.expect_op(op::RST);
        assert_eq!(driver.closed, [PORT]);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn reset_ends_connections_delivers_what_is_pending_and_keeps_expectations() {
    let (reader, writer) = pipe();
    let (idle, mut peer) = socket();
    let mut driver = Driver::new();
    driver.connect(sink(writer));
    driver.expect_op(op::SHUTDOWN);
    let data = pattern(200_000);
    driver.write(&data, 50_000);
    driver.run();
    while driver.packet().is_some() {}
    driver.vsock.expect(to(5), idle).unwrap();

    driver.front.reset();
    assert!(driver.is_awake());
    driver.run();
    assert!(driver.closed.is_empty());
    // The transport's handles of the old kicks do not reach the device any more.
    driver.tx.kick();
    driver.rx.kick();
    assert!(!driver.is_awake());

    driver.activate();
    driver.give_rx();
    driver.send(op::RW);
    driver.expect_op(op::RST);
    let header = driver.header(to(5), op::REQUEST);
    driver.send_header(&header, &[]);
    driver.expect_op(op::RESPONSE);
    peer.write_all(b"hello").unwrap();
    assert_eq!(driver.data(), b"hello");

    let mut got = Vec::new();
    while driver.closed.is_empty() {
        got.extend(available(&reader));
        driver.run();
    }
    got.extend(available(&reader));
    assert!(got == data);
    assert_eq!(driver.closed, [PORT]);
}

#[test]
fn reset_and_activation_between_two_looks_end_the_old_connections() {
    let (stream, mut peer) = socket();
    let mut driver = Driver::new();
    driver.connect(stream);
    driver.front.reset();
    driver.activate();
    driver.give_rx();
    driver.run();
    assert_eq!(driver.closed, [PORT]);
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
}

#[test]
fn drain_takes_what_the_dead_guest_left_in_the_queue() {
    let (reader, writer) = pipe();
    let mut driver = Driver::new();
    driver.connect(sink(writer));
    driver.expect_op(op::SHUTDOWN);
    driver.vsock.expect(to(77), socket().0).unwrap();
    // In the queue, and the event loop has not looked.
    let data = pattern(200_000);
    assert_eq!(driver.write(&data, 5_000), data.len());
    assert_eq!(driver.vsock.drain(), [77]);
    assert_eq!(driver.vsock.open_streams(), 1);
    let mut got = Vec::new();
    while driver.vsock.open_streams() > 0 {
        got.extend(available(&reader));
        driver.run();
    }
    got.extend(available(&reader));
    assert!(got == data);
    assert_eq!(driver.closed, [PORT]);
    assert!(at_end(&reader));
    assert!(!driver.is_awake());
}

#[test]
fn nothing_stays_watched_when_the_caller_keeps_the_description() {
    let (ours, peer) = UnixStream::pair().unwrap();
    let kept = ours.try_clone().unwrap();
    let stream = HostStream {
        source: Some(Source::new(ours.into()).unwrap()),
        sink: None,
    };
    let mut driver = Driver::new();
    let before = driver.watched();
    driver.connect(stream);
    driver.expect_op(op::SHUTDOWN);
    assert_eq!(driver.watched(), before + 1);
    driver.send(op::RST);
    driver.run();
    assert_eq!(driver.watched(), before);
    drop((kept, peer));
}

/// The event loop runs on one thread while the driver, on another, resets and activates the device again and again.
#[test]
fn after_reset_the_queues_are_not_touched() {
    use std::sync::atomic::{AtomicU32, Ordering};
    let mut driver = Driver::new();
    let (_, idle) = Vsock::new(GUEST_CID).unwrap();
    let mut vsock = std::mem::replace(&mut driver.vsock, idle);
    let epoll = vsock.epoll_fd().try_clone_to_owned().unwrap();
    let stop = EventFd::new(0).unwrap();
    let stopped = stop.try_clone().unwrap();
    let batches = std::sync::Arc::new(AtomicU32::new(0));
    let count = std::sync::Arc::clone(&batches);
    let event_loop = std::thread::spawn(move || {
        let stop = stopped;
        while !sys::ready(sys::event_fd(&stop), libc::POLLIN).unwrap() {
            if sys::ready_within(epoll.as_fd(), libc::POLLIN, 10).unwrap() {
                vsock.handle_events();
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let mut busy = 0;
    for round in 0..300_u32 {
        // Every packet is answered, so both queues are in use.
        while driver.queue(&driver.header(KEY, op::RW), &[]) {}
        for _ in 0..round * 20 {
            std::hint::spin_loop();
        }
        driver.front.reset();
        driver.scribble(0xaa);
        let before = batches.load(Ordering::SeqCst);
        driver.tx.kick();
        for _ in 0..2000 {
            std::hint::spin_loop();
        }
        assert!(driver.holds(0xaa), "round {round}");
        busy += u32::from(batches.load(Ordering::SeqCst) > before);
        driver.activate();
        driver.give_rx();
    }
    stop.write(1).unwrap();
    event_loop.join().unwrap();
    assert!(
        busy > 0,
        "the event loop never ran while the device was reset"
    );
    assert!(!driver.is_broken());
}

/// A pipe's both ends as a stream, and what is left of it for the test.
fn full_stream() -> (HostStream, OwnedFd, OwnedFd) {
    let (reader, feeder) = pipe();
    let (drain, writer) = pipe();
    let stream = HostStream {
        source: source(reader).source,
        sink: sink(writer).sink,
    };
    (stream, feeder, drain)
}

#[test]
fn an_abandoned_expectation_is_refused_and_not_reported() {
    let (stream, _feeder, drain) = full_stream();
    let mut driver = Driver::new();
    driver.run();
    driver.vsock.expect(KEY, stream).unwrap();
    driver.vsock.abandon(PORT);
    assert!(at_end(&drain), "the host's descriptors are closed");
    assert!(!driver.is_awake());
    assert_eq!(driver.vsock.open_streams(), 0);
    driver.send(op::REQUEST);
    driver.expect_op(op::RST);
    assert!(driver.closed.is_empty());
    // Nothing is there to be abandoned; the port is free.
    driver.vsock.abandon(PORT);
    driver.vsock.abandon(PORT + 1);
    assert!(!driver.is_awake());
    driver.connect(socket().0);
}

#[test]
fn an_abandoned_connection_is_reset_and_not_reported() {
    let (stream, feeder, drain) = full_stream();
    let mut driver = Driver::new();
    driver.connect(stream);
    // More than the pipe takes, and bytes that the guest has not got.
    driver.write(&pattern(200 << 10), MAX_PAYLOAD as usize);
    while driver.packet().is_some() {}
    File::from(feeder).write_all(b"never read").unwrap();
    let watched = driver.watched();
    driver.vsock.abandon(PORT);
    assert!(driver.watched() < watched);
    assert!(available(&drain).len() <= 64 << 10);
    assert!(at_end(&drain), "the host's descriptors are closed");
    assert_eq!(driver.vsock.open_streams(), 0);
    assert!(driver.is_awake(), "the guest is to be told");
    let rst = driver.expect_op(op::RST).header;
    assert_eq!((rst.src_port.get(), rst.dst_port.get()), (PORT, GUEST_PORT));
    assert!(driver.packet().is_none());
    assert!(driver.closed.is_empty());
    // The connection is gone.
    driver.send(op::RW);
    driver.expect_op(op::RST);
    driver.connect(socket().0);
}

#[test]
fn an_abandoned_stream_whose_connection_is_gone_is_closed() {
    let (stream, _feeder, drain) = full_stream();
    let mut driver = Driver::new();
    driver.connect(stream);
    driver.write(&pattern(200 << 10), MAX_PAYLOAD as usize);
    driver.send(op::RST);
    driver.run();
    assert_eq!(driver.vsock.open_streams(), 1, "bytes are pending");
    driver.vsock.abandon(PORT);
    assert_eq!(driver.vsock.open_streams(), 0);
    available(&drain);
    assert!(at_end(&drain));
    assert!(driver.packet().is_none(), "the guest knows");
    assert!(driver.closed.is_empty());
}

#[test]
fn a_guest_that_takes_no_rst_cannot_use_up_more_than_the_limit() {
    let mut driver = Driver::without_rx();
    let mut count = 0;
    loop {
        let (stream, _peer) = socket();
        let key = to(PORT + count);
        if driver.vsock.expect(key, stream).is_err() {
            break;
        }
        let header = driver.header(key, op::REQUEST);
        driver.send_header(&header, &[]);
        driver.run();
        driver.vsock.abandon(key.host_port);
        count += 1;
    }
    assert_eq!(count as usize, MAX_STREAMS);
    // When it gives buffers it is told of each, and there is room again.
    driver.give_rx();
    for _ in 0..count {
        driver.expect_op(op::RST);
    }
    driver.connect(socket().0);
}

#[test]
fn what_the_guest_sends_on_an_abandoned_connection_is_nobodys() {
    for (operation, answer) in [(op::RW, true), (op::SHUTDOWN, true), (op::RST, false)] {
        let (stream, _feeder, drain) = full_stream();
        let mut driver = Driver::new();
        driver.connect(stream);
        let flags = if operation == op::SHUTDOWN {
            SHUTDOWN_BOTH
        } else {
            0
        };
        let len = u32::from(operation == op::RW);
        let header = Header {
            flags: flags.into(),
            len: len.into(),
            ..driver.header(KEY, operation)
        };
        // In the queue before the host gives up, seen after it.
        assert!(driver.queue(&header, &b"x"[..len as usize]));
        driver.vsock.abandon(PORT);
        assert!(at_end(&drain));
        assert_eq!(driver.packet().is_some_and(|p| p.op() == op::RST), answer);
        assert!(driver.packet().is_none());
        driver.connect(socket().0);
    }
}
