//! The machine: KVM, guest memory, boot, virtio devices. Knows nothing of OCI.
//!
//! [`Machine`] is built by its owner's event loop thread and belongs to it; each vCPU has a thread of its own, and the virtio-fs
//! device has worker threads. Threads share guest memory and the bus of configuration registers, nothing else.

mod boot;
mod bus;
mod cpuid;
mod gate;
mod kvm;
mod last_words;
mod layout;
mod machine;
mod memory;
mod sys;
mod vcpu;
pub mod virtio;
pub mod vsock;
mod window;

pub use boot::Error as BootError;
pub use machine::{BALLOON, EndReason, Ended, Error, Event, MAX_NET_SLOTS, Machine, MachineConfig};
pub use memory::Error as MemoryError;
pub use window::Window;
