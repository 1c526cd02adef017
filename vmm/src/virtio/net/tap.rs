//! A tap device of the host, and what is known of its readiness: it is watched edge-triggered.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use super::{Error, HEADER, sys};
use crate::sys::{Incoming, Outgoing, read, write};

/// What the tap must have been made with: Ethernet frames, each with a `virtio_net_hdr` and nothing else in front.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// A tap.
pub(crate) struct Tap {
    pub(super) fd: OwnedFd,
    /// What it may leave to the guest (`TUN_F_*`).
    pub(super) offloads: libc::c_uint,
    /// It may have a packet. If not, an event comes before it has.
    pub(super) readable: bool,
    /// It may take a packet. If not, an event comes before it does.
    pub(super) writable: bool,
}

impl Tap {
    /// Takes over the open queue of a tap made with `IFF_TAP|IFF_NO_PI|IFF_VNET_HDR`, and makes it non-blocking.
    ///
    /// # Errors
    /// It is none, or cannot be set up.
    pub(crate) fn new(fd: OwnedFd) -> Result<Tap, Error> {
        let flags = sys::tap_flags(&fd).map_err(system("TUNGETIFF"))?;
        if libc::c_int::from(flags) & FLAGS != FLAGS {
            return Err(Error::Flags(flags));
        }
        sys::set_nonblocking(&fd).map_err(system("F_SETFL"))?;
        sys::set_header_size(&fd, HEADER).map_err(system("TUNSETVNETHDRSZ"))?;
        sys::set_offloads(&fd, 0).map_err(system("TUNSETOFFLOAD"))?;
        Ok(Tap::ready_made(fd))
    }

    /// A descriptor that needs no setting up.
    pub(crate) fn ready_made(fd: OwnedFd) -> Tap {
        Tap {
            fd,
            offloads: 0,
            readable: true,
            writable: true,
        }
    }

    /// Sets what the host's kernel may leave to the guest (`TUN_F_*`).
    pub(super) fn set_offloads(&mut self, offloads: libc::c_uint) -> Result<(), Error> {
        if self.offloads != offloads {
            sys::set_offloads(&self.fd, offloads).map_err(system("TUNSETOFFLOAD"))?;
            self.offloads = offloads;
        }
        Ok(())
    }

    /// There was an event.
    pub(super) fn ready(&mut self) {
        self.readable = true;
        self.writable = true;
    }

    /// Reads a packet and returns its length; 0 if there is none.
    pub(super) fn read(&mut self, to: &Incoming<'_>) -> usize {
        // A tap that fails may have been deleted: should it come back, that is an event.
        let length = read(self.fd.as_fd(), to).unwrap_or(0);
        self.readable = length > 0;
        length
    }

    /// Writes a packet. If the tap is full it is not writable then. A packet that it refuses, because it is down say,
    /// is dropped.
    pub(super) fn write(&mut self, packet: &Outgoing<'_>) {
        if let Err(error) = write(self.fd.as_fd(), packet) {
            self.writable = error.kind() != io::ErrorKind::WouldBlock;
        }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn system(call: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { call, source }
}
