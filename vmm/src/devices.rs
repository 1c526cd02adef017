//! The devices of a machine: their front halves are on the bus, where vCPUs find them, and the back halves that the
//! event loop drives are here. The file system and the disks have threads of their own for theirs.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use vmm_sys_util::epoll::EventSet;

use crate::address_space::AddressSpace;
use crate::bus::Bus;
use crate::error::Error;
use crate::fault::Device;
use crate::kvm;
use crate::poll::{Poll, Token};
use crate::report::{Report, Reporter};
use crate::slots::Slots;
use crate::virtio::{
    self, Balloon, Blk, Disk, FileServer, Fs, MacAddress, Net, Rng, Tap, VirtioDevice, Work,
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
    board: Board,
}

/// What devices are plugged into.
pub(crate) struct Board {
    /// Closing it would end all irqfds (Linux virt/kvm/kvm_main.c, `kvm_vm_release`).
    vm: VmFd,
    slots: Slots,
    bus: Arc<Bus>,
    space: AddressSpace,
    report: Arc<Report>,
}

impl Board {
    /// A board without devices.
    pub(crate) fn new(vm: VmFd, slots: Slots, space: AddressSpace, report: Arc<Report>) -> Board {
        Board {
            vm,
            slots,
            bus: Arc::new(Bus::new(slots.count().into())),
            space,
            report,
        }
    }

    /// Puts a device into its slot. `queues` says where the event loop looks for its notifications; without that, the
    /// device does.
    fn plug(
        &self,
        device: Device,
        front: Box<dyn VirtioDevice>,
        queues: Option<(&Poll, Token)>,
    ) -> Result<u8, Error> {
        let slot = self.slots.of(device);
        let reporter = Reporter::new(Arc::clone(&self.report), device);
        let transport = kvm::attach(&self.vm, slot, front, &self.space, reporter)?;
        if let Some((poll, token)) = queues {
            poll.watch_queues(transport.kicks(), token)?;
        }
        self.bus.plug(slot, transport);
        Ok(slot)
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
        let fs = Fs::new(SHARE_TAG, server, window);
        let events = |token| Some((poll, token));
        board.plug(Device::Fs, Box::new(fs), None)?;
        board.plug(Device::Vsock, Box::new(vsock_front), None)?;
        board.plug(Device::Rng, Box::new(rng_front), events(Token::Rng))?;
        board.plug(
            Device::Balloon,
            Box::new(balloon_front),
            events(Token::Balloon),
        )?;
        for (number, disk) in (0..).zip(disks) {
            let blk = Blk::new(Arc::clone(disk));
            board.plug(Device::Disk(number), Box::new(blk), None)?;
        }
        Ok(Devices {
            vsock,
            balloon,
            rng,
            nets: Vec::new(),
            board,
        })
    }

    /// Puts a network device into the next free slot, and returns the slot's number.
    pub(crate) fn attach_net(
        &mut self,
        mac: MacAddress,
        tap: OwnedFd,
        poll: &Poll,
    ) -> Result<u8, Error> {
        let slots = self.board.slots.nets();
        let number = u8::try_from(self.nets.len()).ok();
        let number = number.filter(|number| *number < slots);
        let number = number.ok_or_else(|| Error::NoNetSlot(slots.into()))?;
        let tap = Tap::new(tap).map_err(Error::Net)?;
        let set = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        poll.watch(&tap, set, Token::Tap(number))?;
        let (front, net) = Net::new(mac, tap);
        self.nets.push(net);
        let queues = Some((poll, Token::NetQueues(number)));
        self.board
            .plug(Device::Net(number), Box::new(front), queues)
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
