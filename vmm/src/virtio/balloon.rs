//! virtio-balloon (virtio 1.2, section 5.5) for free page reporting alone: memory that the guest has used and given up
//! goes back to the host. It is never asked to inflate.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

use super::Broken;
use super::chain::Buffers;
use super::requests::Requests;
use crate::sys;

/// `VIRTIO_BALLOON_F_REPORTING` (linux/virtio_balloon.h): a bit of the features.
const REPORTING: u32 = 5;

/// The device. Its configuration space reads as zeros: no page is wanted of the guest.
pub(crate) struct Balloon;

impl Requests for Balloon {
    const DEVICE_TYPE: u32 = VIRTIO_ID_BALLOON;
    const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << REPORTING;
    /// Those to inflate and to deflate by, which drivers expect, and that of reports: Linux reports 32 blocks at once
    /// (`PAGE_REPORTING_CAPACITY`, linux/page_reporting.h).
    const QUEUE_SIZES: &'static [u16] = &[8, 8, 32];
    /// Without the features for statistics and hints, the reporting queue is the third.
    const QUEUE: usize = 2;
    /// A report takes the host as long as it takes to free that much memory.
    const BATCH: usize = 1;

    /// A report: the buffers are the free memory (section 5.5.6.7). The guest takes none of it until it has the buffers
    /// back.
    fn serve(buffers: &Buffers<'_, '_>) -> Result<u32, Broken> {
        if !buffers.readable.is_empty() {
            return Err(Broken::Direction);
        }
        for block in &buffers.writable {
            sys::discard(block);
        }
        // What is written is not said: the memory holds zeros now.
        Ok(0)
    }
}

#[cfg(test)]
#[path = "balloon_tests.rs"]
mod tests;
