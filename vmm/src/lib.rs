//! The machine: KVM, guest memory, boot, virtio devices. Knows nothing of OCI.

pub mod virtio;
pub mod vsock;
