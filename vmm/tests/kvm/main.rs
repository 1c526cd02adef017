//! Machines that run a few hand-written instructions. They need `/dev/kvm`; any KVM will do, an emulated one too.

#![allow(clippy::unwrap_used, reason = "tests")]

mod sys;

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::VolatileSlice;
use vmm::virtio::{FileServer, NetError, RequestServer};
use vmm::{
    BootError, Device, EndReason, Ended, Error, Event, Fault, MAX_NET_SLOTS, Machine,
    MachineConfig, MemoryError,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

const MEMORY: u64 = 4 << 20;
/// Where the code runs.
const ENTRY: u64 = 0x10_0000;
/// Where the host looks for the guest's log.
const RING: u32 = 0x8_0000;
/// The first device's page.
const DEVICE: u32 = 0xd000_0000;

/// The window: behind the fourth GiB.
const WINDOW: u64 = 4 << 30;

/// Answers nothing: no test makes a request.
struct NoFiles;

impl RequestServer for NoFiles {
    fn serve(&self, _: &[VolatileSlice<'_>], _: &[VolatileSlice<'_>]) -> usize {
        0
    }
}

impl FileServer for NoFiles {
    fn window(&self) -> Option<(usize, usize)> {
        None
    }

    fn mend(&self, _: &mut u64) -> bool {
        false
    }
}

/// Has a window of three pages: one of a file, one that the file has lost, and one where nothing is mapped.
struct Files {
    window: sys::Window,
    mended: AtomicUsize,
}

impl Files {
    fn new() -> Files {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[b"abcd", &[b'x'; 8188][..]].concat(), 0)
            .unwrap();
        let window = sys::Window::show(&file, 2, 3);
        file.set_len(4096).unwrap();
        Files {
            window,
            mended: AtomicUsize::new(0),
        }
    }
}

impl RequestServer for Files {
    fn serve(&self, _: &[VolatileSlice<'_>], _: &[VolatileSlice<'_>]) -> usize {
        0
    }
}

impl FileServer for Files {
    fn window(&self) -> Option<(usize, usize)> {
        Some(self.window.extent())
    }

    fn mend(&self, _: &mut u64) -> bool {
        self.window.blank(1);
        self.mended.fetch_add(1, Ordering::SeqCst) == 0
    }
}

/// 64-bit code.
#[derive(Default)]
struct Code(Vec<u8>);

impl Code {
    fn bytes(mut self, bytes: &[u8]) -> Code {
        self.0.extend_from_slice(bytes);
        self
    }

    /// mov ecx, address
    fn point_at(self, address: u32) -> Code {
        self.bytes(&[0xb9]).bytes(&address.to_le_bytes())
    }

    /// mov dword [address], value
    fn store(self, address: u32, value: u32) -> Code {
        self.point_at(address)
            .bytes(&[0xc7, 0x01])
            .bytes(&value.to_le_bytes())
    }

    /// mov eax, [from]; mov [to], eax
    fn copy(self, from: u32, to: u32) -> Code {
        self.point_at(from).bytes(&[0x8b, 0x01]).save(to)
    }

    /// The same for a number whose bytes are below 10, as digits: add eax, "0000"
    fn copy_as_digits(self, from: u32, to: u32) -> Code {
        self.point_at(from)
            .bytes(&[0x8b, 0x01, 0x05, b'0', b'0', b'0', b'0'])
            .save(to)
    }

    /// mov rcx, the window's offset
    fn point_into_window(self, offset: u64) -> Code {
        self.bytes(&[0x48, 0xb9])
            .bytes(&(WINDOW + offset).to_le_bytes())
    }

    /// mov eax, [the window's offset]; mov [to], eax
    fn copy_from_window(self, offset: u64, to: u32) -> Code {
        self.point_into_window(offset).bytes(&[0x8b, 0x01]).save(to)
    }

    /// mov [to], eax
    fn save(self, to: u32) -> Code {
        self.point_at(to).bytes(&[0x89, 0x01])
    }

    /// Says that the ring holds `size` bytes.
    fn log(self, size: u32) -> Code {
        self.store(RING, 0x4347_4244)
            .store(RING + 4, size)
            .store(RING + 8, size)
    }

    /// mov al, 0xfe; out 0x64, al
    fn reset(self) -> Code {
        self.bytes(&[0xb0, 0xfe, 0xe6, 0x64])
    }
}

/// An ELF image of the code, of page table entries that map the devices' 2 MiB and those of the window.
fn image(code: &[u8]) -> Vec<u8> {
    let directory = 0x20_0000_u64;
    let directories = [directory | 3, (directory + 4096) | 3].map(u64::to_le_bytes);
    let segments: [(u64, &[u8]); 4] = [
        (ENTRY, code),
        // The entries of the fourth and the fifth GiB in the page directory pointer table at 0xa000, and those of
        // devices and window.
        (0xa000 + 3 * 8, directories.as_flattened()),
        (
            directory + (u64::from(DEVICE) >> 21 & 511) * 8,
            &(u64::from(DEVICE) | 0x83).to_le_bytes(),
        ),
        (directory + 4096, &(WINDOW | 0x83).to_le_bytes()),
    ];
    let mut data_at = 64 + 56 * segments.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for word in [ENTRY, 64, 0] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    elf.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
    for (address, bytes) in segments {
        let size = bytes.len() as u64;
        elf.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
        for word in [data_at, address, address, size, size, 1] {
            elf.extend_from_slice(&word.to_le_bytes());
        }
        data_at += size;
    }
    segments
        .iter()
        .for_each(|(_, bytes)| elf.extend_from_slice(bytes));
    elf
}

fn machine(kernel: &[u8], memory: u64, vcpus: u8) -> Result<Machine, Error> {
    machine_with_net(kernel, memory, vcpus, 0)
}

fn machine_with_files(kernel: &[u8], files: &Arc<Files>) -> Machine {
    new_machine(kernel, (MEMORY, 1, 0), files.clone()).unwrap()
}

fn machine_with_net(
    kernel: &[u8],
    memory: u64,
    vcpus: u8,
    net_slots: usize,
) -> Result<Machine, Error> {
    new_machine(kernel, (memory, vcpus, net_slots), Arc::new(NoFiles))
}

fn new_machine<S: FileServer>(
    kernel: &[u8],
    (memory, vcpus, net_slots): (u64, u8, usize),
    files: Arc<S>,
) -> Result<Machine, Error> {
    let kvm = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .expect("/dev/kvm");
    Machine::new(
        kvm,
        MachineConfig {
            kernel,
            initramfs: b"",
            memory,
            vcpus,
            net_slots,
            disks: &[],
            apparmor: false,
        },
        files,
    )
}

fn run(code: Code, vcpus: u8) -> Ended {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    live(machine(&image(&code.0), MEMORY, vcpus).unwrap())
}

/// Runs a machine to its end, which must be all that it has to tell.
fn live(machine: Machine) -> Ended {
    let mut events = told(machine);
    match (events.pop(), &events[..]) {
        (Some(Event::Ended(ended)), []) => ended,
        other => panic!("{other:?}"),
    }
}

/// Runs a machine to its end. Returns all events; the last one is the end.
fn told(mut machine: Machine) -> Vec<Event> {
    assert!(machine.handle_events().unwrap().is_empty());
    assert_eq!(machine.first_run(), None);
    machine.start(Arc::new(|_| Ok(()))).unwrap();
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll
        .ctl(ControlOperation::Add, machine.epoll_fd().as_raw_fd(), event)
        .unwrap();
    let mut events = Vec::new();
    while !matches!(events.last(), Some(Event::Ended(_))) {
        let count = epoll.wait(60_000, &mut [EpollEvent::default()]).unwrap();
        assert_eq!(count, 1, "the guest does not end");
        events.extend(machine.handle_events().unwrap());
    }
    assert!(machine.first_run().is_some());
    assert!(
        machine.handle_events().unwrap().is_empty(),
        "the end is told once"
    );
    events
}

#[test]
fn the_keyboard_controller_resets() {
    let ended = run(Code::default().reset(), 1);
    assert_eq!(ended.reason, EndReason::Reset);
    assert_eq!(ended.last_words, "");
}

#[test]
fn a_triple_fault_resets() {
    // ud2 without an interrupt descriptor table
    assert_eq!(
        run(Code::default().bytes(&[0x0f, 0x0b]), 1).reason,
        EndReason::Reset
    );
}

#[test]
fn last_words_are_read_from_the_ring() {
    let word = |text: &[u8; 4]| u32::from_le_bytes(*text);
    let code = Code::default()
        .store(RING + 12, word(b"bye\x1b"))
        .store(RING + 16, word(b"!\n\0\0"));
    assert_eq!(run(code.log(6).reset(), 1).last_words, "bye!\n");
}

#[test]
fn device_registers_are_read() {
    let code = Code::default().copy(DEVICE, RING + 12).log(4).reset();
    assert_eq!(run(code, 1).last_words, "virt");
}

/// A driver that starts the rng device without a queue, twice.
#[test]
fn a_device_that_cannot_start_is_told_of() {
    let rng = DEVICE + 2 * 4096;
    let (feature_select, features, status) = (rng + 0x24, rng + 0x20, rng + 0x70);
    let start = |code: Code| {
        [0, 1, 3]
            .into_iter()
            .fold(code, |code, value| code.store(status, value))
            // VERSION_1
            .store(feature_select, 1)
            .store(features, 1)
            .store(status, 11)
            .store(status, 15)
    };
    let code = start(start(Code::default())).reset();
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut events = told(machine(&image(&code.0), MEMORY, 1).unwrap());
    assert!(matches!(events.pop(), Some(Event::Ended(ended)) if ended.reason == EndReason::Reset));
    // One, or two if the first was taken before the second came.
    assert!((1..=2).contains(&events.len()), "{events:?}");
    for event in events {
        let Event::Fault { device, fault } = event else {
            panic!("{event:?}");
        };
        assert_eq!(device, Device::Rng);
        assert!(matches!(fault, Fault::Activation(_)), "{fault:?}");
    }
}

/// A tap in a network namespace of its own. Needs the right to make both.
fn tap(name: &[u8]) -> OwnedFd {
    let make = || {
        sys::enter_new_network_namespace();
        let tun = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .unwrap();
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        sys::make_tap(tun.into(), name, flags)
    };
    thread::scope(|scope| scope.spawn(make).join().unwrap())
}

#[test]
fn a_network_slot_is_a_placeholder_until_it_gets_its_device() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let slot = |slot: u32| DEVICE + (4 + slot) * 4096;
    let code = Code::default()
        .copy(slot(0) + 0x100, RING + 12)
        .copy_as_digits(slot(0) + 8, RING + 16)
        .copy(slot(1), RING + 20)
        .copy_as_digits(slot(1) + 4, RING + 24)
        .copy_as_digits(slot(1) + 8, RING + 28)
        .store(slot(1) + 0x70, 1)
        .copy_as_digits(slot(1) + 0x70, RING + 32)
        .copy(slot(2), RING + 36)
        .log(28)
        .reset();
    let mut machine = machine_with_net(&image(&code.0), MEMORY, 1, 2).unwrap();
    assert_eq!(machine.attach_net(*b"abcdef", tap(b"one")).unwrap(), 4);
    let ones = "\u{fffd}".repeat(4);
    assert_eq!(
        live(machine).last_words,
        format!("abcd1000virt200000000000{ones}")
    );
}

#[test]
fn network_slots_are_limited_and_take_taps_only() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let image = image(&Code::default().reset().0);
    let slots = |count| machine_with_net(&image, MEMORY, 1, count);
    assert!(matches!(
        slots(MAX_NET_SLOTS + 1),
        Err(Error::NetSlots(count)) if count == MAX_NET_SLOTS + 1
    ));
    let mut machine = slots(MAX_NET_SLOTS).unwrap();
    let no_tap = std::fs::File::open("/dev/null").unwrap().into();
    let error = machine.attach_net([2; 6], no_tap).unwrap_err();
    assert!(matches!(error, Error::Net(NetError::System { .. })));
    for place in 4..4 + MAX_NET_SLOTS {
        let given = machine.attach_net([2; 6], tap(b"many")).unwrap();
        assert_eq!(usize::from(given), place);
    }
    let error = machine.attach_net([2; 6], tap(b"more")).unwrap_err();
    assert!(matches!(error, Error::NoNetSlot(MAX_NET_SLOTS)));
}

#[test]
fn what_is_not_there_reads_as_ones() {
    // in al, 0x60; in eax, dx of port 0x1234
    let code = Code::default().bytes(&[0xe4, 0x60]).save(RING + 12);
    assert_eq!(run(code.log(1).reset(), 1).last_words, "\u{fffd}");
    let code = Code::default()
        .copy(DEVICE + 4 * 4096, RING + 12)
        .log(4)
        .reset();
    assert_eq!(run(code, 1).last_words, "\u{fffd}".repeat(4));
}

#[test]
fn writes_to_nowhere_are_ignored() {
    // out 0x80, al; out 0x64, al with another command
    let code = Code::default().bytes(&[0xb0, 0x20, 0xe6, 0x80, 0xe6, 0x64]);
    let code = code.store(DEVICE + 4 * 4096, 1).store(DEVICE + 0x1ff000, 1);
    assert_eq!(run(code.reset(), 1).reason, EndReason::Reset);
}

#[test]
fn the_window_is_read_and_never_written() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let files = Arc::new(Files::new());
    // The third: mov dword [rcx], 1
    let code = Code::default()
        .copy_from_window(0, RING + 12)
        .point_into_window(0)
        .bytes(&[0xc7, 0x01, 1, 0, 0, 0])
        .copy_from_window(0, RING + 16)
        .copy_from_window(4096, RING + 20)
        .copy_as_digits(RING + 20, RING + 20)
        .log(12)
        .reset();
    let ended = live(machine_with_files(&image(&code.0), &files));
    assert_eq!(ended.reason, EndReason::Reset);
    assert_eq!(ended.last_words, "abcdabcd0000");
    assert_eq!(files.mended.load(Ordering::SeqCst), 1);
}

#[test]
fn where_nothing_is_mapped_the_machine_ends() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let files = Arc::new(Files::new());
    let code = Code::default()
        .copy_from_window(2 * 4096, RING + 12)
        .reset();
    let ended = live(machine_with_files(&image(&code.0), &files));
    assert!(
        matches!(
            ended.reason,
            EndReason::MemoryFault { .. }
                | EndReason::Vcpu {
                    errno: libc::EFAULT
                }
        ),
        "{:?}",
        ended.reason
    );
}

#[test]
fn instructions_in_a_device_are_an_error_of_kvm() {
    // mov ecx, device; jmp rcx
    let ended = run(Code::default().point_at(DEVICE).bytes(&[0xff, 0xe1]), 1);
    assert!(
        matches!(ended.reason, EndReason::InternalError { .. }),
        "{:?}",
        ended.reason
    );
}

#[test]
fn other_vcpus_wait_to_be_started() {
    assert_eq!(run(Code::default().reset(), 4).reason, EndReason::Reset);
}

/// Taken by whoever starts a machine, so that the processor time of a machine can be told.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The vCPU threads of this process, as directories in /proc.
fn vcpu_threads() -> Vec<PathBuf> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let is_vcpu = |task: &PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("vcpu"))
    };
    tasks
        .map(|task| task.unwrap().path())
        .filter(is_vcpu)
        .collect()
}

/// Processor time of those threads that still are, nanoseconds: the first field of schedstat (Linux
/// Documentation/scheduler/sched-stats.rst).
fn processor_time(threads: &[PathBuf]) -> u64 {
    let time = |thread: &PathBuf| -> u64 {
        let stat = std::fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
        stat.split(' ').next().unwrap().parse().unwrap_or(0)
    };
    threads.iter().map(time).sum()
}

/// The end, if it comes within `limit`.
fn end_within(machine: &mut Machine, limit: Duration) -> Option<Ended> {
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll
        .ctl(ControlOperation::Add, machine.epoll_fd().as_raw_fd(), event)
        .unwrap();
    let milliseconds = i32::try_from(limit.as_millis()).unwrap();
    epoll
        .wait(milliseconds, &mut [EpollEvent::default()])
        .unwrap();
    match machine.handle_events().unwrap().pop() {
        Some(Event::Ended(ended)) => Some(ended),
        _ => None,
    }
}

/// Adds up in rbx to `count`, and resets. It never leaves the guest on the way.
fn counting(count: u32) -> Vec<u8> {
    // mov ebx, 0; add rbx, 1; cmp rbx, count; jne to the addition
    let code = Code::default()
        .bytes(&[0xbb, 0, 0, 0, 0])
        .bytes(&[0x48, 0x83, 0xc3, 1, 0x48, 0x81, 0xfb])
        .bytes(&count.to_le_bytes())
        .bytes(&[0x75, 0xf3]);
    code.reset().0
}

#[test]
fn a_paused_guest_does_not_run_and_a_resumed_one_goes_on() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut machine = machine(&image(&counting(1 << 30)), MEMORY, 4).unwrap();
    // Before the start there is nothing to stop, but then the start waits.
    machine.pause().unwrap();
    machine.start(Arc::new(|_| Ok(()))).unwrap();
    assert!(end_within(&mut machine, Duration::from_millis(50)).is_none());
    assert_eq!(machine.first_run(), None);
    machine.resume();
    let begun = Instant::now();
    while machine.first_run().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(20));
        thread::yield_now();
    }
    let threads = vcpu_threads();
    for _ in 0..3 {
        machine.pause().unwrap();
        machine.pause().unwrap();
        let before = processor_time(&threads);
        assert!(end_within(&mut machine, Duration::from_millis(300)).is_none());
        // Nothing at all, apart from the last microseconds on the way to sleep.
        assert!(processor_time(&threads).saturating_sub(before) < 1_000_000);
        let before = processor_time(&threads);
        machine.resume();
        machine.resume();
        let begun = Instant::now();
        while processor_time(&threads).saturating_sub(before) < 20_000_000 {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "it does not go on"
            );
            thread::yield_now();
        }
    }
    machine.pause().unwrap();
}

#[test]
fn pauses_come_at_any_moment_and_lose_nothing() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // Leaves the guest all the time: mov edx, 20_000; [mov ecx, device; mov eax, [rcx]]; dec edx; jnz
    let leaving = Code::default()
        .bytes(&[0xba])
        .bytes(&20_000_u32.to_le_bytes())
        .point_at(DEVICE)
        .bytes(&[0x8b, 0x01])
        .bytes(&[0xff, 0xca, 0x75, 0xf5]);
    for code in [leaving.reset().0, counting(1 << 20)] {
        let mut machine = machine(&image(&code), MEMORY, 3).unwrap();
        machine.start(Arc::new(|_| Ok(()))).unwrap();
        let mut pauses = 0;
        let begun = Instant::now();
        let ended = loop {
            machine.pause().unwrap();
            pauses += 1;
            machine.resume();
            if let Some(ended) = end_within(&mut machine, Duration::ZERO) {
                break ended;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{pauses} pauses");
        };
        assert_eq!(ended.reason, EndReason::Reset);
        // The thread that has ended is stopped; the others are waiting to be started.
        machine.pause().unwrap();
        machine.resume();
    }
}

#[test]
fn a_halted_guest_is_paused() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // cli; hlt
    let mut machine = machine(&image(&[0xfa, 0xf4]), MEMORY, 1).unwrap();
    machine.start(Arc::new(|_| Ok(()))).unwrap();
    for _ in 0..100 {
        machine.pause().unwrap();
        machine.resume();
    }
    assert!(end_within(&mut machine, Duration::from_millis(20)).is_none());
}

#[test]
fn impossible_machines_are_refused() {
    let kernel = image(&Code::default().reset().0);
    assert!(matches!(machine(&kernel, MEMORY, 0), Err(Error::Vcpus(0))));
    assert!(matches!(
        machine(&kernel, MEMORY, 255),
        Err(Error::Vcpus(255))
    ));
    assert!(matches!(
        machine(&kernel, MEMORY + 1, 1),
        Err(Error::Memory(MemoryError::NotPages(_)))
    ));
    assert!(matches!(
        machine(&kernel, 1 << 60, 1),
        Err(Error::Memory(MemoryError::TooLarge { .. }))
    ));
    assert!(matches!(
        machine(&kernel, 0x20_0000, 1),
        Err(Error::Boot(BootError::Space { .. } | BootError::Kernel(_)))
    ));
    assert!(matches!(
        machine(b"no kernel", MEMORY, 1),
        Err(Error::Boot(BootError::Kernel(_)))
    ));
}
