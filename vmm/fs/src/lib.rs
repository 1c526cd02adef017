//! The virtio-fs server: FUSE protocol and passthrough. Knows nothing of KVM.
