//! Drivers that break the rules, and resets at every moment.

use super::*;

/// The device has stopped; after a reset it works again.
fn stopped(mut bench: Bench, what: &str) {
    assert!(bench.driver.is_blamed(), "{what}");
    bench.net.kicked();
    bench.net.tap_ready();
    assert!(bench.driver.fault().is_none(), "{what}");
    assert_eq!(bench.driver.used(TX), [], "{what}");
    assert_eq!(bench.driver.used(RX), [], "{what}");
    bench.front.reset();
    while bench.sent().is_some() {}
    bench.driver = Driver::new(&QUEUE_SIZES);
    bench.activate(0, false);
    bench.offer(TX, 0, &[(BUFFERS, 64)], 0);
    bench.net.kicked();
    assert_eq!(bench.driver.used(TX), [(0, 0)], "{what}");
    assert_eq!(bench.sent().unwrap().len(), 64, "{what}");
}

#[test]
fn broken_chains_stop_the_device() {
    for queue in [RX, TX] {
        for (what, descriptors, indirect) in broken_chains() {
            let mut bench = Bench::new(MERGEABLE, false);
            bench.driver.descriptors(queue, &descriptors);
            bench.driver.table(BUFFERS, &indirect);
            bench.driver.offer(queue, 0);
            if queue == RX {
                bench.deliver(&packet(60, 0));
                bench.net.tap_ready();
            } else {
                bench.net.kicked();
            }
            stopped(bench, what);
        }
    }
}

#[test]
fn a_broken_chain_behind_a_good_one_stops_the_device() {
    let mut bench = Bench::new(MERGEABLE, false);
    bench.room(0, BUFFERS, 100);
    bench.room(1, u64::MAX - 3, 100);
    bench.deliver(&packet(150, 0));
    bench.net.tap_ready();
    stopped(bench, "the second chain of a packet");
}

#[test]
fn chains_of_the_wrong_direction_or_without_a_header_stop_the_device() {
    for (what, queue, length, flags) in [
        ("no room for the header", RX, 11, VRING_DESC_F_WRITE),
        ("readable", RX, 100, 0),
        ("no header", TX, 11, 0),
        ("nothing at all", TX, 0, 0),
        ("writable", TX, 100, VRING_DESC_F_WRITE),
    ] {
        let mut bench = Bench::new(MERGEABLE, false);
        bench.offer(queue, 0, &[(BUFFERS, length)], flags);
        bench.deliver(&packet(60, 0));
        bench.net.tap_ready();
        bench.net.kicked();
        stopped(bench, what);
    }
}

#[test]
fn broken_rings_stop_the_device() {
    for queue in [RX, TX] {
        for broken in [
            |driver: &Driver, queue| driver.set_available(queue, 257),
            |driver: &Driver, queue| driver.offer(queue, 256),
        ] {
            let mut bench = Bench::new(MERGEABLE, true);
            broken(&bench.driver, queue);
            bench.deliver(&packet(60, 0));
            bench.net.tap_ready();
            bench.net.kicked();
            stopped(bench, "ring");
        }
    }
}

#[test]
fn a_ring_that_shrinks_while_a_packet_waits_is_harmless_or_broken() {
    let mut bench = Bench::new(MERGEABLE, true);
    bench.room(0, BUFFERS, 100);
    bench.room(1, BUFFERS, 100);
    bench.deliver(&packet(1000, 0));
    bench.net.tap_ready();
    for available in [0, 1, 2] {
        bench.driver.set_available(RX, available);
        bench.net.kicked();
        assert_eq!(bench.driver.used(RX), []);
    }
    bench.driver.set_available(RX, 0xffff);
    bench.net.kicked();
    stopped(bench, "the index went back beyond what was taken");
}

#[test]
fn a_reset_forgets_what_was_under_way() {
    let mut bench = Bench::new(MERGEABLE, true);
    // A received packet waits for buffers, and packets to be sent for the tap.
    bench.room(0, BUFFERS, 100);
    bench.deliver(&packet(1000, 0));
    bench.net.tap_ready();
    for head in 0..200 {
        bench.offer(TX, head, &[(BUFFERS, 2000)], 0);
    }
    bench.net.kicked();
    while bench.kicks() > 0 {
        bench.net.kicked();
    }
    let sent = bench.driver.used(TX).len();
    assert!(sent < 200);
    bench.front.reset();
    let mut arrived = 0;
    while bench.sent().is_some() {
        arrived += 1;
    }
    bench.net.tap_ready();
    bench.net.kicked();
    assert_eq!((arrived, bench.sent()), (sent, None));
    assert_eq!(bench.driver.used(TX).len(), sent);
    // A new driver gets what comes now.
    bench.driver = Driver::new(&QUEUE_SIZES);
    bench.activate(MERGEABLE, true);
    bench.room(0, BUFFERS, 2000);
    bench.deliver(&packet(70, 1));
    bench.net.tap_ready();
    assert_eq!(bench.driver.used(RX), [(0, 70)]);
    assert_eq!(bench.get(BUFFERS, 70), received(packet(70, 1), 1));
    bench.front.reset();
    bench.front.reset();
}

#[test]
fn a_missing_queue_and_offloads_without_checksums_are_refused() {
    for queue in [RX, TX] {
        let driver = Driver::new(&QUEUE_SIZES);
        let mut activation = driver.activation(true);
        activation.queues[queue] = None;
        assert!(Net::new(MAC, bottomless()).0.activate(activation).is_err());
    }
    for feature in [VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6] {
        let driver = Driver::new(&QUEUE_SIZES);
        let mut activation = driver.activation(true);
        activation.features = 1 << feature;
        assert!(Net::new(MAC, bottomless()).0.activate(activation).is_err());
    }
}
