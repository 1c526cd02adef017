//! Packets from the tap to the driver.

use super::*;

#[test]
fn a_packet_arrives_with_its_header() {
    for features in [0, MERGEABLE] {
        let mut bench = Bench::new(features, false);
        // The header is cut where `num_buffers` is.
        let pieces = [(BUFFERS, 11), (BUFFERS + 11, 2000)];
        bench.offer(RX, 0, &pieces, VRING_DESC_F_WRITE);
        bench.deliver(&packet(1000, 1));
        bench.net.tap_ready();
        assert_eq!(bench.driver.used(RX), [(0, 1000)]);
        assert_eq!(bench.get(BUFFERS, 1000), received(packet(1000, 1), 1));
        assert_eq!(bench.get(BUFFERS + 1000, 8), [0; 8]);
        assert_eq!(bench.interrupts(), 1);
    }
}

#[test]
fn packets_are_packed_into_as_many_buffers_as_they_need() {
    let mut bench = Bench::new(MERGEABLE, false);
    for head in 0..12 {
        bench.room(head, BUFFERS + u64::from(head) * 1000, 1000);
    }
    // The first is not expected to be so long; the second is; the third is expected to be longer.
    let mut expected = Vec::new();
    for (first, length) in [(0, 3500), (4, 3999), (8, 900), (9, 1001), (11, 20)] {
        let packet = packet(length, first as u8);
        let buffers = length.div_ceil(1000);
        bench.deliver(&packet);
        bench.net.tap_ready();
        expected.extend((0..buffers).map(|index| {
            let part = (length - index * 1000).min(1000);
            ((first + index) as u32, part as u32)
        }));
        assert_eq!(bench.driver.used(RX), expected);
        assert_eq!(
            bench.get(BUFFERS + first as u64 * 1000, length),
            received(packet, buffers as u16)
        );
    }
}

#[test]
fn the_longest_packet_arrives() {
    let mut bench = Bench::new(MERGEABLE, true);
    for round in 0..2_u16 {
        let first = round * 43;
        for head in first..first + 43 {
            bench.room(head, BUFFERS + u64::from(head - first) * 1526, 1526);
        }
        bench.deliver(&packet(PACKET_MAX, round as u8));
        bench.net.tap_ready();
        assert_eq!(bench.driver.used(RX).len(), usize::from(first) + 43);
        let expected = received(packet(PACKET_MAX, round as u8), 43);
        assert!(bench.get(BUFFERS, PACKET_MAX) == expected);
    }
}

#[test]
fn without_buffers_the_tap_is_not_read() {
    for event_idx in [false, true] {
        let mut bench = Bench::new(MERGEABLE, event_idx);
        bench.deliver(&packet(100, 1));
        bench.deliver(&packet(100, 2));
        for _ in 0..3 {
            bench.net.tap_ready();
            bench.net.kicked();
            assert!(bench.tap_has_packets());
            assert_eq!(bench.kicks(), 0, "the loop does not spin");
        }
        bench.room(0, BUFFERS, 100);
        bench.room(1, BUFFERS + 100, 100);
        bench.net.kicked();
        assert_eq!(bench.driver.used(RX), [(0, 100), (1, 100)]);
        assert!(!bench.tap_has_packets());
        assert_eq!(bench.get(BUFFERS, 100), received(packet(100, 1), 1));
        assert_eq!(bench.get(BUFFERS + 100, 100), received(packet(100, 2), 1));
    }
}

#[test]
fn a_packet_waits_for_the_buffers_it_lacks() {
    for event_idx in [false, true] {
        let mut bench = Bench::new(MERGEABLE, event_idx);
        bench.room(0, BUFFERS, 1000);
        bench.deliver(&packet(2500, 1));
        bench.deliver(&packet(50, 2));
        bench.net.tap_ready();
        assert_eq!(bench.driver.used(RX), []);
        bench.room(1, BUFFERS + 1000, 1000);
        for _ in 0..3 {
            bench.net.kicked();
            bench.net.tap_ready();
            assert_eq!(bench.driver.used(RX), []);
            assert_eq!(bench.kicks(), 0, "the loop does not spin");
        }
        assert!(bench.tap_has_packets(), "packets keep their order");
        bench.room(2, BUFFERS + 2000, 1000);
        bench.room(3, BUFFERS + 3000, 1000);
        bench.net.kicked();
        assert_eq!(
            bench.driver.used(RX),
            [(0, 1000), (1, 1000), (2, 500), (3, 50)]
        );
        assert_eq!(bench.get(BUFFERS, 2500), received(packet(2500, 1), 3));
        assert_eq!(bench.get(BUFFERS + 3000, 50), received(packet(50, 2), 1));
    }
}

#[test]
fn the_driver_notifies_of_the_buffers_that_are_lacking() {
    let mut bench = Bench::new(MERGEABLE, true);
    // `avail_event`, behind the used ring: the driver notifies when it goes beyond it.
    let event = 0x1000 + 0x2800 + 4 + 8 * 256;
    for head in 0..3 {
        bench.room(head, BUFFERS, 100);
    }
    bench.deliver(&packet(2500, 1));
    bench.net.tap_ready();
    assert_eq!(bench.get(event, 2), [3, 0]);
    assert_eq!(bench.driver.used(RX), []);
}

#[test]
fn a_packet_too_long_for_its_buffers_is_dropped() {
    // Not mergeable: one buffer must do.
    let mut bench = Bench::new(0, false);
    bench.room(0, BUFFERS, 1000);
    bench.room(1, BUFFERS + 1000, 1000);
    bench.deliver(&packet(1001, 1));
    bench.deliver(&packet(1000, 2));
    bench.net.tap_ready();
    assert_eq!(bench.driver.used(RX), [(0, 1000)]);
    assert_eq!(bench.get(BUFFERS, 1000), received(packet(1000, 2), 1));

    // Mergeable, but so small that too many would be needed.
    let mut bench = Bench::new(MERGEABLE, false);
    for head in 0..200 {
        bench.room(head, BUFFERS + u64::from(head) * 12, 12);
    }
    let most = rx::MAX_CHAINS * 12;
    bench.deliver(&packet(most + 1, 1));
    bench.deliver(&packet(most, 2));
    bench.net.tap_ready();
    assert_eq!(bench.driver.used(RX).len(), rx::MAX_CHAINS);
    assert_eq!(
        bench.get(BUFFERS, most),
        received(packet(most, 2), rx::MAX_CHAINS as u16)
    );
}

#[test]
fn chains_of_many_pieces_are_bounded() {
    let mut bench = Bench::new(MERGEABLE, false);
    // 256 pieces of one byte each: no fourth such chain is looked at for a packet.
    let table = BUFFERS + 0x1_0000;
    let pieces: Vec<Descriptor> = (0..256)
        .map(|index| {
            let next = if index < 255 { VRING_DESC_F_NEXT } else { 0 };
            (
                BUFFERS + index,
                1,
                VRING_DESC_F_WRITE | next,
                index as u16 + 1,
            )
        })
        .collect();
    bench.driver.table(table, &pieces);
    for head in 0..60 {
        bench.offer(RX, head, &[(table, 4096)], VRING_DESC_F_INDIRECT);
    }
    for seed in 0..2 {
        // Twice, so that it is read into all of them at once too.
        bench.deliver(&packet(768, seed));
        bench.net.tap_ready();
        assert_eq!(bench.driver.used(RX).len(), 3 * (usize::from(seed) + 1));
    }
    let used = bench.driver.used(RX).len();
    bench.deliver(&packet(769, 1));
    bench.net.tap_ready();
    assert_eq!(bench.driver.used(RX).len(), used, "dropped");
    bench.deliver(&packet(256, 1));
    bench.net.tap_ready();
    assert_eq!(bench.driver.used(RX).len(), used + 1);
}

#[test]
fn a_turn_is_bounded_by_the_chains_it_looks_at() {
    let mut bench = Bench::new(MERGEABLE, false);
    // Each of them is dropped after a look at as many chains as there may be.
    for head in 0..rx::BATCH as u16 + 60 {
        bench.room(head, BUFFERS, 12);
    }
    for _ in 0..5 {
        bench.deliver(&packet(rx::MAX_CHAINS * 12 + 1, 0));
    }
    bench.net.tap_ready();
    assert_eq!(bench.kicks(), 1, "another turn is asked for");
    assert!(bench.tap_has_packets());
    bench.net.kicked();
    bench.net.kicked();
    assert!(!bench.tap_has_packets());
    assert_eq!(bench.driver.used(RX), []);
}

#[test]
fn what_is_no_packet_and_a_tap_that_is_gone_do_no_harm() {
    let mut bench = Bench::new(MERGEABLE, false);
    bench.room(0, BUFFERS, 2000);
    bench.deliver(&[1; HEADER - 1]);
    bench.deliver(&packet(HEADER, 0));
    bench.net.tap_ready();
    assert_eq!(bench.driver.used(RX), [(0, HEADER as u32)]);
    bench.room(1, BUFFERS, 2000);
    drop(std::mem::replace(
        &mut bench.peer,
        File::open("/dev/null").unwrap(),
    ));
    bench.net.tap_ready();
    bench.net.kicked();
    assert_eq!(bench.kicks(), 0);
    assert_eq!(bench.driver.used(RX).len(), 1);
}
