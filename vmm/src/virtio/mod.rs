//! virtio: the devices' common trait, the MMIO transport and the devices themselves.

mod balloon;
mod blk;
mod broken;
mod chain;
mod device;
mod fs;
mod mmio;
mod net;
mod pool;
mod queue_registers;
mod requests;
mod rng;
#[cfg(test)]
mod test_driver;

pub use blk::Disk;
pub use device::{Activation, ActiveQueue, Interrupt, VirtioDevice};
pub use fs::FileServer;
pub use net::{Error as NetError, MacAddress};
pub use pool::RequestServer;

pub(crate) use balloon::Balloon;
pub(crate) use blk::Blk;
pub(crate) use broken::Broken;
pub(crate) use device::Line;
pub(crate) use fs::Fs;
pub(crate) use mmio::{MAGIC, Transport, VERSION};
pub(crate) use net::{Net, Tap};
pub(crate) use pool::{FileRequests, Pool, WORKERS};
pub(crate) use requests::{Work, device};
pub(crate) use rng::Rng;
