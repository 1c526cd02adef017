//! The virtio-fs device against a driver, correct and hostile. Its server echoes requests.

#![allow(
    clippy::cast_possible_truncation,
    reason = "small numbers of the tests' own"
)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread::{self, ThreadId};

use super::super::pool::{FileRequests, WORKERS};
use super::super::test_driver::{
    BUFFERS, Driver, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, broken_chains,
};
use super::*;
use crate::address_space::AddressSpace;
use crate::threads::Thread;
use crate::threads::tests::threads;

use vm_memory::{Bytes, GuestAddress};

const READ: u32 = VRING_DESC_F_NEXT;
const WRITE: u32 = VRING_DESC_F_WRITE;

/// Copies the request into the reply. A request that begins with b'w' waits until the gate opens.
#[derive(Default)]
struct Echo {
    open: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicUsize,
    last: Mutex<Option<ThreadId>>,
}

impl RequestServer for Echo {
    fn serve(&self, request: &[VolatileSlice<'_>], reply: &[VolatileSlice<'_>]) -> usize {
        *self.last.lock().unwrap() = Some(thread::current().id());
        let mut bytes = Vec::new();
        for slice in request {
            let mut part = vec![0; slice.len()];
            slice.copy_to(&mut part);
            bytes.extend(part);
        }
        if bytes.first() == Some(&b'w') {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let open = self.open.lock().unwrap();
            drop(self.opened.wait_while(open, |open| !*open).unwrap());
        }
        let mut rest = &bytes[..];
        for slice in reply {
            let (part, behind) = rest.split_at(slice.len().min(rest.len()));
            slice.copy_from(part);
            rest = behind;
        }
        bytes.len() - rest.len()
    }
}

impl FileServer for Echo {
    fn window(&self) -> Option<(usize, usize)> {
        None
    }

    fn mend(&self, _: &mut u64) -> bool {
        false
    }
}

struct Bench {
    driver: Driver,
    fs: Fs<Echo>,
    echo: Arc<Echo>,
}

/// A device with its workers, and the server.
fn device(driver: &Driver, window: Option<Window>) -> (Fs<Echo>, Arc<Echo>) {
    let echo = Arc::new(Echo::default());
    let space = AddressSpace::new(driver.memory.clone(), window);
    let pool = Arc::new(Pool::new(space, echo.clone()).unwrap());
    pool.watch_queues(&driver.kicks).unwrap();
    pool.start(&threads(|_| Ok(())), Thread::Fs).unwrap();
    (Fs::new("tag", pool, window), echo)
}

impl Bench {
    fn new(event_idx: bool) -> Bench {
        let driver = Driver::new(&QUEUE_SIZES);
        let (mut fs, echo) = device(&driver, None);
        fs.activate(driver.activation(event_idx)).unwrap();
        Bench { driver, fs, echo }
    }

    /// A request of three bytes and a place for the reply, at a place of its own for each head.
    fn offer(&self, queue: usize, head: u16, request: &[u8; 3]) {
        self.place(queue, head, request);
        self.driver.kick(queue);
    }

    /// The same, without a notification that workers hear of.
    fn place(&self, queue: usize, head: u16, request: &[u8; 3]) {
        let at = BUFFERS + u64::from(head) * 64;
        self.driver
            .memory
            .write_slice(request, GuestAddress(at))
            .unwrap();
        let table: Vec<_> = (0..head).map(|_| (0, 0, 0, 0)).collect();
        let mut table = table;
        table.push((at, 3, READ, head + 1));
        table.push((at + 16, 16, WRITE, 0));
        let base = 0x1000 + queue as u64 * 0x4000 + u64::from(head) * 16;
        self.driver.table(base, &table[usize::from(head)..]);
        self.driver.offer(queue, head);
    }

    /// What the thread of a vCPU does that notifies: whether it may serve, and then serves what is there. `is_lent`:
    /// whether it still has its vCPU behind a request.
    fn serve_lent(&self, is_lent: bool) -> bool {
        let pool = &self.fs.pool;
        pool.lend() && {
            pool.serve_lent(&mut pool.copier(), &|| is_lent);
            pool.back();
            true
        }
    }

    fn reply(&self, head: u16) -> [u8; 3] {
        let at = BUFFERS + u64::from(head) * 64 + 16;
        self.driver.memory.read_obj(GuestAddress(at)).unwrap()
    }
}

/// Waits for what other threads do; a test that waits for ever is ended by its runner, here after a minute.
fn until(mut condition: impl FnMut() -> bool) {
    let begin = std::time::Instant::now();
    while !condition() {
        assert!(begin.elapsed().as_secs() < 60, "it does not happen");
        thread::yield_now();
    }
}

#[test]
fn configuration_names_the_tag_and_one_queue() {
    let (fs, _) = device(&Driver::new(&QUEUE_SIZES), None);
    let config = fs.config();
    assert_eq!(&config[..4], b"tag\0");
    assert_eq!(config[36..], [1, 0, 0, 0]);
}

#[test]
fn requests_of_both_queues_are_answered() {
    for event_idx in [false, true] {
        let bench = Bench::new(event_idx);
        bench.offer(1, 4, b"abc");
        until(|| bench.driver.used(1) == [(4, 3)]);
        assert_eq!(bench.reply(4), *b"abc");
        bench.offer(0, 2, b"def");
        until(|| bench.driver.used(0) == [(2, 3)]);
        until(|| bench.driver.irqfd.read().is_ok());
        assert!(!bench.driver.is_blamed());
    }
}

/// Programs of the guest send what they have mapped.
#[test]
fn the_window_is_read_and_never_written() {
    let shown: &'static [u8] = b"0123456789";
    let window = Window {
        start: 1 << 32,
        address: shown.as_ptr().expose_provenance(),
        length: shown.len(),
    };
    let end = window.start + 10;
    for (source, target, answer) in [
        (window.start + 4, BUFFERS + 0x100, Some("456")),
        (BUFFERS, BUFFERS + 0x100, Some("abc")),
        (end - 2, BUFFERS + 0x100, None),
        (end, BUFFERS + 0x100, None),
        (BUFFERS, window.start, None),
    ] {
        let driver = Driver::new(&QUEUE_SIZES);
        let (mut fs, _) = device(&driver, Some(window));
        assert_eq!(fs.shared_memory(0), Some((1 << 32, 10)));
        assert_eq!(fs.shared_memory(1), None);
        fs.activate(driver.activation(true)).unwrap();
        driver
            .memory
            .write_slice(b"abc", GuestAddress(BUFFERS))
            .unwrap();
        driver.descriptors(1, &[(source, 3, READ, 1), (target, 3, WRITE, 0)]);
        driver.offer(1, 0);
        driver.kick(1);
        match answer {
            Some(answer) => {
                until(|| driver.used(1) == [(0, 3)]);
                let bytes: [u8; 3] = driver.memory.read_obj(GuestAddress(target)).unwrap();
                assert_eq!(&bytes, answer.as_bytes());
            }
            None => until(|| driver.is_blamed()),
        }
    }
    assert_eq!(shown, b"0123456789");
}

#[test]
fn a_slow_request_does_not_hold_up_others() {
    let bench = Bench::new(true);
    for slow in 0..3 {
        bench.offer(1, slow * 2, b"wai");
        until(|| bench.echo.waiting.load(Ordering::SeqCst) == usize::from(slow) + 1);
        bench.offer(1, 100 + slow * 2, b"now");
        until(|| bench.driver.used(1).len() == usize::from(slow) + 1);
        assert_eq!(
            bench.driver.used(1)[usize::from(slow)],
            (u32::from(100 + slow * 2), 3)
        );
    }
    // The fourth takes the last worker; what comes then waits its turn.
    bench.offer(1, 6, b"wai");
    until(|| bench.echo.waiting.load(Ordering::SeqCst) == 4);
    bench.offer(1, 106, b"now");
    assert_eq!(bench.driver.used(1).len(), 3);
    *bench.echo.open.lock().unwrap() = true;
    bench.echo.opened.notify_all();
    until(|| bench.driver.used(1).len() == 8);
    let served = bench.echo.waiting.load(Ordering::SeqCst);
    assert_eq!(served, usize::from(WORKERS));
}

#[test]
fn every_request_is_answered_once_under_load() {
    for event_idx in [false, true] {
        let bench = Bench::new(event_idx);
        for round in 0..200_usize {
            for slot in 0..8_u16 {
                bench.offer(1, slot * 2, &[b'a', round as u8, slot as u8]);
            }
            until(|| bench.driver.used(1).len() == (round + 1) * 8);
            for slot in 0..8 {
                assert_eq!(bench.reply(slot * 2), [b'a', round as u8, slot as u8]);
            }
        }
    }
}

#[test]
fn the_thread_of_a_vcpu_serves_what_is_there() {
    let bench = Bench::new(true);
    until(|| bench.serve_lent(true));
    for round in 0..100_usize {
        bench.place(1, 4, b"abc");
        bench.place(0, 2, b"def");
        until(|| bench.serve_lent(true));
        // A worker that was awake for the one before may have been first, and not be done.
        until(|| {
            [0, 1]
                .iter()
                .all(|queue| bench.driver.used(*queue).len() == round + 1)
        });
    }
}

#[test]
fn each_vcpu_that_is_lent_keeps_a_worker_idle() {
    let bench = Bench::new(true);
    let pool = &bench.fs.pool;
    for _ in 0..WORKERS {
        until(|| pool.lend());
    }
    assert!(!pool.lend(), "nobody could relieve it");
    // A worker that comes for a request leaves it, until one is not needed any more.
    bench.offer(1, 0, b"abc");
    thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(bench.driver.used(1), []);
    assert!(!pool.lend(), "a worker is not idle");
    pool.back();
    until(|| bench.driver.used(1) == [(0, 3)]);
    // Three of them serve what is slow: one is left for the vCPU that is lent.
    (1..WORKERS).for_each(|_| pool.back());
    until(|| pool.lend());
    for slow in 1..4_u16 {
        bench.offer(1, slow * 2, b"wai");
        until(|| bench.echo.waiting.load(Ordering::SeqCst) == usize::from(slow));
    }
    bench.offer(1, 100, b"wai");
    thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(bench.echo.waiting.load(Ordering::SeqCst), 3);
    pool.back();
    until(|| bench.echo.waiting.load(Ordering::SeqCst) == 4);
    *bench.echo.open.lock().unwrap() = true;
    bench.echo.opened.notify_all();
    until(|| bench.driver.used(1).len() == 5);
}

#[test]
fn what_has_kept_a_vcpu_waiting_is_left_to_workers_for_a_while() {
    let bench = Bench::new(true);
    // Serves a request; whether it was this thread that did.
    let serve = |is_lent: bool| {
        let before = bench.driver.used(1).len();
        bench.place(1, 0, b"abc");
        until(|| bench.serve_lent(is_lent) && bench.driver.used(1).len() > before);
        bench.echo.last.lock().unwrap().take() == Some(thread::current().id())
    };
    until(|| serve(false));
    let mut left = 0;
    until(|| {
        left += 1;
        serve(true)
    });
    assert!(left > 64, "{left}");
    until(|| serve(true));
}

#[test]
fn vcpus_and_workers_serve_together() {
    let bench = Bench::new(true);
    let mut by_vcpus = 0;
    for round in 0..400_usize {
        for slot in 0..8_u16 {
            match (round + usize::from(slot)) % 3 {
                0 => bench.offer(1, slot * 2, &[b'a', round as u8, slot as u8]),
                _ => bench.place(1, slot * 2, &[b'a', round as u8, slot as u8]),
            }
        }
        thread::scope(|scope| {
            let turns = [(); 3].map(|()| scope.spawn(|| bench.serve_lent(round % 7 != 0)));
            by_vcpus += turns
                .into_iter()
                .map(|turn| usize::from(turn.join().unwrap()))
                .sum::<usize>();
        });
        // Those that might not are told to others, as the last one here is.
        bench.driver.kick(1);
        until(|| bench.driver.used(1).len() == (round + 1) * 8);
        for slot in 0..8 {
            assert_eq!(bench.reply(slot * 2), [b'a', round as u8, slot as u8]);
        }
    }
    assert!(by_vcpus > 0);
}

#[test]
fn indirect_tables_and_empty_buffers_work() {
    let bench = Bench::new(true);
    let memory = &bench.driver.memory;
    memory
        .write_slice(b"xyz", GuestAddress(BUFFERS + 0x1000))
        .unwrap();
    bench.driver.table(
        BUFFERS,
        &[
            (BUFFERS + 0x1000, 0, READ, 1),
            (BUFFERS + 0x1000, 3, READ, 2),
            (BUFFERS + 0x2000, 1, WRITE | VRING_DESC_F_NEXT, 3),
            (BUFFERS + 0x3000, 9, WRITE, 0),
        ],
    );
    bench
        .driver
        .descriptors(1, &[(BUFFERS, 64, VRING_DESC_F_INDIRECT, 0)]);
    bench.driver.offer(1, 0);
    bench.driver.kick(1);
    until(|| bench.driver.used(1) == [(0, 3)]);
    assert_eq!(
        memory
            .read_obj::<u8>(GuestAddress(BUFFERS + 0x2000))
            .unwrap(),
        b'x'
    );
    assert_eq!(
        memory
            .read_obj::<[u8; 3]>(GuestAddress(BUFFERS + 0x3000))
            .unwrap(),
        *b"yz\0"
    );
}

#[test]
fn broken_chains_stop_the_device_until_reset() {
    for (what, descriptors, indirect) in broken_chains() {
        let mut bench = Bench::new(true);
        bench.driver.descriptors(1, &descriptors);
        bench.driver.table(BUFFERS, &indirect);
        bench.driver.offer(1, 0);
        bench.driver.kick(1);
        until(|| bench.driver.is_blamed());
        bench.offer(0, 2, b"abc");
        bench.fs.reset();
        assert_eq!(bench.driver.used(0), [], "{what}");
        assert_eq!(bench.driver.used(1), [], "{what}");
    }
}

#[test]
fn a_broken_ring_stops_the_device() {
    for queue in [0, 1] {
        let bench = Bench::new(false);
        bench.driver.set_available(queue, QUEUE_SIZES[queue] + 1);
        bench.driver.kick(queue);
        until(|| bench.driver.is_blamed());
    }
}

#[test]
fn reset_waits_for_all_workers() {
    let mut bench = Bench::new(true);
    for slow in 0..4 {
        bench.offer(1, slow * 2, b"wai");
    }
    until(|| bench.echo.waiting.load(Ordering::SeqCst) == 4);
    let echo = bench.echo.clone();
    let opener = thread::spawn(move || {
        *echo.open.lock().unwrap() = true;
        echo.opened.notify_all();
    });
    bench.fs.reset();
    // What they had taken is not returned: the queue is the driver's again.
    opener.join().unwrap();
    assert!(*bench.echo.open.lock().unwrap());
    assert_eq!(bench.driver.used(1), []);
    // It comes up again.
    bench.driver.clear();
    let activation = bench.driver.activation(true);
    bench.fs.activate(activation).unwrap();
    bench.offer(1, 0, b"abc");
    until(|| bench.driver.used(1) == [(0, 3)]);
}

#[test]
fn a_missing_queue_is_refused() {
    let driver = Driver::new(&QUEUE_SIZES);
    let mut activation = driver.activation(true);
    activation.queues[0] = None;
    let (mut fs, _) = device(&driver, None);
    assert!(fs.activate(activation).is_err());
}
