//! The bus of virtio-mmio devices: a table that does not change, one page each. Only configuration accesses come here; a device's mutex is held for
//! the time of one register access.

use std::sync::{Mutex, PoisonError};

use crate::layout::{MMIO, PAGE};
use crate::virtio::Transport;

/// All devices, by page from [`MMIO`] on.
pub(crate) struct Bus(Vec<Mutex<Transport>>);

impl Bus {
    pub(crate) fn new(devices: Vec<Transport>) -> Bus {
        Bus(devices.into_iter().map(Mutex::new).collect())
    }

    /// A read by a vCPU. Where no device is, all bits are ones.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => {
                device
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    /// A write by a vCPU. Where no device is, nothing happens.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            device
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(&Mutex<Transport>, u64)> {
        let offset = address.checked_sub(MMIO)?;
        let device = self.0.get(usize::try_from(offset / PAGE).ok()?)?;
        Some((device, offset % PAGE))
    }
}
