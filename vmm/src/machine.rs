//! The machine as its owner sees it.
//!
//! ```text
//! new ──> start ──> events ... ──> Ended (once)
//!           │ ^
//!      pause v │ resume
//!          paused: events go on, guest code does not
//! ```
//! Invariants: one thread owns the machine; guest code runs on vCPU threads only, only after [`Machine::start`] and not
//! while the machine is paused; [`Machine::handle_events`] never blocks and does a bounded amount of work.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::epoll::EventSet;

use crate::address_space::AddressSpace;
use crate::config::MachineConfig;
use crate::cpuid::Cpuid;
use crate::devices::{Board, Devices};
use crate::end::Ended;
use crate::error::Error;
use crate::fault::{Device, Fault};
use crate::gate::Gate;
use crate::layout::MAX_VCPUS;
use crate::memory::Extent;
use crate::poll::{Poll, Token};
use crate::report::Report;
use crate::slots::Slots;
use crate::threads::{Enter, Threads};
use crate::vcpu::Crew;
use crate::virtio::{FileServer, MacAddress, Net};
use crate::vsock::{Port, Vsock};
use crate::window::Window;
use crate::{boot, kvm, last_words, sys};

/// How long a vCPU may take to get out of `KVM_RUN`. It is a matter of microseconds, unless the host is short of memory
/// or processors.
const PAUSE_LIMIT: Duration = Duration::from_secs(5);

/// Something the machine's owner must know.
#[derive(Debug)]
pub enum Event {
    /// The machine has ended.
    Ended(Ended),
    /// A device has stopped, until the guest's driver resets it. While one fault of a device has not been returned,
    /// further ones of it are dropped; a guest can make a device fault again and again, so whoever logs them must bound
    /// their rate.
    Fault {
        /// Which device.
        device: Device,
        /// Why.
        fault: Fault,
    },
    /// Both directions of the stream to this port are done and its host descriptors are closed.
    StreamClosed(Port),
}

/// A virtual machine with its devices.
pub struct Machine {
    /// What is not started yet: who runs the vCPUs, and how many these are.
    crew: Option<(Crew, u8)>,
    gate: Arc<Gate<VcpuFd>>,
    devices: Devices,
    report: Arc<Report>,
    poll: Poll,
    /// Where the host lets one have it.
    _end: Option<OwnedFd>,
}

impl Machine {
    /// Makes everything up to the first `KVM_RUN`. `device` is an open `/dev/kvm`; `server` serves the guest's file
    /// system.
    ///
    /// Memory slots come first, vCPUs second and events last: once KVM's bus has changed, slots and vCPUs wait for an
    /// SRCU grace period.
    ///
    /// # Errors
    /// The host or the kernel image does not allow it; nothing runs then.
    pub fn new<S: FileServer>(
        device: File,
        config: MachineConfig<'_>,
        server: Arc<S>,
    ) -> Result<Machine, Error> {
        let count = config.vcpus;
        if !(1..=MAX_VCPUS).contains(&count) {
            return Err(Error::Vcpus(count));
        }
        let slots = Slots::new(config.disks.len(), config.net_slots)?;
        let device = sys::kvm(device);
        let vm = kvm::create_vm(&device)?;
        let cpuid = Cpuid::new(&device, count).map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;

        let extent =
            Extent::new(config.memory, cpuid.physical_address_bits()).map_err(Error::Memory)?;
        let space = address_space(&extent, &*server)?;
        sys::set_memory_slots(&vm, space.ram(), space.window())
            .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        let vcpus = kvm::create_vcpus(&vm, &cpuid, count)?;
        let vm_and_vcpus: Vec<_> = std::iter::once(vm.as_raw_fd())
            .chain(vcpus.iter().map(AsRawFd::as_raw_fd))
            .collect();
        // A host without io_uring is one whose callers wait somewhat longer.
        let end = sys::release_later(&vm_and_vcpus).ok();

        let poll = Poll::new()?;
        let report = Arc::new(Report::new(kvm::event()?));
        poll.watch(report.event(), EventSet::IN, Token::Report)?;
        let mend = {
            let server = Arc::clone(&server);
            Box::new(move |seen: &mut u64| server.mend(seen))
        };
        let board = Board::new(vm, slots, space, Arc::clone(&report));
        let devices = Devices::new(board, server, config.disks, &poll)?;

        let pages = slots.count().into();
        let entry =
            boot::load(devices.space().ram(), &extent, config, pages).map_err(Error::Boot)?;
        boot::configure_boot_vcpu(&vcpus[0], entry).map_err(Error::kvm("KVM_SET_SREGS"))?;
        let mut each = vcpus.iter();
        each.try_for_each(sys::let_kick_through)
            .map_err(Error::system("KVM_SET_SIGNAL_MASK"))?;
        let gate = Arc::new(Gate::new(vcpus).map_err(Error::system("timerfd"))?);
        let (requests, notification) = devices.file_requests();
        let watched = requests.watch_timer(gate.timer());
        watched.map_err(Error::system("epoll"))?;
        let crew = Crew {
            gate: Arc::clone(&gate),
            bus: Arc::clone(devices.bus()),
            requests,
            notification,
            mend,
            report: Arc::clone(&report),
        };
        Ok(Machine {
            crew: Some((crew, count)),
            gate,
            devices,
            report,
            poll,
            _end: end,
        })
    }

    /// The host's end of the vsock device: what the guest may dial is registered here.
    pub fn vsock(&mut self) -> &mut Vsock {
        &mut self.devices.vsock
    }

    /// Puts a network device with an Ethernet address into a free slot, its other end being a tap made with
    /// `IFF_TAP|IFF_NO_PI|IFF_VNET_HDR`. It is possible at any time. Returns the device's number, which the guest's
    /// kernel has it by: `virtio-mmio.N`. A kernel that has seen the slot idle must be told to look again (its driver's
    /// `bind`).
    ///
    /// # Errors
    /// [`Error::NoNetSlot`]; others when the descriptor is of no use or KVM does not take the device, for which its
    /// slot is lost then.
    pub fn attach_net(&mut self, mac: MacAddress, tap: OwnedFd) -> Result<u8, Error> {
        self.devices.attach_net(mac, tap, &self.poll)
    }

    /// Takes away the tap of a network device, by the slot's number, and closes it. The guest must be told, so that it
    /// lets its driver go (`unbind`); nothing else that it does gets the tap back. The slot can be used again.
    pub fn detach_net(&mut self, slot: u8) {
        self.devices.detach_net(slot);
    }

    /// Starts the machine's threads, each of which calls `enter` first; no thread is made later. A second call does
    /// nothing.
    ///
    /// # Errors
    /// A thread cannot be made; those that were made before it run.
    pub fn start(&mut self, enter: Arc<Enter>) -> Result<(), Error> {
        let report = Arc::clone(&self.report);
        let threads = Threads { enter, report };
        let started = self.devices.start(&threads);
        started.map_err(Error::system("thread of a device"))?;
        let Some((crew, vcpus)) = self.crew.take() else {
            return Ok(());
        };
        sys::with_kick_blocked(|| Arc::new(crew).start(&threads, vcpus))
            .map_err(Error::system("thread of a vCPU"))
    }

    /// Stops the vCPUs: when this returns none executes guest code, and until [`Machine::resume`] none costs processor
    /// time. A vCPU that has ended is stopped. Devices go on: what the guest has sent is delivered, interrupts wait for
    /// the guest. The guest's clocks go on too. Does nothing when the machine is paused.
    ///
    /// # Errors
    /// [`Error::Pause`] or [`Error::System`] when a vCPU cannot be stopped; the machine is not paused then.
    pub fn pause(&mut self) -> Result<(), Error> {
        let result = match self.gate.close(sys::kick, PAUSE_LIMIT) {
            Ok(true) => return Ok(()),
            Ok(false) => Error::Pause(PAUSE_LIMIT),
            Err(error) => Error::system("signal to a vCPU thread")(error),
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
        self.poll.fd()
    }

    /// Handles what is ready, or a fair part of it; never blocks. Returns what the owner must know. When the machine
    /// has ended, the streams that have bytes for a slow reader are still there: [`Vsock::open_streams`] counts them.
    ///
    /// # Errors
    /// The event loop cannot go on.
    pub fn handle_events(&mut self) -> Result<Vec<Event>, Error> {
        let mut events = Vec::new();
        for token in self.poll.ready()? {
            match token {
                Token::Report => self.read_report(&mut events),
                Token::Rng => self.devices.rng.process(),
                Token::Balloon => self.devices.balloon.process(),
                Token::Vsock => {
                    let closed = self.devices.vsock.handle_events();
                    events.extend(closed.into_iter().map(Event::StreamClosed));
                }
                Token::NetQueues(number) => self.net(number, Net::kicked),
                Token::Tap(number) => self.net(number, Net::tap_ready),
            }
        }
        Ok(events)
    }

    /// CLOCK_MONOTONIC just before the first `KVM_RUN`.
    #[must_use]
    pub fn first_run(&self) -> Option<Duration> {
        self.report.first_run()
    }

    fn net(&self, number: u8, work: impl FnOnce(&Net)) {
        if let Some(net) = self.devices.net(number) {
            work(net);
        }
    }

    /// What threads have reported. When a vCPU has ended, what is left to tell of the guest comes before that.
    fn read_report(&mut self, events: &mut Vec<Event>) {
        // Cannot fail: the event is raised.
        let _ = self.report.event().read();
        let end = self.report.take_end();
        if end.is_some() {
            let closed = self.devices.drain();
            events.extend(closed.into_iter().map(Event::StreamClosed));
        }
        let faults = self.report.take_faults().into_iter();
        events.extend(faults.map(|(device, fault)| Event::Fault { device, fault }));
        if let Some(reason) = end {
            let last_words = last_words::read(self.devices.space().ram());
            events.push(Event::Ended(Ended { reason, last_words }));
        }
    }
}

/// RAM, and the window of the server, if it has one and a vCPU can address it; otherwise nothing is mapped.
fn address_space(extent: &Extent, server: &impl FileServer) -> Result<AddressSpace, Error> {
    let window = server.window().and_then(|(address, length)| {
        let start = extent.window(length)?;
        Some(Window {
            start,
            address,
            length,
        })
    });
    let ram = extent.map().map_err(Error::Memory)?;
    Ok(AddressSpace::new(ram, window))
}
