//! What a machine is made of.

use std::sync::Arc;

use crate::virtio::Disk;

/// What a machine is made of.
#[derive(Clone, Copy)]
pub struct MachineConfig<'a> {
    /// The kernel: an uncompressed ELF image (vmlinux).
    pub kernel: &'a [u8],
    /// The initramfs: a cpio archive.
    pub initramfs: &'a [u8],
    /// Guest memory, bytes; a multiple of 4096.
    pub memory: u64,
    /// Number of vCPUs, 1 to 254.
    pub vcpus: u8,
    /// How many network devices can come with [`Machine::attach_net`]. Until then each costs the guest one register
    /// access.
    pub net_slots: usize,
    /// The block devices.
    pub disks: &'a [Arc<Disk>],
    /// AppArmor is active in the guest's kernel.
    pub apparmor: bool,
}
