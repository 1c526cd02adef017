//! The machine: KVM, guest memory, boot, virtio devices. Knows nothing of OCI.
//!
//! [`Machine`] is built by its owner's event loop thread and belongs to it; each vCPU has a thread of its own, and
//! virtio-fs and virtio-blk devices have worker threads. Threads share guest memory and the bus of configuration registers, nothing
//! else.

mod address_space;
mod boot;
mod bus;
mod config;
mod copier;
mod cpuid;
mod devices;
mod end;
mod error;
mod fault;
#[cfg(fuzzing)]
pub mod fuzz;
mod gate;
mod kvm;
mod last_words;
mod layout;
mod machine;
mod memory;
mod poll;
mod report;
mod slots;
mod sys;
mod threads;
mod vcpu;
pub mod virtio;
pub mod vsock;
mod window;

pub use address_space::AddressSpace;
pub use boot::Error as BootError;
pub use config::MachineConfig;
pub use devices::SHARE_TAG;
pub use end::{EndReason, Ended};
pub use error::Error;
pub use fault::{Device, Fault};
pub use layout::MAX_NET_SLOTS;
pub use machine::{Event, Machine};
pub use memory::Error as MemoryError;
pub use slots::BALLOON;
pub use threads::{Enter, Thread};
