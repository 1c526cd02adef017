//! The transport as a driver uses it, and as a hostile one does.

use super::*;
use std::borrow::Cow;
use std::io;
use std::sync::Mutex;

use crate::fault::Device;
use crate::report::Report;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

const OFFERED: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << 3;

#[derive(Default)]
struct Log {
    activations: Vec<(Vec<bool>, u64)>,
    resets: usize,
    config: Vec<(u64, Vec<u8>)>,
    /// Held as a device would hold it.
    interrupt: Option<Interrupt>,
}

struct Probe {
    log: Arc<Mutex<Log>>,
    fails: bool,
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        42
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[16, 64]
    }
    fn features(&self) -> u64 {
        OFFERED
    }
    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&[1, 2, 3, 4, 5, 6])
    }
    fn shared_memory(&self, id: u32) -> Option<(u64, u64)> {
        (id == 3).then_some((0x0000_0005_4000_0000, 0x0000_0001_2000_0000))
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.log
            .lock()
            .unwrap()
            .config
            .push((offset, data.to_vec()));
    }
    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let mut log = self.log.lock().unwrap();
        let queues = activation.queues.iter().map(Option::is_some).collect();
        log.activations.push((queues, activation.features));
        log.interrupt = Some(activation.interrupt);
        if self.fails {
            Err(io::Error::other("no"))
        } else {
            Ok(())
        }
    }
    fn reset(&mut self) {
        self.log.lock().unwrap().resets += 1;
    }
}

struct Driver {
    transport: Transport,
    report: Arc<Report>,
    log: Arc<Mutex<Log>>,
    irqfd: Arc<EventFd>,
    kicks: Vec<EventFd>,
}

impl Driver {
    fn new(fails: bool) -> Driver {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let log = Arc::new(Mutex::new(Log::default()));
        let device = Box::new(Probe {
            log: log.clone(),
            fails,
        });
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let irqfd = Arc::new(event());
        let kicks = vec![event(), event()];
        let copies = kicks.iter().map(|kick| kick.try_clone().unwrap()).collect();
        let report = Arc::new(Report::new(event()));
        let transport = Transport::new(
            device,
            AddressSpace::new(Arc::new(memory), None),
            irqfd.clone(),
            copies,
            Reporter::new(report.clone(), Device::Disk(7)),
        );
        Driver {
            transport,
            report,
            log,
            irqfd,
            kicks,
        }
    }

    fn get(&self, register: u32) -> u32 {
        let mut data = [0xee; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&mut self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    /// Adds a bit to the status and returns the status then.
    fn step(&mut self, bit: u32) -> u32 {
        let status = self.get(VIRTIO_MMIO_STATUS) | bit;
        self.set(VIRTIO_MMIO_STATUS, status);
        self.get(VIRTIO_MMIO_STATUS)
    }

    fn accept(&mut self, features: u64) {
        for selector in 0..2 {
            self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, selector);
            self.set(VIRTIO_MMIO_DRIVER_FEATURES, half(features, selector));
        }
    }

    fn agree(&mut self) {
        self.step(VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.step(VIRTIO_CONFIG_S_DRIVER);
        self.accept(OFFERED);
        assert_eq!(self.step(VIRTIO_CONFIG_S_FEATURES_OK), AGREED);
    }

    fn queue(&mut self, index: u32, size: u32, parts: [u64; 3]) {
        self.set(VIRTIO_MMIO_QUEUE_SEL, index);
        self.set(VIRTIO_MMIO_QUEUE_NUM, size);
        let registers = [
            VIRTIO_MMIO_QUEUE_DESC_LOW,
            VIRTIO_MMIO_QUEUE_AVAIL_LOW,
            VIRTIO_MMIO_QUEUE_USED_LOW,
        ];
        for (register, part) in registers.into_iter().zip(parts) {
            self.set(register, half(part, 0));
            self.set(register + 4, half(part, 1));
        }
        self.set(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    fn run(&mut self) -> u32 {
        self.agree();
        self.queue(1, 64, [0x1000, 0x2000, 0x3000]);
        self.step(VIRTIO_CONFIG_S_DRIVER_OK)
    }
}

#[test]
fn a_driver_brings_the_device_up() {
    let mut driver = Driver::new(false);
    assert_eq!(driver.get(VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.get(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.get(VIRTIO_MMIO_DEVICE_ID), 42);
    driver.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    assert_eq!(driver.get(VIRTIO_MMIO_DEVICE_FEATURES), 1);
    driver.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.get(VIRTIO_MMIO_DEVICE_FEATURES), 0);
    driver.set(VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
    driver.set(VIRTIO_MMIO_QUEUE_SEL, 2);
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    assert_eq!(driver.get(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    assert_eq!(driver.get(VIRTIO_MMIO_SHM_LEN_HIGH), u32::MAX);
    driver.set(VIRTIO_MMIO_SHM_SEL, 3);
    assert_eq!(driver.get(VIRTIO_MMIO_SHM_BASE_LOW), 0x4000_0000);
    assert_eq!(driver.get(VIRTIO_MMIO_SHM_BASE_HIGH), 5);
    assert_eq!(driver.get(VIRTIO_MMIO_SHM_LEN_LOW), 0x2000_0000);
    assert_eq!(driver.get(VIRTIO_MMIO_SHM_LEN_HIGH), 1);

    assert_eq!(driver.run(), AGREED | VIRTIO_CONFIG_S_DRIVER_OK);
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 1);
    let log = driver.log.lock().unwrap();
    assert_eq!(log.activations, [(vec![false, true], OFFERED)]);
}

#[test]
fn interrupts_are_raised_read_and_acknowledged() {
    let mut driver = Driver::new(false);
    driver.run();
    let interrupt = driver.log.lock().unwrap().interrupt.clone().unwrap();
    interrupt.signal_used();
    assert_eq!(driver.irqfd.read().unwrap(), 1);
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    interrupt.needs_reset(Fault::Queue);
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 3);
    driver.set(VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    driver.set(VIRTIO_MMIO_INTERRUPT_ACK, u32::MAX);
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert_eq!(
        driver.get(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET,
        64
    );
}

#[test]
fn notifications_without_ioeventfd_arrive() {
    let mut driver = Driver::new(false);
    driver.set(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    driver.set(VIRTIO_MMIO_QUEUE_NOTIFY, 2);
    driver.set(VIRTIO_MMIO_QUEUE_NOTIFY, u32::MAX);
    assert!(driver.kicks[0].read().is_err());
    assert_eq!(driver.kicks[1].read().unwrap(), 1);
}

#[test]
fn reset_forgets_everything_and_the_device_comes_up_again() {
    let mut driver = Driver::new(false);
    driver.run();
    driver
        .log
        .lock()
        .unwrap()
        .interrupt
        .take()
        .unwrap()
        .needs_reset(Fault::Queue);
    driver.set(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 0);
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    driver.set(VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0);
    assert_eq!(driver.log.lock().unwrap().resets, 1);
    // The device is not reset when it has nothing to stop.
    driver.set(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.log.lock().unwrap().resets, 1);
    assert_eq!(driver.run(), AGREED | VIRTIO_CONFIG_S_DRIVER_OK);
    assert_eq!(driver.log.lock().unwrap().activations.len(), 2);
}

#[test]
fn steps_cannot_be_skipped_or_taken_back() {
    let mut driver = Driver::new(false);
    for status in [2, 4, 8, 3, 15, 0x40, u32::MAX, 0x100] {
        driver.set(VIRTIO_MMIO_STATUS, status);
        assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 0, "{status:#x}");
    }
    driver.agree();
    driver.set(VIRTIO_MMIO_STATUS, DRIVER);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), AGREED);
    assert_eq!(
        driver.step(VIRTIO_CONFIG_S_FAILED),
        AGREED | VIRTIO_CONFIG_S_FAILED
    );
    // A driver that has given up does not go on.
    driver.step(VIRTIO_CONFIG_S_DRIVER_OK);
    assert!(driver.log.lock().unwrap().activations.is_empty());
}

#[test]
fn features_that_were_not_offered_are_refused() {
    for (features, selector) in [
        (OFFERED | 1 << 5, 0),
        (OFFERED & !(1 << 32), 0),
        (0, 0),
        (OFFERED, 7),
    ] {
        let mut driver = Driver::new(false);
        driver.step(VIRTIO_CONFIG_S_ACKNOWLEDGE);
        driver.step(VIRTIO_CONFIG_S_DRIVER);
        driver.accept(features);
        if selector != 0 {
            driver.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, selector);
            driver.set(VIRTIO_MMIO_DRIVER_FEATURES, 1);
        }
        assert_eq!(
            driver.step(VIRTIO_CONFIG_S_FEATURES_OK),
            DRIVER,
            "{features:#x}"
        );
    }
}

#[test]
fn features_are_fixed_once_agreed() {
    let mut driver = Driver::new(false);
    driver.agree();
    driver.accept(u64::MAX);
    driver.queue(0, 16, [0x1000, 0x2000, 0x3000]);
    driver.step(VIRTIO_CONFIG_S_DRIVER_OK);
    assert_eq!(
        driver.log.lock().unwrap().activations,
        [(vec![true, false], OFFERED)]
    );
}

#[test]
fn queues_that_are_not_in_memory_do_not_run() {
    let good = [0x1000, 0x2000, 0x3000];
    let end = 0x10_0000;
    for (size, parts) in [
        (0, good),
        (128, good),
        (63, good),
        (0x1_0010, good),
        (64, [0x1001, 0x2000, 0x3000]),
        (64, [0x1000, 0x2001, 0x3000]),
        (64, [0x1000, 0x2000, 0x3002]),
        (64, [end - 64 * 16 + 16, 0x2000, 0x3000]),
        (64, [0x1000, end - 64 * 2, 0x3000]),
        (64, [0x1000, 0x2000, end - 64 * 8]),
        (64, [!15, 0x2000, 0x3000]),
        (64, [0x1000, u64::MAX - 1, 0x3000]),
        (64, [0x1000, 0x2000, 1 << 63]),
    ] {
        let mut driver = Driver::new(false);
        driver.agree();
        driver.queue(1, size, parts);
        let status = driver.step(VIRTIO_CONFIG_S_DRIVER_OK);
        assert_ne!(status & VIRTIO_CONFIG_S_NEEDS_RESET, 0, "{size} {parts:x?}");
        assert!(driver.log.lock().unwrap().activations.is_empty());
        assert_eq!(driver.irqfd.read().unwrap(), 1);
        let faults = driver.report.take_faults();
        assert!(matches!(faults[..], [(Device::Disk(7), Fault::Queue)]));
    }
}

#[test]
fn queues_are_fixed_while_the_device_runs() {
    let mut driver = Driver::new(false);
    // Before features are agreed nothing is taken either.
    driver.queue(0, 16, [0x1000, 0x2000, 0x3000]);
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0);
    driver.run();
    driver.set(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 1);
    driver.queue(0, 16, [0x1000, 0x2000, 0x3000]);
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0);
}

#[test]
fn a_device_that_fails_needs_reset() {
    let mut driver = Driver::new(true);
    assert_ne!(driver.run() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    driver.set(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.log.lock().unwrap().resets, 1);
    let faults = driver.report.take_faults();
    let [(Device::Disk(7), Fault::Activation(error))] = &faults[..] else {
        panic!("{faults:?}");
    };
    assert_eq!(error.to_string(), "no");
}

#[test]
fn a_driver_that_starts_a_failing_device_again_and_again_is_told_of_once() {
    let mut driver = Driver::new(true);
    for _ in 0..100 {
        driver.run();
        driver.set(VIRTIO_MMIO_STATUS, 0);
    }
    assert_eq!(driver.report.event().read().unwrap(), 1);
    assert_eq!(driver.report.take_faults().len(), 1);
    driver.run();
    assert_eq!(driver.report.event().read().unwrap(), 1);
    assert_eq!(driver.report.take_faults().len(), 1);
}

#[test]
fn a_device_that_works_has_no_fault() {
    let mut driver = Driver::new(false);
    driver.run();
    driver.set(VIRTIO_MMIO_STATUS, 0);
    assert!(driver.report.take_faults().is_empty());
}

#[test]
fn accesses_of_any_place_and_width_are_harmless() {
    let mut driver = Driver::new(false);
    driver.run();
    for offset in 0..4096 {
        for width in [1, 2, 3, 4, 8] {
            let mut data = vec![0xee; width];
            driver.transport.read(offset, &mut data);
            // What is not a register reads as zeros, not as what was in the buffer.
            assert!(!data.contains(&0xee), "{offset:#x}");
            driver.transport.write(offset, &vec![0xff; width]);
        }
    }
    let mut narrow = [0xee; 1];
    driver
        .transport
        .read(VIRTIO_MMIO_MAGIC_VALUE.into(), &mut narrow);
    assert_eq!(narrow, [0]);
}

#[test]
fn configuration_space_is_read_always_and_written_by_a_driver() {
    let mut driver = Driver::new(false);
    for (offset, read) in [
        (0x100, [1, 2, 3, 4]),
        (0x103, [4, 5, 6, 0]),
        (0x106, [0; 4]),
        (0x1000, [0; 4]),
        (u64::MAX, [0; 4]),
    ] {
        let mut data = [0xee; 4];
        driver.transport.read(offset, &mut data);
        assert_eq!(data, read, "{offset:#x}");
    }
    let mut narrow = [0xee];
    driver.transport.read(0x105, &mut narrow);
    assert_eq!(narrow, [6]);
    driver.transport.write(0x108, &[1]);
    driver.agree();
    driver.transport.write(0x108, &[2]);
    assert_eq!(driver.log.lock().unwrap().config, [(8, vec![2])]);
}
