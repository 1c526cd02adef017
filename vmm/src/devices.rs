//! The devices of a machine: their front halves are on the bus, where vCPUs find them, and the back halves that the
//! event loop drives are here. The file system and the disks have threads of their own for theirs.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::address_space::AddressSpace;
use crate::bus::Bus;
use crate::error::Error;
use crate::fault::Device;
use crate::kvm;
use crate::poll::{Poll, Token};
use crate::report::{Report, Reporter};
use crate::slots::Slots;
use crate::threads::{Thread, Threads};
use crate::virtio::{
    self, Balloon, Blk, Disk, FileRequests, FileServer, Fs, MacAddress, Net, Pool, RequestServer,
    Rng, Tap, VirtioDevice, Work,
};
use crate::vsock::{GUEST_CID, Port, Vsock};

/// The tag the guest mounts its file system by.
pub const SHARE_TAG: &str = "chiton";

/// The devices.
pub(crate) struct Devices {
    pub(crate) vsock: Vsock,
    pub(crate) balloon: Work<Balloon>,
    pub(crate) rng: Work<Rng>,
    /// Those that are attached, by their numbers.
    nets: Vec<Net>,
    /// Those of the file system.
    requests: Arc<dyn FileRequests>,
    /// Each starts the workers of a device.
    workers: Vec<Box<StartWorkers>>,
    board: Board,
}

type StartWorkers = dyn FnOnce(&Threads) -> io::Result<()> + Send;

/// What devices are plugged into.
pub(crate) struct Board {
    vm: Arc<VmFd>,
    slots: Slots,
    bus: Arc<Bus>,
    space: AddressSpace,
    report: Arc<Report>,
}

impl Board {
    /// A board without devices.
    pub(crate) fn new(vm: VmFd, slots: Slots, space: AddressSpace, report: Arc<Report>) -> Board {
        Board {
            vm: Arc::new(vm),
            slots,
            bus: Arc::new(Bus::new(slots.count().into())),
            space,
            report,
        }
    }

    /// Puts a device into its slot. `watch` sees to it that somebody looks at the queues when their events are raised.
    fn plug(
        &self,
        device: Device,
        front: Box<dyn VirtioDevice>,
        watch: impl FnOnce(&[EventFd]) -> Result<(), Error>,
    ) -> Result<u8, Error> {
        let slot = self.slots.of(device);
        let reporter = Reporter::new(Arc::clone(&self.report), device);
        let transport = kvm::attach(&self.vm, slot, front, &self.space, reporter)?;
        watch(transport.kicks())?;
        self.bus.plug(slot, transport);
        Ok(slot)
    }

    /// Plugs a device whose requests threads of their own serve.
    fn plug_pool<S: RequestServer>(
        &self,
        device: Device,
        server: Arc<S>,
        front: impl FnOnce(Arc<Pool<S>>) -> Box<dyn VirtioDevice>,
    ) -> Result<Arc<Pool<S>>, Error> {
        let pool = Pool::new(self.space.clone(), server);
        let pool = Arc::new(pool.map_err(Error::system("epoll"))?);
        self.plug(device, front(Arc::clone(&pool)), |kicks| {
            pool.watch_queues(kicks).map_err(Error::system("epoll"))
        })?;
        Ok(pool)
    }
}

impl Devices {
    /// Makes the devices that are there from the start, and has the event loop watch them. The vCPUs must have been
    /// made.
    pub(crate) fn new<S: FileServer>(
        board: Board,
        server: Arc<S>,
        disks: &[Arc<Disk>],
        poll: &Poll,
    ) -> Result<Devices, Error> {
        let (rng_front, rng) = virtio::device();
        let (balloon_front, balloon) = virtio::device();
        let (vsock_front, vsock) = Vsock::new(GUEST_CID).map_err(Error::Vsock)?;
        poll.watch(&vsock.epoll_fd(), EventSet::IN, Token::Vsock)?;
        let window = board.space.window().copied();
        let events = |token| move |kicks: &[EventFd]| poll.watch_queues(kicks, token);
        // This one looks at its queues itself while it is running.
        board.plug(Device::Vsock, Box::new(vsock_front), |_| Ok(()))?;
        board.plug(Device::Rng, Box::new(rng_front), events(Token::Rng))?;
        board.plug(
            Device::Balloon,
            Box::new(balloon_front),
            events(Token::Balloon),
        )?;
        let requests = board.plug_pool(Device::Fs, server, |pool| {
            Box::new(Fs::new(SHARE_TAG, pool, window))
        })?;
        let mut workers: Vec<Box<StartWorkers>> = Vec::new();
        for (number, disk) in (0..).zip(disks) {
            let pool = board.plug_pool(Device::Disk(number), Arc::clone(disk), |pool| {
                Box::new(Blk::new(disk, pool))
            })?;
            let start = move |threads: &Threads| pool.start(threads, Thread::Blk);
            workers.push(Box::new(start));
        }
        Ok(Devices {
            vsock,
            balloon,
            rng,
            nets: Vec::new(),
            requests,
            workers,
            board,
        })
    }

    /// The requests of the file system, and the port that the guest writes to when there are some.
    pub(crate) fn file_requests(&self) -> (Arc<dyn FileRequests>, u16) {
        let slot = self.board.slots.of(Device::Fs);
        (Arc::clone(&self.requests), kvm::notification(slot))
    }

    /// Starts the threads of the disks. A second call does nothing.
    pub(crate) fn start(&mut self, threads: &Threads) -> io::Result<()> {
        self.workers.drain(..).try_for_each(|start| start(threads))
    }

    /// Gives a tap to a network device without one, or to a new one in the next free slot, and returns the slot's
    /// number.
    pub(crate) fn attach_net(
        &mut self,
        mac: MacAddress,
        tap: OwnedFd,
        poll: &Poll,
    ) -> Result<u8, Error> {
        let slots = self.board.slots.nets();
        let free = self.nets.iter().position(Net::is_free);
        let number = u8::try_from(free.unwrap_or(self.nets.len())).ok();
        let number = number.filter(|number| *number < slots);
        let number = number.ok_or_else(|| Error::NoNetSlot(slots.into()))?;
        let tap = Tap::new(tap).map_err(Error::Net)?;
        let set = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        poll.watch(&tap, set, Token::Tap(number))?;
        if let Some(net) = self.net(number) {
            net.attach(mac, tap);
            return Ok(self.board.slots.of(Device::Net(number)));
        }
        let (front, net) = Net::new(mac, tap);
        self.nets.push(net);
        self.board
            .plug(Device::Net(number), Box::new(front), |kicks| {
                poll.watch_queues(kicks, Token::NetQueues(number))
            })
    }

    /// Takes the tap of the network device in a slot away, which is closed.
    pub(crate) fn detach_net(&mut self, slot: u8) {
        let mut numbers = 0..self.board.slots.nets();
        let number = numbers.find(|number| self.board.slots.of(Device::Net(*number)) == slot);
        if let Some(net) = number.and_then(|number| self.net(number)) {
            net.detach();
        }
    }

    /// Where vCPUs find the devices.
    pub(crate) fn bus(&self) -> &Arc<Bus> {
        &self.board.bus
    }

    /// The memory that the devices work on.
    pub(crate) fn space(&self) -> &AddressSpace {
        &self.board.space
    }

    /// A network device by its number.
    pub(crate) fn net(&self, number: u8) -> Option<&Net> {
        self.nets.get(usize::from(number))
    }

    /// The guest will never run again: takes what it has sent. Returns what [`Vsock::drain`] does.
    pub(crate) fn drain(&mut self) -> Vec<Port> {
        self.nets.iter().for_each(Net::drain);
        self.vsock.drain()
    }
}
