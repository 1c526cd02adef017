//! Reports of free pages, correct and hostile.

use vm_memory::{Bytes, GuestAddress};

use super::super::VirtioDevice;
use super::super::requests::{self, Front, Work};
use super::super::test_driver::{
    BUFFERS, Driver, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, broken_chains,
};
use super::*;

const PAGE: u64 = 4096;

fn device() -> (Driver, Front<Balloon>, Work<Balloon>) {
    let driver = Driver::new(Balloon::QUEUE_SIZES);
    let (mut balloon, work) = requests::device();
    balloon.activate(driver.activation(false)).unwrap();
    (driver, balloon, work)
}

fn fill(driver: &Driver, at: u64, length: u64) {
    let bytes = vec![7; usize::try_from(length).unwrap()];
    driver.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
}

fn byte(driver: &Driver, at: u64) -> u8 {
    driver.memory.read_obj(GuestAddress(at)).unwrap()
}

#[test]
fn whole_pages_are_given_back() {
    let (driver, _balloon, work) = device();
    fill(&driver, BUFFERS, 16 * PAGE);
    driver.descriptors(
        2,
        &[
            (
                BUFFERS + PAGE,
                2 * 4096,
                VRING_DESC_F_WRITE | VRING_DESC_F_NEXT,
                1,
            ),
            // Parts of pages stay.
            (BUFFERS + 5 * PAGE + 1, 2 * 4096, VRING_DESC_F_WRITE, 0),
            (BUFFERS + 9 * PAGE, 4095, VRING_DESC_F_WRITE, 0),
        ],
    );
    driver.offer(2, 0);
    work.process();
    assert_eq!(driver.used(2), [(0, 0)]);
    assert_eq!(driver.irqfd.read().unwrap(), 1);
    driver.offer(2, 2);
    work.process();
    assert_eq!(driver.used(2)[1], (2, 0));
    let pages: Vec<u64> = (0..16)
        .filter(|page| byte(&driver, BUFFERS + page * PAGE + 1) == 0)
        .collect();
    assert_eq!(pages, [1, 2, 6]);
    assert_eq!(byte(&driver, BUFFERS + 7 * PAGE), 7);
}

#[test]
fn one_report_is_served_at_a_time() {
    let (driver, _balloon, work) = device();
    driver.kicks[2].read().unwrap();
    driver.descriptors(
        2,
        &[
            (BUFFERS, 4096, VRING_DESC_F_WRITE, 0),
            (BUFFERS, 4096, VRING_DESC_F_WRITE, 0),
        ],
    );
    driver.offer(2, 0);
    driver.offer(2, 1);
    work.process();
    assert_eq!(driver.used(2).len(), 1);
    assert_eq!(driver.kicks[2].read().unwrap(), 1, "there are more");
    work.process();
    assert_eq!(driver.used(2).len(), 2);
}

#[test]
fn what_is_no_report_stops_the_device() {
    for (what, descriptors, indirect) in broken_chains() {
        let (driver, _balloon, work) = device();
        driver.descriptors(2, &descriptors);
        driver.table(BUFFERS, &indirect);
        driver.offer(2, 0);
        work.process();
        assert!(driver.is_blamed(), "{what}");
    }
    let (driver, _balloon, work) = device();
    fill(&driver, BUFFERS, PAGE);
    driver.descriptors(2, &[(BUFFERS, 4096, 0, 0)]);
    driver.offer(2, 0);
    work.process();
    assert!(driver.is_blamed(), "a report that is not to be written");
    assert_eq!(byte(&driver, BUFFERS), 7);
}

#[test]
fn what_is_inflated_stays() {
    let (driver, _balloon, work) = device();
    fill(&driver, BUFFERS, PAGE);
    driver.descriptors(0, &[(BUFFERS, 4096, VRING_DESC_F_WRITE, 0)]);
    driver.offer(0, 0);
    work.process();
    assert_eq!(driver.used(0), []);
    assert_eq!(byte(&driver, BUFFERS), 7);
}
