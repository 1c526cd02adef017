//! Packets from the driver to the tap.

use super::*;

#[test]
fn a_packet_of_any_framing_arrives_as_it_is() {
    let mut bench = Bench::new(0, false);
    let bytes = packet(1526, 7);
    bench.put(BUFFERS, &bytes);
    // In one piece; with the header cut in the middle and an empty buffer; through an indirect table.
    bench.offer(TX, 0, &[(BUFFERS, 1526)], 0);
    let pieces = [
        (BUFFERS, 5),
        (BUFFERS, 0),
        (BUFFERS + 5, 100),
        (BUFFERS + 105, 1421),
    ];
    bench.offer(TX, 1, &pieces, 0);
    let table = BUFFERS + 0x1_0000;
    bench.driver.table(
        table,
        &[
            (BUFFERS, 12, VRING_DESC_F_NEXT, 1),
            (BUFFERS + 12, 1514, 0, 0),
        ],
    );
    bench.offer(TX, 9, &[(table, 32)], VRING_DESC_F_INDIRECT);
    bench.net.kicked();
    for _ in 0..3 {
        assert_eq!(bench.sent().unwrap(), bytes);
    }
    assert_eq!(bench.sent(), None);
    assert_eq!(bench.driver.used(TX), [(0, 0), (1, 0), (9, 0)]);
    assert_eq!(bench.interrupts(), 1);
    assert!(!bench.driver.needs_reset());
}

#[test]
fn the_notification_sends_unless_the_event_loop_is_at_it() {
    let mut bench = Bench::new(0, false);
    let bytes = packet(1526, 7);
    bench.put(BUFFERS, &bytes);
    bench.offer(TX, 0, &[(BUFFERS, 1526)], 0);
    let state = std::sync::Arc::clone(&bench.net.0);
    let turn = lock(&state);
    assert!(!bench.front.notified(1));
    drop(turn);
    assert!(!bench.front.notified(0), "that is the event loop's");
    assert_eq!(bench.sent(), None);
    assert!(bench.front.notified(1));
    assert_eq!(bench.sent().unwrap(), bytes);
    assert_eq!(bench.driver.used(TX), [(0, 0)]);
    assert_eq!(bench.interrupts(), 1);
    // What a turn leaves is the event loop's.
    for head in 0..100 {
        bench.offer(TX, head, &[(BUFFERS, 1526)], 0);
    }
    assert_eq!(bench.kicks(), 0);
    assert!(bench.front.notified(1));
    assert_eq!(bench.kicks(), 1);
}

#[test]
fn packets_of_several_frames_are_the_event_loops() {
    let mut bench = Bench::new(0, false);
    let (short, long) = (packet(FRAME_MAX, 1), packet(FRAME_MAX + 1, 2));
    bench.put(BUFFERS, &short);
    bench.put(BUFFERS + 0x1000, &long);
    bench.offer(TX, 0, &[(BUFFERS, FRAME_MAX as u32)], 0);
    bench.offer(TX, 1, &[(BUFFERS + 0x1000, FRAME_MAX as u32 + 1)], 0);
    bench.offer(TX, 2, &[(BUFFERS, FRAME_MAX as u32)], 0);
    assert!(bench.front.notified(1));
    assert_eq!(bench.sent().unwrap(), short);
    assert_eq!(bench.sent(), None);
    assert_eq!(bench.kicks(), 1);
    bench.net.kicked();
    assert_eq!(bench.sent().unwrap(), long);
    assert_eq!(bench.sent().unwrap(), short);
    assert_eq!(bench.driver.used(TX), [(0, 0), (1, 0), (2, 0)]);
}

#[test]
fn a_packet_too_long_is_dropped_and_the_longest_is_sent() {
    let mut bench = Bench::new(0, false);
    let bytes = packet(PACKET_MAX, 3);
    bench.put(BUFFERS, &bytes);
    bench.offer(TX, 0, &[(BUFFERS, PACKET_MAX as u32 + 1)], 0);
    bench.offer(TX, 1, &[(BUFFERS, PACKET_MAX as u32)], 0);
    bench.net.kicked();
    assert_eq!(bench.driver.used(TX), [(0, 0), (1, 0)]);
    assert_eq!(bench.sent().unwrap(), bytes);
    assert_eq!(bench.sent(), None);
}

#[test]
fn packets_wait_for_a_full_tap_and_keep_their_order() {
    for event_idx in [false, true] {
        let mut bench = Bench::new(0, event_idx);
        for head in 0..200 {
            let at = BUFFERS + u64::from(head) * 2000;
            bench.put(at, &packet(2000, head as u8));
            bench.offer(TX, head, &[(at, 2000)], 0);
        }
        bench.net.kicked();
        while bench.kicks() > 0 {
            bench.net.kicked();
        }
        let first = bench.driver.used(TX).len();
        assert!((1..200).contains(&first), "a socket takes some packets");
        // No turn but the tap's makes a difference.
        bench.net.kicked();
        assert_eq!(bench.driver.used(TX).len(), first);
        assert_eq!(bench.kicks(), 0, "the loop does not spin");
        let mut head = 0;
        while head < 200 {
            while let Some(bytes) = bench.sent() {
                assert_eq!(bytes, packet(2000, head));
                head += 1;
            }
            bench.net.tap_ready();
        }
        assert_eq!(bench.driver.used(TX).len(), 200);
        assert_eq!(bench.sent(), None);
    }
}

#[test]
fn what_a_tap_refuses_is_dropped() {
    let mut bench = Bench::new(0, false);
    drop(std::mem::replace(
        &mut bench.peer,
        File::open("/dev/null").unwrap(),
    ));
    for head in 0..3 {
        bench.offer(TX, head, &[(BUFFERS, 64)], 0);
    }
    bench.net.kicked();
    assert_eq!(bench.driver.used(TX).len(), 3);
    assert!(!bench.driver.needs_reset());
}

#[test]
fn a_turn_is_bounded_and_asks_for_the_next() {
    let (mut front, net) = Net::new(MAC, bottomless());
    let driver = Driver::new(&QUEUE_SIZES);
    front.activate(driver.activation(true)).unwrap();
    driver.kicks[TX].read().unwrap();
    driver.descriptors(TX, &[(BUFFERS, 64, 0, 0)]);
    for _ in 0..150 {
        driver.offer(TX, 0);
    }
    let mut turns = 0;
    let used = |turns: usize| (turns * tx::BATCH).min(150);
    loop {
        net.kicked();
        turns += 1;
        assert_eq!(driver.used(TX).len(), used(turns));
        if driver.kicks[TX].read().is_err() {
            break;
        }
    }
    assert_eq!(turns, 3);
}

#[test]
fn the_end_of_the_guest_sends_all_that_is_queued() {
    let (mut front, net) = Net::new(MAC, bottomless());
    let driver = Driver::new(&QUEUE_SIZES);
    front.activate(driver.activation(true)).unwrap();
    driver.descriptors(TX, &[(BUFFERS, 64, 0, 0)]);
    for _ in 0..256 {
        driver.offer(TX, 0);
    }
    net.drain();
    assert_eq!(driver.used(TX).len(), 256);
}

#[test]
fn an_interrupt_comes_when_the_driver_wants_it() {
    let mut bench = Bench::new(0, true);
    // `used_event`, behind the available ring.
    let event = 0x1000 + 0x4000 + 0x2000 + 4 + 2 * 256;
    bench.put(event, &[2, 0]);
    bench.offer(TX, 0, &[(BUFFERS, 64)], 0);
    bench.offer(TX, 1, &[(BUFFERS, 64)], 0);
    bench.net.kicked();
    assert_eq!(bench.interrupts(), 0);
    bench.offer(TX, 2, &[(BUFFERS, 64)], 0);
    bench.net.kicked();
    assert_eq!(bench.interrupts(), 1);
    bench.net.kicked();
    assert_eq!(bench.interrupts(), 0);
    while bench.sent().is_some() {}
}
