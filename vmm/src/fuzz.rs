//! What the fuzz targets (`tests/fuzz`) need of the inside: the devices behind their registers, on guest memory that the
//! target writes itself, without KVM. Only there when cargo-fuzz compiles.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::address_space::AddressSpace;
use crate::fault::Device;
use crate::last_words;
use crate::report::{Report, Reporter};
use crate::virtio::{
    Balloon, Blk, Disk, FileServer, Fs, MacAddress, Net, Pool, Rng, Tap, Transport, VirtioDevice,
    Work, device,
};
use crate::vsock::{GUEST_CID, Port, Vsock};
use crate::window::Window;

/// Where the window of the file system is.
pub const WINDOW: u64 = 1 << 32;

/// What is on a [`Board`], in the order of its devices' numbers.
pub const DEVICES: [&str; 6] = ["fs", "vsock", "rng", "balloon", "net", "disk"];

/// One device of each kind, as a machine plugs them.
pub struct Board {
    memory: Arc<GuestMemoryMmap>,
    transports: Vec<Transport>,
    vsock: Vsock,
    rng: Work<Rng>,
    balloon: Work<Balloon>,
    net: Net,
    /// Each does what the threads of a device do.
    workers: Vec<Box<dyn Fn(bool)>>,
    /// Turns that were taken.
    turns: usize,
    report: Arc<Report>,
}

impl Board {
    /// Devices on `memory` bytes of guest memory. `tap` is read and written like a tap, but need not be one.
    ///
    /// # Errors
    /// The host has no memory or descriptors left.
    pub fn new<S: FileServer>(
        memory: usize,
        server: Arc<S>,
        disk: Arc<Disk>,
        mac: MacAddress,
        tap: OwnedFd,
    ) -> io::Result<Board> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), memory)]);
        let memory = Arc::new(memory.map_err(io::Error::other)?);
        let window = server.window().map(|(address, length)| Window {
            start: WINDOW,
            address,
            length,
        });
        let space = AddressSpace::new(Arc::clone(&memory), window);
        let report = Arc::new(Report::new(event()?));
        let (rng_front, rng) = device();
        let (balloon_front, balloon) = device();
        let (vsock_front, vsock) = Vsock::new(GUEST_CID).map_err(io::Error::other)?;
        let (net_front, net) = Net::new(mac, Tap::ready_made(tap));
        let fs = Arc::new(Pool::new(space.clone(), server)?);
        let blk = Arc::new(Pool::new(space.clone(), Arc::clone(&disk))?);
        let (fs_front, blk_front) = (Arc::clone(&fs), Arc::clone(&blk));
        let fronts: [(Device, Box<dyn VirtioDevice>); 6] = [
            (Device::Fs, Box::new(Fs::new("fuzz", fs_front, window))),
            (Device::Vsock, Box::new(vsock_front)),
            (Device::Rng, Box::new(rng_front)),
            (Device::Balloon, Box::new(balloon_front)),
            (Device::Net(0), Box::new(net_front)),
            (Device::Disk(0), Box::new(Blk::new(&disk, blk_front))),
        ];
        let plug = |(device, front): (Device, Box<dyn VirtioDevice>)| {
            let kicks = front.queue_max_sizes().iter().map(|_| event());
            let kicks = kicks.collect::<io::Result<_>>()?;
            let reporter = Reporter::new(Arc::clone(&report), device);
            let (space, irqfd) = (space.clone(), Arc::new(event()?));
            Ok(Transport::new(front, space, irqfd, kicks, reporter))
        };
        let transports = fronts.into_iter().map(plug).collect::<io::Result<_>>()?;
        Ok(Board {
            memory,
            transports,
            vsock,
            rng,
            balloon,
            net,
            workers: vec![
                Box::new(move |is_lent| fs.turn(is_lent)),
                Box::new(move |is_lent| blk.turn(is_lent)),
            ],
            turns: 0,
            report,
        })
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// A read of a vCPU at an offset of a device's page.
    pub fn read(&self, device: usize, offset: u64, data: &mut [u8]) {
        self.transports[device].read(offset, data);
    }

    /// A write of a vCPU.
    pub fn write(&mut self, device: usize, offset: u64, data: &[u8]) {
        self.transports[device].write(offset, data);
    }

    /// The host's end of the vsock device.
    pub fn vsock(&mut self) -> &mut Vsock {
        &mut self.vsock
    }

    /// What the event loop and the workers of devices do, whether or not they are woken; the ports of the streams that
    /// are done. The calling thread must be one that the server may be called in.
    pub fn turn(&mut self) -> Vec<Port> {
        // Now and then a request takes so long that another thread runs the vCPU.
        self.turns += 1;
        let is_lent = !self.turns.is_multiple_of(16);
        self.workers.iter().for_each(|work| work(is_lent));
        if self.turns.is_multiple_of(2) {
            let devices = self.transports.iter_mut();
            devices.for_each(|device| device.notified(1));
        }
        self.rng.process();
        self.balloon.process();
        self.net.kicked();
        self.net.tap_ready();
        self.vsock.handle_events()
    }

    /// What the event loop does when the guest will never run again.
    pub fn drain(&mut self) -> Vec<Port> {
        self.net.drain();
        self.vsock.drain()
    }

    /// The devices that have stopped since the last call, by name, and why.
    #[must_use]
    pub fn take_faults(&self) -> Vec<(String, String)> {
        let faults = self.report.take_faults().into_iter();
        faults
            .map(|(device, fault)| (device.to_string(), fault.to_string()))
            .collect()
    }
}

/// What is read of a ring of the guest's log.
#[must_use]
pub fn last_words(ring: &[u8]) -> String {
    last_words::parse(ring)
}

fn event() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}
