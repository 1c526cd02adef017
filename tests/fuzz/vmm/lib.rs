//! The `vmm` crate as it is, but for the machine: this one has the host's end of the vsock device and nothing else, and
//! its events are those that it is told.

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

pub use real::virtio::{FileServer, MacAddress};
use real::vsock::{GUEST_CID, Vsock, VsockFront};
pub use real::*;

/// A machine without vCPUs.
pub struct Machine {
    vsock: Vsock,
    _front: VsockFront,
    events: Vec<Event>,
    /// The network slots that are in use.
    nets: [bool; MAX_NET_SLOTS],
}

impl Machine {
    /// What a target makes.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn without_kvm() -> Result<Machine, Error> {
        let (front, vsock) = Vsock::new(GUEST_CID).map_err(Error::Vsock)?;
        Ok(Machine {
            vsock,
            _front: front,
            events: Vec::new(),
            nets: [false; MAX_NET_SLOTS],
        })
    }

    /// What the next call of [`Machine::handle_events`] returns.
    pub fn tell(&mut self, event: Event) {
        self.events.push(event);
    }

    /// # Errors
    /// Always: there is none.
    pub fn new<S: FileServer>(
        _: File,
        config: MachineConfig<'_>,
        _: Arc<S>,
    ) -> Result<Machine, Error> {
        Err(Error::Vcpus(config.vcpus))
    }

    pub fn vsock(&mut self) -> &mut Vsock {
        &mut self.vsock
    }

    /// # Errors
    /// [`Error::NoNetSlot`].
    pub fn attach_net(&mut self, _: MacAddress, _: OwnedFd) -> Result<u8, Error> {
        let free = self.nets.iter().position(|used| !used);
        let free = free.ok_or(Error::NoNetSlot(MAX_NET_SLOTS))?;
        self.nets[free] = true;
        Ok(free as u8)
    }

    pub fn detach_net(&mut self, slot: u8) {
        assert!(self.nets[usize::from(slot)], "it is not in use");
        self.nets[usize::from(slot)] = false;
    }

    /// # Errors
    /// None.
    pub fn start(&mut self, _: Arc<Enter>) -> Result<(), Error> {
        Ok(())
    }

    /// # Errors
    /// None.
    pub fn pause(&mut self) -> Result<(), Error> {
        Ok(())
    }

    pub fn resume(&mut self) {}

    #[must_use]
    pub fn epoll_fd(&self) -> BorrowedFd<'_> {
        self.vsock.epoll_fd()
    }

    /// # Errors
    /// None.
    pub fn handle_events(&mut self) -> Result<Vec<Event>, Error> {
        let closed = self.vsock.handle_events().into_iter();
        let told = std::mem::take(&mut self.events);
        Ok(closed.map(Event::StreamClosed).chain(told).collect())
    }

    #[must_use]
    pub fn first_run(&self) -> Option<Duration> {
        None
    }
}
