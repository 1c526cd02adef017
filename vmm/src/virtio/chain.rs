//! Descriptor chains: what the driver gives, checked before anyone touches it.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use crate::copier::Copier;

/// A chain that no correct driver makes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// It goes in a circle, or further than its table, or through a table in a table, or over 4 GiB.
    #[error("a descriptor chain does not end")]
    Endless,
    /// It is empty.
    #[error("a descriptor chain is empty")]
    Empty,
    /// A buffer that the device may write comes before one that it may read (virtio 1.2, section 2.7.4.2).
    #[error("a descriptor chain has a readable buffer behind a writable one")]
    Order,
    /// A buffer that is not in guest memory, or one to be written that is in the window, or too much of the window.
    #[error("a descriptor names memory that is not there")]
    Range,
}

/// The buffers of a chain.
pub(crate) struct Buffers<'c, 'm> {
    /// What the device may read, in order: guest memory, and copies of what is in the window.
    pub(crate) readable: Vec<VolatileSlice<'c>>,
    /// What the device may write, in order.
    pub(crate) writable: Vec<VolatileSlice<'m>>,
}

/// Walks a chain once. The number of buffers is bounded by the queue's size, with an indirect table too
/// (virtio 1.2, section 2.7.5.3.1).
pub(crate) fn buffers<'c, 'm: 'c, M>(
    memory: &'m GuestMemoryMmap,
    copier: &'c mut Copier,
    chain: DescriptorChain<M>,
    queue_size: u16,
) -> Result<Buffers<'c, 'm>, Error>
where
    M: Deref,
    M::Target: GuestMemory,
{
    let mut buffers = Buffers {
        readable: Vec::new(),
        writable: Vec::new(),
    };
    let mut parts = Vec::new();
    let mut last_has_next = None;
    for (count, descriptor) in chain.enumerate() {
        if count == usize::from(queue_size) {
            return Err(Error::Endless);
        }
        last_has_next = Some(descriptor.has_next());
        let writable = descriptor.is_write_only();
        if !writable && !buffers.writable.is_empty() {
            return Err(Error::Order);
        }
        let (address, length) = (descriptor.addr(), descriptor.len());
        let length = usize::try_from(length).map_err(|_| Error::Range)?;
        if writable {
            for slice in GuestMemoryBackend::get_slices(memory, address, length) {
                buffers.writable.push(slice.map_err(|_| Error::Range)?);
            }
        } else if let Some(part) = copier.part(buffers.readable.len(), address.0, length) {
            parts.push(part);
        } else {
            for slice in GuestMemoryBackend::get_slices(memory, address, length) {
                buffers.readable.push(slice.map_err(|_| Error::Range)?);
            }
        }
    }
    copier
        .insert(&parts, &mut buffers.readable)
        .map_err(|_| Error::Range)?;
    match last_has_next {
        // The walk has come to the end that the driver set.
        Some(false) => Ok(buffers),
        // It was cut off.
        Some(true) => Err(Error::Endless),
        None => Err(Error::Empty),
    }
}
