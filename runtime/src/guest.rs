//! What every machine boots, embedded in the binary.

/// The guest's kernel: an uncompressed ELF file.
pub(crate) static KERNEL: &[u8] = include_bytes!(env!("CHITON_KERNEL_FILE"));

/// The guest's initramfs: an uncompressed newc cpio archive that holds the agent as `/init`.
pub(crate) static INITRAMFS: &[u8] = include_bytes!(env!("CHITON_INITRAMFS_FILE"));
