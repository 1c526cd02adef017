//! virtio: the devices' common trait, the MMIO transport and the devices themselves.

mod device;

pub use device::{ActiveQueue, Activation, Interrupt, VirtioDevice};
