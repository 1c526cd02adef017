//! virtio-fs (virtio 1.2, section 5.11): takes FUSE requests off the queues and lets a pool of threads have them
//! served.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::VolatileSlice;

use super::pool::{Pool, RequestServer};
use super::{Activation, VirtioDevice};
use crate::window::Window;

/// The queue for FORGET and INTERRUPT, and the one for all else. A request of 1 MiB takes 256 descriptors and a few for
/// headers.
const QUEUE_SIZES: [u16; 2] = [16, 512];

/// The index of that one.
const REQUESTS: u32 = 1;

/// The id of the shared memory that files are mapped into (`VIRTIO_FS_SHMCAP_ID_CACHE`, virtio 1.2, section 5.11.2).
const CACHE: u32 = 0;

/// Length of the tag in the configuration space, which the number of request queues follows.
const TAG_LENGTH: usize = 36;

/// A [`RequestServer`] of files, some of which the guest may map (DAX).
pub trait FileServer: RequestServer {
    /// Address and length of the window that files are mapped into; it stays reserved for good and begins at a multiple
    /// of 2 MiB. A server that maps none has no window.
    fn window(&self) -> Option<(usize, usize)>;

    /// A vCPU could not go on because of memory that is not there. Whether it is to try again: the window has changed
    /// since the vCPU's call before, whose count `seen` is (0 at first).
    fn mend(&self, seen: &mut u64) -> bool;
}

impl RequestServer for vmm_fs::Server {
    fn kind(&self, request: &[VolatileSlice<'_>]) -> u32 {
        vmm_fs::opcode(request)
    }

    fn serve(&self, request: &[VolatileSlice<'_>], reply: &[VolatileSlice<'_>]) -> usize {
        vmm_fs::Server::serve(self, request, reply)
    }
}

impl FileServer for vmm_fs::Server {
    fn window(&self) -> Option<(usize, usize)> {
        vmm_fs::Server::window(self)
    }

    fn mend(&self, seen: &mut u64) -> bool {
        vmm_fs::Server::mend(self, seen)
    }
}

/// The front half.
pub(crate) struct Fs<S> {
    config: [u8; TAG_LENGTH + 4],
    /// Where the guest finds the files that are mapped.
    window: Option<Window>,
    pool: Arc<Pool<S>>,
}

impl<S: RequestServer> Fs<S> {
    /// A file system that the guest mounts by `tag` (at most 36 bytes).
    pub(crate) fn new(tag: &str, pool: Arc<Pool<S>>, window: Option<Window>) -> Fs<S> {
        let mut config = [0; TAG_LENGTH + 4];
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        config[TAG_LENGTH..].copy_from_slice(&1_u32.to_le_bytes());
        Fs {
            config,
            window,
            pool,
        }
    }
}

impl<S: RequestServer> VirtioDevice for Fs<S> {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn is_served_by_vcpus(&self, queue: u32) -> bool {
        queue == REQUESTS
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.config)
    }

    fn shared_memory(&self, id: u32) -> Option<(u64, u64)> {
        let window = self.window.filter(|_| id == CACHE)?;
        Some((window.start, u64::try_from(window.length).ok()?))
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.pool.activate(activation, QUEUE_SIZES.len())
    }

    fn reset(&mut self) {
        self.pool.reset();
    }
}

#[cfg(test)]
#[path = "fs_tests.rs"]
mod tests;
