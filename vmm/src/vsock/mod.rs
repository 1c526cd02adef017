//! virtio-vsock (virtio 1.2, section 5.10) that ends in this process: the guest's streams are joined with descriptors
//! of the host.
//!
//! ```text
//!   driver ── queues ──  back half: Vsock (queues, batches)
//!     │                      │
//!   front half               Streams (who is expected, who is connected, whose turn it is)
//!   (configuration,          │
//!    activation, reset)      Stream ──── Connection (credit, half-close; no I/O)
//!                            │
//!                            Source, Sink (descriptors of somebody else)
//! ```
//! The guest connects, the host never does: whoever wants a stream gives the host's end of it to [`Vsock::offer`], and
//! gets the two ports between which the guest may connect, once. Both are random: the processes of a guest do not trust
//! each other, and any of them may open a vsock socket, so what a stream is for is proven by knowing its ports. On a
//! port of [`Vsock::accept`] the guest may connect as often as it likes, so many at a time. Every other connection is
//! refused.

mod connection;
mod front;
mod host_stream;
mod muxer;
mod packet;
mod stream;
mod streams;
mod sys;

use std::io;
use std::os::fd::RawFd;

use thiserror::Error;

pub use connection::Key;
pub use front::VsockFront;
pub use host_stream::{HostStream, Sink, Source, reopen};
pub use muxer::Vsock;
pub use packet::Broken;

/// A vsock port.
pub type Port = u32;

/// CID of the guest. The device is the machine's own, so the number need not be unique on the host; 0 to 2 are reserved
/// (virtio 1.2, section 5.10.4).
pub const GUEST_CID: u64 = 3;

/// Event data of the epoll instance.
mod token {
    /// The device was activated or reset.
    pub(super) const CHANGED: u64 = 0;
    /// A batch ended with work left.
    pub(super) const AGAIN: u64 = 1;
    /// The driver has added rx buffers.
    pub(super) const RX_KICK: u64 = 2;
    /// The driver has added tx packets.
    pub(super) const TX_KICK: u64 = 3;
    /// The first of the two tokens of the first stream.
    pub(super) const STREAMS: u64 = 4;
}

/// What can be wrong with a stream the host offers, or with setting up the device.
#[derive(Debug, Error)]
pub enum Error {
    /// The port is expected or connected already.
    #[error("vsock port {0} is in use")]
    PortInUse(Port),
    /// Too many streams.
    #[error("no more than {0} vsock streams at a time")]
    TooManyStreams(usize),
    /// No random numbers to be had.
    #[error("cannot draw a random vsock port")]
    Random(#[source] io::Error),
    /// The descriptor is not open for reading.
    #[error("descriptor {0} is not open for reading")]
    NotReadable(RawFd),
    /// The descriptor is not open for writing.
    #[error("descriptor {0} is not open for writing")]
    NotWritable(RawFd),
    /// The kernel does not tell what the descriptor is.
    #[error("cannot inspect descriptor {fd}")]
    Inspect {
        /// The descriptor.
        fd: RawFd,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No epoll instance or eventfd to be had.
    #[error("cannot set up the vsock device's events")]
    Events(#[source] io::Error),
}

#[cfg(test)]
mod tests;
