//! virtio-rng (virtio 1.2, section 5.4): random bytes of the host's kernel.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::Broken;
use super::chain::Buffers;
use super::requests::Requests;
use crate::sys;

/// Maximum number of bytes for one request; the driver asks again for more.
const REQUEST_LIMIT: usize = 256;

/// The device.
pub(crate) struct Rng;

impl Requests for Rng {
    const DEVICE_TYPE: u32 = VIRTIO_ID_RNG;
    const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1;
    /// The driver keeps one request in flight.
    const QUEUE_SIZES: &'static [u16] = &[8];
    const QUEUE: usize = 0;
    const BATCH: usize = 16;

    fn serve(buffers: &Buffers<'_, '_>) -> Result<u32, Broken> {
        if !buffers.readable.is_empty() {
            return Err(Broken::Direction);
        }
        let mut random = [0; REQUEST_LIMIT];
        let wanted: usize = buffers.writable.iter().map(|slice| slice.len()).sum();
        let wanted = wanted.min(REQUEST_LIMIT);
        let filled = sys::random(&mut random[..wanted]).unwrap_or(0);
        let mut rest = &random[..filled];
        for slice in &buffers.writable {
            let (part, behind) = rest.split_at(slice.len().min(rest.len()));
            slice.copy_from(part);
            rest = behind;
        }
        u32::try_from(filled).map_err(|_| Broken::Length)
    }
}

#[cfg(test)]
#[path = "rng_tests.rs"]
mod tests;
