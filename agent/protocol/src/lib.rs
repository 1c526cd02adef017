//! The messages between host and guest: framing and types. No I/O policy.
//!
//! One control stream per machine carries [`Request`]s from the host and [`Message`]s from the
//! guest, each as one frame (see [`frame`]). What of a request PID 1 only passes on to others, such
//! as the configuration, follows the request as it is in frames of its own ([`Requests`]). Standard
//! streams never pass here: each has a raw vsock stream of its own, whose ports the host names in
//! [`Stdio`].
//!
//! Every type tolerates unknown fields, so that either side may learn new ones first.

#![forbid(unsafe_code)]

pub mod frame;
mod hex;
mod message;
mod request;

use std::net::{Ipv4Addr, SocketAddrV4};

pub use frame::{
    Decoder, Error, MAX_FRAME, append_bytes, encode, read, read_with_cap, split, split_bytes, write,
};
pub use hex::{from_hex, to_hex};
pub use message::{Exit, Failure, FailureKind, Message, Process, Reply};
pub use request::{
    Create, Device, Disk, Exec, Extra, HostMount, IdMaps, Interface, Joined, NetlinkRequest,
    Network, NetworkChange, Overlay, Ports, Request, RequestBody, Requests, Seccomp, Setup, Stdio,
    TerminalSize,
};

/// The vsock ports of the control stream, on the host (CID 2) and in the guest. The agent dials it
/// before there is any other process.
pub const CONTROL_PORTS: Ports = Ports {
    guest: 1024,
    host: 1024,
};

/// Where engines have the name server of a container: Docker's, in the container's network namespace.
pub const NAMES_ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 11), 53);

/// The vsock port on the host for a datagram to the name server, each on a connection of its own:
/// one datagram there, one back.
pub const NAMES_DATAGRAM_PORT: u32 = 1022;

/// The vsock port on the host for connections to the name server.
pub const NAMES_STREAM_PORT: u32 = 1023;

/// Maximum number of connections to each of these ports at a time.
pub const NAMES_MAX: usize = 64;

/// The machine's device that takes memory back, which the agent binds when there is time for it.
pub const BALLOON_DEVICE: u8 = 3;

/// The tag of the virtio-fs device that carries the root filesystem and the bind mounts.
pub const SHARE_TAG: &str = "chiton";

/// Version of this protocol, announced in [`Message::Hello`]. Raised by incompatible changes only.
pub const VERSION: u32 = 6;

/// Maximum number of descriptors that a process has in addition to its standard streams.
pub const EXTRA_MAX: usize = 16;

/// Maximum length of a compiled AppArmor policy, bytes. An engine's profile has some 10 KiB.
pub const POLICY_MAX: usize = 256 << 10;

/// Names a container of the machine by a number that the host has given with
/// [`RequestBody::Create`]: greater than every one used before, and below [`CONTAINERS_MAX`]. The
/// container that the machine was made for is [`FIRST`].
pub type ContainerId = u64;

/// The container that the machine was made for.
pub const FIRST: ContainerId = 0;

/// The arguments of a container's program that does nothing but wait for its end: the agent itself, by the name that
/// whoever sets the container up has it under, whatever the root.
pub const HOLDER: [&str; 2] = ["/proc/self/exe", "hold"];

/// Maximum number of containers that a machine has had in its life.
pub const CONTAINERS_MAX: ContainerId = 1 << 16;

/// Names a process of a container: [`INIT`], or a number that the host has given with [`Exec`]:
/// greater than every one used before for this container, and below [`PROCESSES_MAX`].
pub type ProcessId = u64;

/// Maximum number of processes that a container has had in its life.
pub const PROCESSES_MAX: ProcessId = 1 << 40;

/// The container's init.
pub const INIT: ProcessId = 0;
