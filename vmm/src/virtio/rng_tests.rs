//! The rng device against a driver, correct and hostile.

use super::super::VirtioDevice;
use super::super::requests::{self, Front, Work};
use super::super::test_driver::{BUFFERS, Driver, VRING_DESC_F_WRITE, broken_chains};
use super::*;
use vm_memory::{Bytes, GuestAddress};

fn device() -> (Driver, Front<Rng>, Work<Rng>) {
    let driver = Driver::new(Rng::QUEUE_SIZES);
    let (mut rng, work) = requests::device();
    rng.activate(driver.activation(false)).unwrap();
    (driver, rng, work)
}

#[test]
fn requests_get_random_bytes_up_to_the_limit() {
    let (driver, _rng, work) = device();
    assert_eq!(
        driver.kicks[0].read().unwrap(),
        1,
        "activation looks at the queue once"
    );
    driver.descriptors(
        0,
        &[
            (BUFFERS, 64, VRING_DESC_F_WRITE, 0),
            (BUFFERS, 4096, VRING_DESC_F_WRITE, 0),
        ],
    );
    driver.offer(0, 0);
    work.process();
    assert_eq!(driver.used(0), [(0, 64)]);
    assert_eq!(driver.irqfd.read().unwrap(), 1);
    let mut bytes = [0; 128];
    driver
        .memory
        .read_slice(&mut bytes, GuestAddress(BUFFERS))
        .unwrap();
    assert!(bytes[..64].iter().any(|&byte| byte != 0));
    assert_eq!(bytes[64..], [0; 64]);
    driver.offer(0, 1);
    work.process();
    assert_eq!(driver.used(0)[1], (1, 256));
    work.process();
    assert!(driver.kicks[0].read().is_err());
}

#[test]
fn a_request_without_room_is_returned_empty() {
    let (driver, _rng, work) = device();
    driver.descriptors(0, &[(BUFFERS, 0, VRING_DESC_F_WRITE, 0)]);
    driver.offer(0, 0);
    work.process();
    assert_eq!(driver.used(0), [(0, 0)]);
    assert!(!driver.needs_reset());
}

#[test]
fn broken_chains_stop_the_device() {
    for (what, descriptors, indirect) in broken_chains() {
        let (driver, mut rng, work) = device();
        driver.descriptors(0, &descriptors);
        driver.table(BUFFERS, &indirect);
        driver.offer(0, 0);
        work.process();
        assert!(driver.is_blamed(), "{what}");
        assert_eq!(driver.used(0), [], "{what}");
        // Until it is reset and activated again.
        rng.reset();
        driver.set_available(0, 0);
        driver.descriptors(0, &[(BUFFERS, 8, VRING_DESC_F_WRITE, 0)]);
        driver.offer(0, 0);
        work.process();
        assert_eq!(driver.used(0), [], "{what}");
        rng.activate(driver.activation(false)).unwrap();
        work.process();
        assert_eq!(driver.used(0), [(0, 8)], "{what}");
    }
}

#[test]
fn broken_rings_stop_the_device() {
    let (driver, _rng, work) = device();
    driver.set_available(0, 9);
    work.process();
    assert!(driver.is_blamed());

    let (driver, _rng, work) = device();
    driver.offer(0, 8);
    work.process();
    assert!(driver.is_blamed());

    let (driver, _rng, work) = device();
    driver.descriptors(0, &[(BUFFERS, 8, 0, 0)]);
    driver.offer(0, 0);
    work.process();
    assert!(
        driver.is_blamed(),
        "the driver offers bytes instead of asking for some"
    );
}

#[test]
fn nothing_happens_without_queues() {
    let (rng, work) = requests::device::<Rng>();
    work.process();
    drop(rng);
    work.process();
}
