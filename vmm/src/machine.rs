//! The machine as its owner sees it.
//!
//! ```text
//! new ──> start ──> events ... ──> Ended (once)
//!           │ ^
//!      pause v │ resume
//!          paused: events go on, guest code does not
//! ```
//! Invariants: one thread owns the machine; guest code runs on vCPU threads only, only after [`Machine::start`] and not while the machine
//! is paused; [`Machine::handle_events`] never blocks and does a bounded amount of work.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::bus::Bus;
use crate::cpuid::Cpuid;
use crate::gate::Gate;
use crate::layout::MAX_VCPUS;
use crate::memory::Extent;
use crate::vcpu::Report;
use crate::virtio::{
    self, Balloon, Blk, Disk, Fs, MacAddress, Net, NetError, RequestServer, Rng, Tap, Transport,
    Work,
};
use crate::vsock::{self, GUEST_CID, Port, Vsock};
use crate::window::Window;
use crate::{boot, kvm, last_words, memory, sys, vcpu};

/// The tag the guest mounts its file system by.
const SHARE_TAG: &str = "chiton";

/// Number of devices that every machine has.
const DEVICES: u8 = 4;

/// The place of the balloon, which the guest's kernel leaves alone until it is told to look (its driver's `bind`, of `virtio-mmio.3`):
/// nothing at the start needs it.
pub const BALLOON: u8 = 3;

/// Most network slots: the devices' interrupts are below 16, those of an ISA bus.
pub const MAX_NET_SLOTS: usize = 8;

/// Most events taken at a time; the rest stays in epoll.
const MAX_EVENTS: usize = 16;

/// How long a vCPU may take to get out of `KVM_RUN`. It is a matter of microseconds, unless the host is short of memory or processors.
const PAUSE_LIMIT: Duration = Duration::from_secs(5);

/// What a machine is made of.
#[derive(Clone, Copy)]
pub struct MachineConfig<'a> {
    /// The kernel: an uncompressed ELF image (vmlinux).
    pub kernel: &'a [u8],
    /// The initramfs: a cpio archive.
    pub initramfs: &'a [u8],
    /// Guest memory, bytes; a multiple of 4096.
    pub memory: u64,
    /// Number of vCPUs, 1 to 254.
    pub vcpus: u8,
    /// How many network devices can come with [`Machine::attach_net`]. Until then each costs the guest one register access.
    pub net_slots: usize,
    /// The block devices.
    pub disks: &'a [Arc<Disk>],
}

/// Why there is no machine, or it cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A KVM call failed.
    #[error("KVM: {call}")]
    Kvm {
        /// Name of the ioctl.
        call: &'static str,
        /// What it said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Not the stable KVM interface.
    #[error("KVM has API version {0} and not {KVM_API_VERSION}")]
    KvmVersion(i32),
    /// A table for KVM is too long.
    #[error("a table for KVM is too long")]
    Table,
    /// Too few or too many vCPUs.
    #[error("{0} vCPUs asked for; 1 to {MAX_VCPUS} are possible")]
    Vcpus(u8),
    /// Too many block devices.
    #[error("{0} block devices asked for; beside the network slots {1} are possible")]
    Disks(usize, usize),
    /// Too many network slots.
    #[error("{0} network slots asked for; {MAX_NET_SLOTS} are possible")]
    NetSlots(usize),
    /// A tap cannot be connected.
    #[error("network device")]
    Net(#[source] NetError),
    /// All network slots are in use.
    #[error("the machine has {0} network slots and no more")]
    NoNetSlot(usize),
    /// No guest memory.
    #[error("guest memory")]
    Memory(#[source] memory::Error),
    /// The guest cannot be booted.
    #[error("guest boot")]
    Boot(#[source] boot::Error),
    /// No vsock device.
    #[error("vsock device")]
    Vsock(#[source] vsock::Error),
    /// A vCPU cannot be stopped.
    #[error("a vCPU has not stopped within {} s", PAUSE_LIMIT.as_secs())]
    Pause,
    /// A system call failed.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What came of it.
        #[source]
        source: io::Error,
    },
}

/// Something the machine's owner must know.
#[derive(Debug)]
pub enum Event {
    /// The machine has ended.
    Ended(Ended),
    /// Both directions of the stream to this port are done and its host descriptors are closed.
    StreamClosed(Port),
}

/// The machine's end.
#[derive(Debug)]
pub struct Ended {
    /// Why.
    pub reason: EndReason,
    /// The tail of the guest's log, at most a few KiB, without control characters but newlines. Empty when the guest logged nothing.
    pub last_words: String,
}

/// Why a machine has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Triple fault or reset: the guest panicked, rebooted or was powered off.
    Reset,
    /// KVM could not go on with the guest.
    InternalError {
        /// `KVM_INTERNAL_ERROR_*` (linux/kvm.h).
        suberror: u32,
    },
    /// The processor refused the vCPU's state.
    FailedEntry {
        /// The processor's reason code.
        hardware_reason: u64,
        /// The host's processor.
        cpu: u32,
    },
    /// The guest reported an event that is not an end of the usual kind.
    SystemEvent {
        /// `KVM_SYSTEM_EVENT_*` (linux/kvm.h).
        event: u32,
    },
    /// The host has no memory behind an address of the guest.
    MemoryFault {
        /// Guest physical address.
        address: u64,
    },
    /// KVM returned for a reason that was not asked for.
    UnexpectedExit(String),
    /// `KVM_RUN` failed.
    Vcpu {
        /// Error number.
        errno: i32,
    },
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndReason::Reset => write!(f, "the guest reset its machine"),
            EndReason::InternalError { suberror } => {
                write!(
                    f,
                    "KVM cannot go on with the guest (internal error {suberror})"
                )
            }
            EndReason::FailedEntry {
                hardware_reason,
                cpu,
            } => {
                write!(
                    f,
                    "processor {cpu} refused to enter the guest ({hardware_reason:#x})"
                )
            }
            EndReason::SystemEvent { event } => write!(f, "the guest raised system event {event}"),
            EndReason::MemoryFault { address } => {
                write!(f, "the host has no memory for guest address {address:#x}")
            }
            EndReason::UnexpectedExit(exit) => write!(f, "unexpected exit from the guest: {exit}"),
            EndReason::Vcpu { errno } => {
                write!(f, "KVM_RUN: {}", io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

/// A virtual machine with its devices.
pub struct Machine {
    /// Closing it would end all irqfds (Linux virt/kvm/kvm_main.c, `kvm_vm_release`).
    vm: VmFd,
    /// Those not started yet.
    vcpus: Vec<VcpuFd>,
    threads: Vec<JoinHandle<()>>,
    gate: Arc<Gate>,
    bus: Arc<Bus>,
    memory: Arc<GuestMemoryMmap>,
    window: Option<Window>,
    report: Arc<Report>,
    mend: vcpu::Mend,
    epoll: Epoll,
    rng: Work<Rng>,
    balloon: Work<Balloon>,
    vsock: Vsock,
    /// By slot, those in use.
    nets: Vec<Net>,
    /// The place of the first slot on the bus.
    first_net_slot: usize,
    net_slots: usize,
}

/// What the event loop waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Ended,
    Rng,
    Balloon,
    Vsock,
    /// The queues of a network slot.
    NetQueues(u8),
    /// The tap of a network slot.
    Tap(u8),
}

impl Token {
    /// Event data: what it is in the second byte, the slot in the first.
    fn data(self) -> u64 {
        match self {
            Token::Ended => 0,
            Token::Rng => 1 << 8,
            Token::Vsock => 2 << 8,
            Token::NetQueues(slot) => 3 << 8 | u64::from(slot),
            Token::Tap(slot) => 4 << 8 | u64::from(slot),
            Token::Balloon => 5 << 8,
        }
    }

    fn from_data(data: u64) -> Option<Token> {
        let [slot, ..] = data.to_le_bytes();
        [
            Token::Ended,
            Token::Rng,
            Token::Balloon,
            Token::Vsock,
            Token::NetQueues(slot),
            Token::Tap(slot),
        ]
        .into_iter()
        .find(|token| token.data() == data)
    }
}

impl Machine {
    /// Makes everything up to the first `KVM_RUN`. `device` is an open `/dev/kvm`; `server` serves the guest's file system.
    ///
    /// Memory slots come first, vCPUs second and events last: once KVM's bus has changed, slots and vCPUs wait for an SRCU grace period.
    ///
    /// # Errors
    /// The host or the kernel image does not allow it; nothing runs then.
    pub fn new<S: RequestServer>(
        device: File,
        config: MachineConfig<'_>,
        server: Arc<S>,
    ) -> Result<Machine, Error> {
        let MachineConfig {
            memory: size,
            vcpus: count,
            net_slots,
            disks,
            ..
        } = config;
        if !(1..=MAX_VCPUS).contains(&count) {
            return Err(Error::Vcpus(count));
        }
        if net_slots > MAX_NET_SLOTS {
            return Err(Error::NetSlots(net_slots));
        }
        let room = MAX_NET_SLOTS - net_slots;
        if disks.len() > room {
            return Err(Error::Disks(disks.len(), room));
        }
        let device = sys::kvm(device);
        let vm = kvm::create_vm(&device)?;
        let cpuid = Cpuid::new(&device, count).map_err(kvm::error("KVM_GET_SUPPORTED_CPUID"))?;

        let extent = Extent::new(size, cpuid.physical_address_bits()).map_err(Error::Memory)?;
        let memory = extent.map().map_err(Error::Memory)?;
        // Where a vCPU cannot address it, nothing is mapped.
        let window = server.window().and_then(|(address, length)| {
            let start = extent.window(length)?;
            Some(Window {
                start,
                address,
                length,
            })
        });
        let mend: vcpu::Mend = {
            let server = Arc::clone(&server);
            Arc::new(move |seen: &mut u64| server.mend(seen))
        };
        sys::set_memory_slots(&vm, &memory).map_err(kvm::error("KVM_SET_USER_MEMORY_REGION"))?;
        if let Some(window) = &window {
            sys::set_window_slot(&vm, &memory, window)
                .map_err(kvm::error("KVM_SET_USER_MEMORY_REGION"))?;
        }
        let vcpus = kvm::create_vcpus(&vm, &cpuid, count)?;

        let (rng_front, rng) = virtio::device();
        let (balloon_front, balloon) = virtio::device();
        let (vsock_front, vsock) = Vsock::new(GUEST_CID).map_err(Error::Vsock)?;
        let fs_front = Fs::new(SHARE_TAG, server, window);
        let fs_device = kvm::attach(&vm, 0, Box::new(fs_front), (&memory, window))?;
        let vsock_device = kvm::attach(&vm, 1, Box::new(vsock_front), (&memory, window))?;
        let rng_device = kvm::attach(&vm, 2, Box::new(rng_front), (&memory, None))?;
        let balloon_device = kvm::attach(&vm, BALLOON, Box::new(balloon_front), (&memory, None))?;

        let mut devices = vec![fs_device, vsock_device, rng_device, balloon_device];
        for (place, disk) in (DEVICES..).zip(disks) {
            let front = Blk::new(disk.clone());
            devices.push(kvm::attach(&vm, place, Box::new(front), (&memory, window))?);
        }

        let pages = usize::from(DEVICES) + disks.len() + net_slots;
        let entry = boot::load(&memory, &extent, config, pages).map_err(Error::Boot)?;
        boot::configure_boot_vcpu(&vcpus[0], entry).map_err(kvm::error("KVM_SET_SREGS"))?;

        let report = Report::new(kvm::event()?);
        let epoll = Epoll::new().map_err(kvm::system("epoll"))?;
        watch(&epoll, report.ended(), EventSet::IN, Token::Ended)?;
        watch(&epoll, &vsock.epoll_fd(), EventSet::IN, Token::Vsock)?;
        // The threads of fs and blk wait for their queues themselves.
        watch_queues(&epoll, &devices[2], Token::Rng)?;
        watch_queues(&epoll, &devices[usize::from(BALLOON)], Token::Balloon)?;
        let first_net_slot = devices.len();
        Ok(Machine {
            vm,
            vcpus,
            threads: Vec::new(),
            gate: Arc::default(),
            bus: Arc::new(Bus::new(devices, net_slots)),
            memory,
            window,
            report: Arc::new(report),
            mend,
            epoll,
            rng,
            balloon,
            vsock,
            nets: Vec::new(),
            first_net_slot,
            net_slots,
        })
    }

    /// The host's end of the vsock device: what the guest may dial is registered here.
    pub fn vsock(&mut self) -> &mut Vsock {
        &mut self.vsock
    }

    /// Puts a network device with an Ethernet address into a free slot, its other end being a tap made with
    /// `IFF_TAP|IFF_NO_PI|IFF_VNET_HDR`. It is possible at any time, and for good. Returns the device's number, which the guest's
    /// kernel has it by: `virtio-mmio.N`. A kernel that has seen the slot idle must be told to look again (its driver's `bind`).
    ///
    /// # Errors
    /// [`Error::NoNetSlot`]; others when the descriptor is of no use or KVM does not take the device, for which its slot is lost then.
    pub fn attach_net(&mut self, mac: MacAddress, tap: OwnedFd) -> Result<u8, Error> {
        let place = self.first_net_slot + self.nets.len();
        let (Ok(slot), Ok(number), true) = (
            u8::try_from(self.nets.len()),
            u8::try_from(place),
            self.nets.len() < self.net_slots,
        ) else {
            return Err(Error::NoNetSlot(self.net_slots));
        };
        let tap = Tap::new(tap).map_err(Error::Net)?;
        let set = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        watch(&self.epoll, &tap, set, Token::Tap(slot))?;
        let (front, net) = Net::new(mac, tap);
        self.nets.push(net);
        let device = kvm::attach(
            &self.vm,
            number,
            Box::new(front),
            (&self.memory, self.window),
        )?;
        watch_queues(&self.epoll, &device, Token::NetQueues(slot))?;
        self.bus.plug(place, device);
        Ok(number)
    }

    /// Starts the vCPUs, each in a thread of its own. A second call does nothing.
    ///
    /// # Errors
    /// A thread cannot be made; vCPUs started before it run.
    pub fn start(&mut self) -> Result<(), Error> {
        sys::with_kick_blocked(|| {
            for (id, vcpu) in (0..).zip(self.vcpus.drain(..)) {
                let (bus, report) = (Arc::clone(&self.bus), Arc::clone(&self.report));
                let mend = Arc::clone(&self.mend);
                let thread = vcpu::start(id, vcpu, (bus, mend), report, self.gate.enter());
                self.threads
                    .push(thread.map_err(kvm::system("vCPU thread"))?);
            }
            Ok(())
        })
    }

    /// Stops the vCPUs: when this returns none executes guest code, and until [`Machine::resume`] none costs processor time. A vCPU
    /// that has ended is stopped. Devices go on: what the guest has sent is delivered, interrupts wait for the guest. The guest's
    /// clocks go on too. Does nothing when the machine is paused.
    ///
    /// # Errors
    /// [`Error::Pause`] or [`Error::System`] when a vCPU cannot be stopped; the machine is not paused then.
    pub fn pause(&mut self) -> Result<(), Error> {
        let kick = || self.threads.iter().try_for_each(sys::kick);
        let result = match self.gate.close(kick, PAUSE_LIMIT) {
            Ok(true) => return Ok(()),
            Ok(false) => Error::Pause,
            Err(error) => kvm::system("signal to a vCPU thread")(error),
        };
        self.gate.open();
        Err(result)
    }

    /// Lets the vCPUs of a paused machine go on. Does nothing when it is not paused.
    pub fn resume(&mut self) {
        self.gate.open();
    }

    /// A descriptor that is readable when [`Machine::handle_events`] has work.
    #[must_use]
    pub fn epoll_fd(&self) -> BorrowedFd<'_> {
        sys::epoll_fd(&self.epoll)
    }

    /// Handles what is ready, or a fair part of it; never blocks. Returns what the owner must know. When the machine has ended, the
    /// streams that have bytes for a slow reader are still there: [`Vsock::open_streams`] counts them.
    ///
    /// # Errors
    /// The event loop cannot go on.
    pub fn handle_events(&mut self) -> Result<Vec<Event>, Error> {
        let mut ready = [EpollEvent::default(); MAX_EVENTS];
        let count = match self.epoll.wait(0, &mut ready) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other.map_err(kvm::system("epoll"))?,
        };
        let mut events = Vec::new();
        for event in &ready[..count] {
            match Token::from_data(event.data()) {
                Some(Token::Ended) => events.extend(self.end()),
                Some(Token::Rng) => self.rng.process(),
                Some(Token::Balloon) => self.balloon.process(),
                Some(Token::Vsock) => {
                    events.extend(
                        self.vsock
                            .handle_events()
                            .into_iter()
                            .map(Event::StreamClosed),
                    );
                }
                Some(Token::NetQueues(slot)) => self.net(slot, Net::kicked),
                Some(Token::Tap(slot)) => self.net(slot, Net::tap_ready),
                None => {}
            }
        }
        Ok(events)
    }

    /// CLOCK_MONOTONIC just before the first `KVM_RUN`.
    #[must_use]
    pub fn first_run(&self) -> Option<Duration> {
        self.report.first_run()
    }

    fn net(&self, slot: u8, work: impl FnOnce(&Net)) {
        if let Some(net) = self.nets.get(usize::from(slot)) {
            work(net);
        }
    }

    /// What is left to tell when a vCPU has ended.
    fn end(&mut self) -> Vec<Event> {
        // Cannot fail: the event is raised. It is not raised again.
        let _ = self.report.ended().read();
        self.nets.iter().for_each(Net::drain);
        let mut events: Vec<_> = self
            .vsock
            .drain()
            .into_iter()
            .map(Event::StreamClosed)
            .collect();
        if let Some(reason) = self.report.end().cloned() {
            let last_words = last_words::read(&self.memory);
            events.push(Event::Ended(Ended { reason, last_words }));
        }
        events
    }
}

/// Edge-triggered: the events need not be read, and may be raised while the driver has no device running.
fn watch_queues(epoll: &Epoll, device: &Transport, token: Token) -> Result<(), Error> {
    let set = EventSet::IN | EventSet::EDGE_TRIGGERED;
    let mut kicks = device.kicks().iter();
    kicks.try_for_each(|kick| watch(epoll, kick, set, token))
}

fn watch(epoll: &Epoll, fd: &impl AsRawFd, set: EventSet, token: Token) -> Result<(), Error> {
    let event = EpollEvent::new(set, token.data());
    epoll
        .ctl(ControlOperation::Add, fd.as_raw_fd(), event)
        .map_err(kvm::system("epoll"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_data_names_one_token() {
        for token in [
            Token::Ended,
            Token::Rng,
            Token::Balloon,
            Token::Vsock,
            Token::NetQueues(0),
            Token::NetQueues(255),
            Token::Tap(0),
            Token::Tap(7),
        ] {
            assert_eq!(Token::from_data(token.data()), Some(token));
        }
        for data in [1, 0x101, 0x501, 0x600, 0x1_0000, u64::MAX] {
            assert_eq!(Token::from_data(data), None);
        }
    }
}
