//! What goes wrong with devices, for the machine's owner to log.

use std::{error, fmt, io};

/// A device of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The guest's file system (virtio-fs).
    Fs,
    /// The streams between guest and host (virtio-vsock).
    Vsock,
    /// The source of random bytes (virtio-rng).
    Rng,
    /// The balloon (virtio-balloon).
    Balloon,
    /// A block device (virtio-blk), by its place in [`MachineConfig::disks`](crate::MachineConfig::disks).
    Disk(u8),
    /// A network device (virtio-net), in the order in which they were attached.
    Net(u8),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Fs => write!(f, "fs"),
            Device::Vsock => write!(f, "vsock"),
            Device::Rng => write!(f, "rng"),
            Device::Balloon => write!(f, "balloon"),
            Device::Disk(number) => write!(f, "disk{number}"),
            Device::Net(number) => write!(f, "net{number}"),
        }
    }
}

/// Why a device has stopped: it does nothing more until the guest's driver resets it.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The driver has set up a queue that is too large, not aligned or not in guest memory.
    #[error("the driver has set up a queue that is not valid")]
    Queue,
    /// The host could not start the device, or not as the driver has set it up.
    #[error("the device cannot be started")]
    Activation(#[source] io::Error),
    /// The driver has broken the rules of a queue in use.
    #[error("the driver has broken the rules of a queue")]
    Driver(#[source] Box<dyn error::Error + Send + Sync>),
}
