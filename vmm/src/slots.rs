//! The slots of the bus. A slot's number gives its device's page and interrupt, and is its name in the guest:
//! `virtio-mmio.N`.
//!
//! ```text
//!  0   1      2    3        4 ...   behind them
//!  fs  vsock  rng  balloon  disks   network slots
//! ```
//! The guest's agent knows the balloon's number, and nothing else of this.

use crate::error::Error;
use crate::fault::Device;
use crate::layout::MAX_NET_SLOTS;

/// Number of devices that every machine has.
const FIXED: u8 = 4;

/// Number of the balloon, which the guest's kernel leaves alone until it is told to look (its driver's `bind`, of
/// `virtio-mmio.N`): nothing at the start needs it.
pub const BALLOON: u8 = 3;

/// How many slots there are of the kinds of which a machine may have several.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slots {
    disks: u8,
    nets: u8,
}

impl Slots {
    /// The slots of a machine with so many block devices and network slots.
    pub(crate) fn new(disks: usize, nets: usize) -> Result<Slots, Error> {
        if nets > MAX_NET_SLOTS {
            return Err(Error::NetSlots(nets));
        }
        let room = MAX_NET_SLOTS - nets;
        if disks > room {
            return Err(Error::Disks(disks, room));
        }
        let number = |count| u8::try_from(count).map_err(|_| Error::NetSlots(nets));
        Ok(Slots {
            disks: number(disks)?,
            nets: number(nets)?,
        })
    }

    /// Number of all slots.
    pub(crate) fn count(self) -> u8 {
        FIXED + self.disks + self.nets
    }

    /// Number of network slots.
    pub(crate) fn nets(self) -> u8 {
        self.nets
    }

    /// The slot of a device.
    pub(crate) fn of(self, device: Device) -> u8 {
        match device {
            Device::Fs => 0,
            Device::Vsock => 1,
            Device::Rng => 2,
            Device::Balloon => BALLOON,
            Device::Disk(number) => FIXED + number,
            Device::Net(number) => FIXED + self.disks + number,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_one_device() {
        let slots = Slots::new(3, 5).unwrap();
        let fixed = [Device::Fs, Device::Vsock, Device::Rng, Device::Balloon];
        assert_eq!(fixed.len(), usize::from(FIXED));
        let devices = fixed
            .into_iter()
            .chain((0..3).map(Device::Disk))
            .chain((0..5).map(Device::Net));
        let numbers: Vec<u8> = devices.map(|device| slots.of(device)).collect();
        assert_eq!(numbers, (0..slots.count()).collect::<Vec<u8>>());
    }

    #[test]
    fn there_are_as_many_slots_as_interrupts() {
        assert!(matches!(Slots::new(0, 9), Err(Error::NetSlots(9))));
        assert!(matches!(Slots::new(1, 8), Err(Error::Disks(1, 0))));
        assert!(matches!(Slots::new(9, 0), Err(Error::Disks(9, 8))));
        for (disks, nets) in [(0, 0), (8, 0), (0, 8), (4, 4)] {
            let slots = Slots::new(disks, nets).unwrap();
            assert_eq!(usize::from(slots.count()), 4 + disks + nets);
            assert_eq!(usize::from(slots.nets()), nets);
        }
    }
}
