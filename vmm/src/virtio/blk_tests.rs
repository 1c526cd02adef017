//! The block device against a driver, correct and hostile.

#![allow(
    clippy::cast_possible_truncation,
    reason = "small numbers of the tests' own"
)]

use std::io::{Read, Write};
use std::thread;

use super::super::test_driver::{
    BUFFERS, Descriptor, Driver, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, broken_chains,
};
use super::*;
use crate::address_space::AddressSpace;
use crate::threads::Thread;
use crate::threads::tests::threads;
use vm_memory::{Bytes, GuestAddress};

const NEXT: u32 = VRING_DESC_F_NEXT;
const WRITE: u32 = VRING_DESC_F_WRITE;

/// Sectors of the disk.
const SECTORS: usize = 64;

/// Where a request's parts are.
const DATA: u64 = BUFFERS + 0x1000;
const STATUS: u64 = BUFFERS + 0x800;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPPORTED: u8 = VIRTIO_BLK_S_UNSUPP as u8;

struct Bench {
    driver: Driver,
    blk: Blk,
    file: File,
    served: usize,
}

impl Bench {
    /// A disk whose sectors are filled with their number, and a few bytes that are no whole sector.
    fn new(read_only: bool) -> Bench {
        let mut file = tempfile::tempfile().unwrap();
        for sector in 0..SECTORS {
            file.write_all(&[sector as u8; SECTOR as usize]).unwrap();
        }
        file.write_all(b"tail").unwrap();
        let disk = Disk::new(file.try_clone().unwrap().into(), read_only, "disk").unwrap();
        let driver = Driver::new(&QUEUE_SIZES);
        let disk = Arc::new(disk);
        let space = AddressSpace::new(driver.memory.clone(), None);
        let pool = Arc::new(Pool::new(space, Arc::clone(&disk)).unwrap());
        pool.watch_queues(&driver.kicks).unwrap();
        pool.start(&threads(|_| Ok(())), Thread::Blk).unwrap();
        let mut blk = Blk::new(&disk, pool);
        blk.activate(driver.activation(true)).unwrap();
        Bench {
            driver,
            blk,
            file,
            served: 0,
        }
    }

    /// Makes a request of these descriptors after the header and waits for its status.
    fn request(&mut self, kind: u32, sector: u64, rest: &[Descriptor]) -> u8 {
        let mut header = Vec::from(kind.to_le_bytes());
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.driver
            .memory
            .write_slice(&header, GuestAddress(BUFFERS))
            .unwrap();
        self.driver
            .memory
            .write_obj(0xee_u8, GuestAddress(STATUS))
            .unwrap();
        let mut all = vec![(BUFFERS, 16, NEXT, 1)];
        for (index, &(at, length, flags, _)) in rest.iter().enumerate() {
            all.push((at, length, flags | NEXT, index as u16 + 2));
        }
        all.push((STATUS, 1, WRITE, 0));
        self.send(&all)
    }

    fn send(&mut self, descriptors: &[Descriptor]) -> u8 {
        self.driver.descriptors(0, descriptors);
        self.driver.offer(0, 0);
        self.driver.kick(0);
        self.served += 1;
        until(|| self.driver.used(0).len() == self.served);
        self.driver.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    fn data(&self, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        let at = GuestAddress(DATA);
        self.driver.memory.read_slice(&mut data, at).unwrap();
        data
    }

    fn content(&mut self) -> Vec<u8> {
        let mut content = Vec::new();
        self.file.seek(SeekFrom::Start(0)).unwrap();
        self.file.read_to_end(&mut content).unwrap();
        content
    }
}

fn until(mut condition: impl FnMut() -> bool) {
    let begin = std::time::Instant::now();
    while !condition() {
        assert!(begin.elapsed().as_secs() < 60, "it does not happen");
        thread::yield_now();
    }
}

#[test]
fn the_configuration_tells_whole_sectors() {
    let mut bench = Bench::new(false);
    let config = bench.blk.config();
    assert_eq!(config[..8], (SECTORS as u64).to_le_bytes());
    assert_eq!(config[12..16], SEGMENTS.to_le_bytes());
    assert_eq!(config.len(), 16);
    assert_eq!(bench.blk.features() & 1 << VIRTIO_BLK_F_RO, 0);
    bench.blk.reset();
    assert_ne!(Bench::new(true).blk.features() & 1 << VIRTIO_BLK_F_RO, 0);
}

#[test]
fn sectors_are_read_into_several_buffers() {
    let mut bench = Bench::new(true);
    let buffers = [
        (DATA, 100, WRITE, 0),
        (DATA + 100, 0, WRITE, 0),
        (DATA + 100, 924, WRITE, 0),
    ];
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 7, &buffers), OK);
    let data = bench.data(1024);
    assert!(data[..512].iter().all(|byte| *byte == 7));
    assert!(data[512..].iter().all(|byte| *byte == 8));
    assert_eq!(bench.driver.used(0), [(0, 1025)]);
    until(|| bench.driver.irqfd.read().is_ok());
}

#[test]
fn what_is_written_is_in_the_file() {
    let mut bench = Bench::new(false);
    let before = bench.content();
    let data = GuestAddress(DATA);
    bench
        .driver
        .memory
        .write_slice(&[0xab; 1024], data)
        .unwrap();
    let buffers = [(DATA, 1000, 0, 0), (DATA + 1000, 24, 0, 0)];
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 62, &buffers), OK);
    let after = bench.content();
    assert_eq!(after[..62 * 512], before[..62 * 512]);
    assert!(after[62 * 512..64 * 512].iter().all(|byte| *byte == 0xab));
    assert_eq!(after[64 * 512..], *b"tail");
    assert_eq!(bench.request(VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut bench = Bench::new(true);
    let before = bench.content();
    let buffer = [(DATA, 512, 0, 0)];
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 0, &buffer), IOERR);
    assert_eq!(bench.content(), before);
}

#[test]
fn nothing_beyond_the_end_is_touched() {
    let mut bench = Bench::new(false);
    let before = bench.content();
    let sectors = SECTORS as u64;
    for (sector, length) in [
        (sectors, 512),
        (sectors - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (u64::MAX - 1, 1024),
        (1 << 55, 512),
        (0, 511),
        (0, 513),
    ] {
        let what = (sector, length);
        let read = [(DATA, length, WRITE, 0)];
        assert_eq!(
            bench.request(VIRTIO_BLK_T_IN, sector, &read),
            IOERR,
            "{what:?}"
        );
        let write = [(DATA, length, 0, 0)];
        assert_eq!(
            bench.request(VIRTIO_BLK_T_OUT, sector, &write),
            IOERR,
            "{what:?}"
        );
    }
    assert_eq!(bench.content(), before);
    assert!(!bench.driver.is_blamed(), "the requests were well-formed");
}

#[test]
fn a_disk_that_has_shrunk_gives_errors() {
    let mut bench = Bench::new(false);
    bench.file.set_len(10 * SECTOR).unwrap();
    let read = [(DATA, 1024, WRITE, 0)];
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 9, &read), IOERR);
}

#[test]
fn it_tells_its_id() {
    let mut bench = Bench::new(false);
    assert_eq!(
        bench.request(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20, WRITE, 0)]),
        OK
    );
    assert_eq!(bench.data(21), *b"disk\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(
        bench.request(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 2, WRITE, 0)]),
        OK
    );
    assert_eq!(bench.request(VIRTIO_BLK_T_GET_ID, 0, &[]), OK);
}

#[test]
fn odd_requests_are_answered() {
    let mut bench = Bench::new(false);
    assert_eq!(
        bench.request(VIRTIO_BLK_T_IN, 0, &[]),
        OK,
        "nothing is little to read"
    );
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 0, &[]), OK);
    for kind in [2, 3, 11, 13, u32::MAX] {
        assert_eq!(
            bench.request(kind, 0, &[(DATA, 512, WRITE, 0)]),
            UNSUPPORTED
        );
    }
    // A header that is too short, and none at all.
    assert_eq!(
        bench.send(&[(BUFFERS, 15, NEXT, 1), (STATUS, 1, WRITE, 0)]),
        IOERR
    );
    assert_eq!(bench.send(&[(STATUS, 1, WRITE, 0)]), IOERR);
    // Nowhere to put the status: it is returned as it is.
    let used = bench.served;
    bench.send(&[(BUFFERS, 16, 0, 0)]);
    assert_eq!(bench.driver.used(0)[used], (0, 0));
    // A status at the end of a buffer of data.
    bench
        .driver
        .memory
        .write_slice(&[0; 16], GuestAddress(BUFFERS))
        .unwrap();
    bench.send(&[(BUFFERS, 16, NEXT, 1), (DATA, 513, WRITE, 0)]);
    assert_eq!(bench.data(513)[512], OK);
    assert!(!bench.driver.is_blamed());
}

#[test]
fn broken_chains_stop_the_device_until_reset() {
    for (what, descriptors, indirect) in broken_chains() {
        let mut bench = Bench::new(false);
        bench.driver.descriptors(0, &descriptors);
        bench.driver.table(BUFFERS, &indirect);
        bench.driver.offer(0, 0);
        bench.driver.kick(0);
        until(|| bench.driver.is_blamed());
        bench.blk.reset();
        assert_eq!(bench.driver.used(0), [], "{what}");
        bench.driver.clear();
        let activation = bench.driver.activation(true);
        bench.blk.activate(activation).unwrap();
        assert_eq!(bench.request(VIRTIO_BLK_T_FLUSH, 0, &[]), OK, "{what}");
    }
    let bench = Bench::new(false);
    bench.driver.set_available(0, QUEUE_SIZES[0] + 1);
    bench.driver.kick(0);
    until(|| bench.driver.is_blamed());
}
