//! The rules that a driver can break.

use super::chain;
use crate::fault::Fault;

/// The driver has broken the rules of a queue: the device needs a reset.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The ring itself.
    #[error("the virtqueue is broken")]
    Queue(#[from] virtio_queue::Error),
    /// A chain of descriptors.
    #[error(transparent)]
    Chain(#[from] chain::Error),
    /// A ring that is not in guest memory.
    #[error("a ring is not in guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// A chain with a buffer of the wrong direction.
    #[error("a descriptor has the wrong direction")]
    Direction,
    /// A chain whose buffers are too short or too long for what is in them.
    #[error("a descriptor chain has the wrong length")]
    Length,
}

impl From<Broken> for Fault {
    fn from(broken: Broken) -> Fault {
        Fault::Driver(Box::new(broken))
    }
}
