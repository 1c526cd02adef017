//! The bus of virtio-mmio devices: a table of pages, each a device's or, for now, nobody's. Configuration accesses come
//! here, and notifications of what vCPUs serve but for the file system's requests; a device's mutex is held for the time
//! of one.

use std::sync::{Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_VERSION};

use crate::layout::{MMIO, PAGE};
use crate::virtio::{MAGIC, Transport, VERSION};

/// All pages, from [`MMIO`] on.
pub(crate) struct Bus(Vec<Mutex<Option<Transport>>>);

impl Bus {
    /// A bus of `pages` idle pages.
    pub(crate) fn new(pages: usize) -> Bus {
        Bus((0..pages).map(|_| Mutex::new(None)).collect())
    }

    /// Puts a device on an idle page. A guest that has looked already has to be told to look again.
    pub(crate) fn plug(&self, slot: u8, device: Transport) {
        if let Some(page) = self.0.get(usize::from(slot)) {
            *lock(page) = Some(device);
        }
    }

    /// A read by a vCPU. Beyond the pages all bits are ones.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        let Some((page, offset)) = self.find(address) else {
            return data.fill(0xff);
        };
        match &*lock(page) {
            Some(device) => device.read(offset, data),
            None => idle(offset, data),
        }
    }

    /// A write by a vCPU. Where no device is, nothing happens.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((page, offset)) = self.find(address)
            && let Some(device) = &mut *lock(page)
        {
            device.write(offset, data);
        }
    }

    /// A notification by a vCPU: the bytes of a queue's number.
    pub(crate) fn notify(&self, slot: u16, queue: &[u8]) {
        if let Ok(queue) = queue.try_into().map(u32::from_le_bytes)
            && let Some(page) = self.0.get(usize::from(slot))
            && let Some(device) = &mut *lock(page)
        {
            device.notified(queue);
        }
    }

    fn find(&self, address: u64) -> Option<(&Mutex<Option<Transport>>, u64)> {
        let offset = address.checked_sub(MMIO)?;
        let page = self.0.get(usize::try_from(offset / PAGE).ok()?)?;
        Some((page, offset % PAGE))
    }
}

/// What a driver finds on an idle page: device type 0, a placeholder (virtio 1.2, section 4.2.3.1.1), which it leaves
/// alone.
fn idle(offset: u64, data: &mut [u8]) {
    data.fill(0);
    if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
        let value = match u32::try_from(offset) {
            Ok(VIRTIO_MMIO_MAGIC_VALUE) => MAGIC,
            Ok(VIRTIO_MMIO_VERSION) => VERSION,
            _ => 0,
        };
        *data = value.to_le_bytes();
    }
}

fn lock(page: &Mutex<Option<Transport>>) -> MutexGuard<'_, Option<Transport>> {
    page.lock().unwrap_or_else(PoisonError::into_inner)
}
