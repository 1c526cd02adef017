//! Boot: what lies in guest memory and in the registers when the kernel takes over (Linux
//! Documentation/arch/x86/boot.rst, "64-bit boot protocol").

mod command_line;
mod mp_table;
mod registers;
mod zero_page;

use std::io::Cursor;

use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::config::MachineConfig;
use crate::layout::{BOOT_PARAMS, COMMAND_LINE, COMMAND_LINE_MAX, HIGH_RAM, MP_TABLE, PAGE};
use crate::memory::Extent;

pub(crate) use registers::{configure_boot_vcpu, msrs};

/// Why the guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel is not an ELF image that fits.
    #[error("cannot load the guest kernel")]
    Kernel(#[source] linux_loader::loader::Error),
    /// The kernel lies where the boot page tables do not reach.
    #[error("the guest kernel occupies [{start:#x}, {end:#x}), not within 1 MiB to 1 GiB")]
    KernelPlace {
        /// Entry address.
        start: u64,
        /// End of its image with its bss.
        end: u64,
    },
    /// Kernel and initramfs do not fit.
    #[error(
        "guest memory is too small for the kernel (up to {kernel_end:#x}) and {initramfs} bytes of initramfs"
    )]
    Space {
        /// End of the kernel's image.
        kernel_end: u64,
        /// Bytes of initramfs.
        initramfs: usize,
    },
    /// The command line is longer than the kernel takes.
    #[error("the guest kernel's command line has {0} bytes, more than {COMMAND_LINE_MAX}")]
    CommandLine(usize),
    /// A write to guest memory failed.
    #[error("cannot write to guest memory")]
    Write(#[source] vm_memory::GuestMemoryError),
}

/// Loads kernel and initramfs, describes the machine to the kernel, and returns the kernel's entry address.
pub(crate) fn load(
    memory: &GuestMemoryMmap,
    extent: &Extent,
    config: MachineConfig<'_>,
    devices: usize,
) -> Result<u64, Error> {
    let MachineConfig {
        kernel,
        initramfs,
        vcpus,
        apparmor,
        ..
    } = config;
    let loaded = Elf::load(memory, None, &mut Cursor::new(kernel), None).map_err(Error::Kernel)?;
    let entry = loaded.kernel_load.0;
    if entry < HIGH_RAM || loaded.kernel_end > registers::MAPPED {
        return Err(Error::KernelPlace {
            start: entry,
            end: loaded.kernel_end,
        });
    }
    let initrd = place_initramfs(extent, loaded.kernel_end, initramfs.len())?;
    let line = command_line::build(devices, apparmor)?;

    let write = |bytes: &[u8], address| {
        memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(Error::Write)
    };
    write(initramfs, initrd.start.into())?;
    write(line.as_bytes(), COMMAND_LINE)?;
    write(&zero_page::build(extent, initrd, line.len()), BOOT_PARAMS)?;
    write(&mp_table::build(vcpus, devices), MP_TABLE)?;
    registers::write_tables(memory).map_err(Error::Write)?;
    Ok(entry)
}

/// Where the initramfs is.
#[derive(Clone, Copy)]
struct Initrd {
    start: u32,
    size: u32,
}

/// The initramfs goes directly behind the kernel, into memory that is written to anyway.
fn place_initramfs(extent: &Extent, kernel_end: u64, size: usize) -> Result<Initrd, Error> {
    let space = Error::Space {
        kernel_end,
        initramfs: size,
    };
    let place = || {
        let size = u32::try_from(size).ok()?;
        let start = kernel_end.checked_next_multiple_of(PAGE)?;
        (start.checked_add(size.into())? <= extent.low_end).then_some(())?;
        Some(Initrd {
            start: u32::try_from(start).ok()?,
            size,
        })
    };
    place().ok_or(space)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initramfs_lies_behind_the_kernel() {
        let extent = Extent::new(64 << 20, 40).unwrap();
        let place = |kernel_end, size| place_initramfs(&extent, kernel_end, size);
        let initrd = place((32 << 20) - 1, 5000).unwrap();
        assert_eq!((initrd.start, initrd.size), (32 << 20, 5000));
        let end = 64 << 20;
        assert!(place(end - 8192, 8192).is_ok());
        assert!(matches!(place(end - 8192, 8193), Err(Error::Space { .. })));
        assert!(matches!(place(end - 8191, 8192), Err(Error::Space { .. })));
        assert!(matches!(
            place(16 << 20, (48 << 20) + 1),
            Err(Error::Space { .. })
        ));
        assert!(matches!(
            place(16 << 20, usize::MAX),
            Err(Error::Space { .. })
        ));
    }

    #[test]
    fn what_is_not_a_kernel_is_refused() {
        let extent = Extent::new(8 << 20, 40).unwrap();
        let memory = extent.map().unwrap();
        let load = |kernel: &[u8]| {
            let config = MachineConfig {
                kernel,
                initramfs: &[],
                memory: 8 << 20,
                vcpus: 1,
                net_slots: 0,
                disks: &[],
                apparmor: false,
            };
            load(&memory, &extent, config, 3)
        };
        assert!(matches!(load(b""), Err(Error::Kernel(_))));
        assert!(matches!(load(&[0x7f; 4096]), Err(Error::Kernel(_))));
    }
}
