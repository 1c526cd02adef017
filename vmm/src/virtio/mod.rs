//! virtio: the devices' common trait, the MMIO transport and the devices themselves.

mod chain;
mod device;
mod fs;
mod mmio;
mod net;
mod queue_registers;
mod rng;
#[cfg(test)]
mod test_driver;

pub use device::{Activation, ActiveQueue, Interrupt, VirtioDevice};
pub use fs::FileServer;
pub use net::Error as NetError;

pub(crate) use fs::Fs;
pub(crate) use mmio::Transport;
pub(crate) use net::{Net, Tap};
pub(crate) use rng::{Rng, RngWork};
