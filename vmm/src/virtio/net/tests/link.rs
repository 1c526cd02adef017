//! The configuration space, and a real tap.

use std::io::BufRead;
use std::thread;

use super::*;

fn socket() -> OwnedFd {
    UnixDatagram::pair().unwrap().0.into()
}

#[test]
fn the_configuration_is_the_address() {
    let (front, _net) = Net::new(MAC, bottomless());
    assert_eq!(*front.config(), [2, b'c', b'h', b'i', b't', 0]);
}

/// A driver that goes on with a device whose tap has been taken away gets and sends nothing, not even by the next tap,
/// until it starts anew and learns of the new address.
#[test]
fn a_tap_is_taken_away_and_another_one_given() {
    let mut bench = Bench::new(0, false);
    bench.room(0, BUFFERS, 2048);
    bench.net.detach();
    assert!(bench.net.is_free());
    assert_eq!(
        bench.peer.write(&packet(72, 1)).unwrap_err().kind(),
        io::ErrorKind::ConnectionRefused,
        "it is closed"
    );
    let send = |bench: &mut Bench| {
        bench.put(BUFFERS + 0x1000, &packet(72, 2));
        bench.offer(TX, 8, &[(BUFFERS + 0x1000, 72)], 0);
        assert!(bench.front.notified(TX as u32));
        bench.net.kicked();
        bench.net.tap_ready();
    };
    send(&mut bench);

    let (tap, peer) = UnixDatagram::pair().unwrap();
    for socket in [&tap, &peer] {
        socket.set_nonblocking(true).unwrap();
    }
    bench.peer = OwnedFd::from(peer).into();
    let other = [2, 0, 0, 0, 0, 9];
    bench.net.attach(other, Tap::ready_made(OwnedFd::from(tap)));
    assert!(!bench.net.is_free());
    send(&mut bench);
    assert_eq!(bench.sent(), None);
    assert_eq!(*bench.front.config(), other);
    assert_eq!(bench.front.config_generation(), 2);

    bench.front.reset();
    bench.driver = Driver::new(&QUEUE_SIZES);
    bench.activate(0, false);
    send(&mut bench);
    assert_eq!(bench.sent(), Some(packet(72, 2)));
}

/// A driver that is started while there is no tap has a device that does not work.
#[test]
fn without_a_tap_nothing_is_activated() {
    let (mut front, net) = Net::new(MAC, bottomless());
    net.detach();
    let activation = Driver::new(&QUEUE_SIZES).activation(true);
    assert!(front.activate(activation).is_err());
}

#[test]
fn what_is_no_tap_is_refused() {
    let error = Tap::new(socket()).err().unwrap();
    assert!(matches!(
        error,
        Error::System {
            call: "TUNGETIFF",
            ..
        }
    ));
    let fresh = File::options().read(true).write(true).open("/dev/net/tun");
    assert!(Tap::new(fresh.unwrap().into()).is_err());
}

/// A packet that the kernel of a network namespace of its own gets, and one that it sends. Needs the right to make
/// both.
#[test]
fn a_real_tap_takes_and_gives_packets() {
    let test = || {
        sys::test::enter_new_network_namespace();
        let plain = sys::test::make_tap("plain", libc::IFF_TAP | libc::IFF_NO_PI);
        assert!(matches!(Tap::new(plain), Err(Error::Flags(0x1002))));

        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let tap = Tap::new(sys::test::make_tap("tap", flags)).unwrap();
        let (mut front, net) = Net::new(MAC, tap);
        let mut activation = Driver::new(&QUEUE_SIZES).activation(true);
        activation.features = FEATURES;
        front.activate(activation).unwrap();
        let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        let set = lock(&net.0).tap.as_ref().unwrap().offloads;
        assert_eq!(set, offloads, "set by TUNSETOFFLOAD");

        let driver = Driver::new(&QUEUE_SIZES);
        let mut activation = driver.activation(true);
        activation.features = FEATURES;
        front.activate(activation).unwrap();
        // Down: it refuses packets.
        let mut frame = packet(72, 0);
        frame[HEADER..HEADER + 14]
            .copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 8, 6]);
        driver
            .memory
            .write_slice(&frame, GuestAddress(BUFFERS))
            .unwrap();
        driver.descriptors(TX, &[(BUFFERS, 72, 0, 0)]);
        driver.offer(TX, 0);
        net.kicked();
        assert_eq!(driver.used(TX).len(), 1);
        assert_eq!(counters("tap").0, [0, 0]);

        sys::test::set_up("tap");
        driver.offer(TX, 0);
        net.kicked();
        assert_eq!(driver.used(TX).len(), 2);
        assert_eq!(counters("tap").0, [60, 1], "bytes and packets received");

        // A link that comes up makes the kernel say so to its multicast groups.
        for head in 0..16_u16 {
            let at = BUFFERS + 0x1000 + u64::from(head) * 2048;
            driver.table(
                0x1000 + u64::from(head) * 16,
                &[(at, 2048, VRING_DESC_F_WRITE, 0)],
            );
            driver.offer(RX, head);
        }
        let epoll = Epoll::new().unwrap();
        let fd = lock(&net.0).tap.as_ref().unwrap().as_raw_fd();
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, fd, event).unwrap();
        let mut ready = [EpollEvent::default()];
        assert_eq!(epoll.wait(20_000, &mut ready).unwrap(), 1);
        net.tap_ready();
        let used = driver.used(RX);
        assert!(!used.is_empty());
        let mut packet = [0; HEADER + 14];
        let at = GuestAddress(BUFFERS + 0x1000);
        driver.memory.read_slice(&mut packet, at).unwrap();
        assert_eq!(packet[10..12], [1, 0]);
        assert_eq!(packet[12..14], [0x33, 0x33], "IPv6 multicast");
        let total: u64 = used
            .iter()
            .map(|&(_, length)| u64::from(length) - HEADER as u64)
            .sum();
        let ([_, _], [bytes, packets]) = counters("tap");
        assert!(packets >= used.len() as u64 && bytes >= total);
    };
    thread::spawn(test).join().unwrap();
}

/// Bytes and packets that an interface of this thread's namespace has received and sent.
fn counters(interface: &str) -> ([u64; 2], [u64; 2]) {
    let file = File::open("/proc/thread-self/net/dev").unwrap();
    let line = std::io::BufReader::new(file)
        .lines()
        .map(Result::unwrap)
        .find(|line| line.trim_start().starts_with(&format!("{interface}:")))
        .unwrap();
    let (_, numbers) = line.split_once(':').unwrap();
    let numbers: Vec<u64> = numbers
        .split_whitespace()
        .map(|number| number.parse().unwrap())
        .collect();
    ([numbers[0], numbers[1]], [numbers[8], numbers[9]])
}
