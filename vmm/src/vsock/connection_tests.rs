use super::*;

const KEY: Key = Key {
    guest_port: 1000,
    host_port: 7,
};

fn packet(operation: u16) -> Header {
    Header {
        src_cid: 3.into(),
        dst_cid: HOST_CID.into(),
        src_port: KEY.guest_port.into(),
        dst_port: KEY.host_port.into(),
        type_: TYPE_STREAM.into(),
        op: operation.into(),
        buf_alloc: 1000.into(),
        ..Header::default()
    }
}

fn shutdown(flags: u32) -> Header {
    Header {
        flags: flags.into(),
        ..packet(op::SHUTDOWN)
    }
}

fn payload(len: u32) -> Header {
    Header {
        len: len.into(),
        ..packet(op::RW)
    }
}

/// A connection that has sent its RESPONSE.
fn open() -> Connection {
    let mut connection = Connection::accept(&packet(op::REQUEST));
    assert_eq!(connection.control().unwrap().op.get(), op::RESPONSE);
    assert!(!connection.has_control());
    connection
}

#[test]
fn the_response_has_the_addresses_turned_round_and_the_credit() {
    let mut connection = Connection::accept(&packet(op::REQUEST));
    let response = connection.control().unwrap();
    assert_eq!((response.src_cid.get(), response.dst_cid.get()), (2, 3));
    assert_eq!(
        (response.src_port.get(), response.dst_port.get()),
        (7, 1000)
    );
    assert_eq!(
        (response.buf_alloc.get(), response.fwd_cnt.get()),
        (BUF_ALLOC, 0)
    );
    assert_eq!((response.len.get(), response.type_.get()), (0, TYPE_STREAM));
}

#[test]
fn packets_have_their_outcomes() {
    let cases = [
        (packet(op::RST), Outcome::Ended { answer: false }),
        (packet(op::CREDIT_UPDATE), Outcome::Noted),
        (packet(op::CREDIT_REQUEST), Outcome::Noted),
        (payload(0), Outcome::Data),
        (payload(1), Outcome::Data),
        (payload(BUF_ALLOC), Outcome::Data),
        (payload(BUF_ALLOC + 1), Outcome::Ended { answer: true }),
        (payload(u32::MAX), Outcome::Ended { answer: true }),
        (shutdown(0), Outcome::Shut),
        (shutdown(SHUTDOWN_SEND), Outcome::Shut),
        (shutdown(SHUTDOWN_RECEIVE), Outcome::Shut),
        (shutdown(SHUTDOWN_BOTH), Outcome::Ended { answer: true }),
        (packet(op::REQUEST), Outcome::Ended { answer: true }),
        (packet(op::RESPONSE), Outcome::Ended { answer: true }),
        (packet(0), Outcome::Ended { answer: true }),
        (packet(8), Outcome::Ended { answer: true }),
        (packet(u16::MAX), Outcome::Ended { answer: true }),
        (
            Header {
                len: 1.into(),
                ..packet(op::CREDIT_UPDATE)
            },
            Outcome::Ended { answer: true },
        ),
        (
            Header {
                len: 1.into(),
                ..shutdown(SHUTDOWN_SEND)
            },
            Outcome::Ended { answer: true },
        ),
    ];
    for (header, outcome) in cases {
        assert_eq!(open().receive(&header), outcome, "{header:?}");
    }
}

#[test]
fn the_guest_may_have_as_much_outstanding_as_the_buffer_holds() {
    let mut connection = open();
    for _ in 0..4 {
        assert_eq!(connection.receive(&payload(BUF_ALLOC / 4)), Outcome::Data);
    }
    assert_eq!(connection.receive(&payload(0)), Outcome::Data);
    connection.forward(10);
    assert_eq!(connection.receive(&payload(10)), Outcome::Data);
    assert_eq!(
        connection.receive(&payload(1)),
        Outcome::Ended { answer: true }
    );
}

#[test]
fn the_guest_is_told_its_credit_in_steps_and_on_request() {
    let mut connection = open();
    assert_eq!(connection.receive(&payload(BUF_ALLOC)), Outcome::Data);
    connection.forward(CREDIT_STEP - 1);
    assert!(!connection.has_control());
    connection.forward(1);
    let update = connection.control().unwrap();
    assert_eq!(
        (update.op.get(), update.fwd_cnt.get()),
        (op::CREDIT_UPDATE, CREDIT_STEP)
    );
    assert!(connection.control().is_none());

    connection.receive(&packet(op::CREDIT_REQUEST));
    connection.receive(&packet(op::CREDIT_REQUEST));
    assert_eq!(connection.control().unwrap().op.get(), op::CREDIT_UPDATE);
    assert!(connection.control().is_none());
}

#[test]
fn any_packet_tells_the_credit() {
    let mut connection = open();
    connection.receive(&payload(CREDIT_STEP));
    connection.forward(CREDIT_STEP);
    assert_eq!(connection.data(1).fwd_cnt.get(), CREDIT_STEP);
    assert!(!connection.has_control());
}

#[test]
fn a_blocked_guest_is_always_told_when_all_is_forwarded() {
    for already in [0, 1, CREDIT_STEP - 1, CREDIT_STEP] {
        let mut connection = open();
        connection.receive(&payload(BUF_ALLOC));
        connection.forward(already);
        while connection.control().is_some() {}
        connection.forward(BUF_ALLOC - already);
        assert_eq!(connection.control().unwrap().fwd_cnt.get(), BUF_ALLOC);
    }
}

#[test]
fn counters_wrap_in_both_directions() {
    let mut connection = open();
    // 6 GiB each way in packets of the largest size.
    for round in 1..=(6_u64 << 30) / u64::from(MAX_PAYLOAD) {
        let total = u32::try_from((round * u64::from(MAX_PAYLOAD)) % (1 << 32)).unwrap();
        let header = Header {
            fwd_cnt: total.wrapping_sub(MAX_PAYLOAD).into(),
            buf_alloc: (2 * MAX_PAYLOAD).into(),
            ..payload(MAX_PAYLOAD)
        };
        assert_eq!(connection.receive(&header), Outcome::Data);
        connection.forward(MAX_PAYLOAD);
        assert_eq!(connection.allowance(), MAX_PAYLOAD);
        assert_eq!(connection.data(MAX_PAYLOAD).fwd_cnt.get(), total);
    }
}

#[test]
fn the_peers_credit_limits_what_is_sent() {
    // (its buffer, sent, what it says it has forwarded, allowance)
    let cases = [
        (1000, 0, 0, 1000),
        (1000, 400, 0, 600),
        (1000, 1000, 0, 0),
        (1000, 1000, 1000, 1000),
        (0, 0, 0, 0),
        (100, 1000, 0, 0),
        (u32::MAX, 0, 0, MAX_PAYLOAD),
        // More forwarded than it ever got.
        (1000, 0, 1, 0),
        (1000, 0, u32::MAX, 999),
        (1000, 10, 20, 0),
    ];
    for case in cases {
        let (alloc, sent, forwarded, allowance) = case;
        let mut connection = open();
        connection.data(sent);
        let update = Header {
            buf_alloc: alloc.into(),
            fwd_cnt: forwarded.into(),
            ..packet(op::CREDIT_UPDATE)
        };
        connection.receive(&update);
        assert_eq!(connection.allowance(), allowance, "{case:?}");
    }
}

#[test]
fn directions_end_independently() {
    let mut connection = open();
    assert_eq!(connection.receive(&shutdown(SHUTDOWN_SEND)), Outcome::Shut);
    assert!(!connection.guest_sends() && connection.guest_receives());
    assert_eq!(connection.allowance(), 1000);
    assert_eq!(
        connection.receive(&payload(1)),
        Outcome::Ended { answer: true }
    );

    let mut connection = open();
    assert_eq!(
        connection.receive(&shutdown(SHUTDOWN_RECEIVE)),
        Outcome::Shut
    );
    assert!(connection.guest_sends() && !connection.guest_receives());
    assert_eq!(connection.allowance(), 0);
    assert_eq!(connection.receive(&payload(1)), Outcome::Data);
    assert_eq!(
        connection.receive(&shutdown(SHUTDOWN_SEND)),
        Outcome::Ended { answer: true }
    );
}

#[test]
fn each_end_of_the_host_is_announced_once_and_both_together_when_they_meet() {
    let mut connection = open();
    connection.end_sending();
    assert_eq!(connection.allowance(), 0);
    let first = connection.control().unwrap();
    assert_eq!(
        (first.op.get(), first.flags.get()),
        (op::SHUTDOWN, SHUTDOWN_SEND)
    );
    connection.end_sending();
    assert!(!connection.has_control());
    connection.end_receiving();
    assert_eq!(connection.control().unwrap().flags.get(), SHUTDOWN_BOTH);
    assert!(!connection.has_control());

    let mut connection = Connection::accept(&packet(op::REQUEST));
    connection.end_sending();
    connection.end_receiving();
    assert_eq!(connection.control().unwrap().op.get(), op::RESPONSE);
    assert_eq!(connection.control().unwrap().flags.get(), SHUTDOWN_BOTH);
    assert!(!connection.has_control());
}
