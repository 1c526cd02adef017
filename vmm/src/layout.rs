//! Where everything lies in the guest's physical address space.
//!
//! ```text
//! 0x0000_0500  GDT                          (boot only)
//! 0x0000_7000  boot_params                  (the "zero page")
//! 0x0000_9000  page tables, three pages     (boot only)
//! 0x0002_0000  kernel command line
//! 0x0008_0000  end of the first RAM range; the log ring, 64 KiB
//! 0x000f_0000  MP table (the PC's BIOS area, where the kernel looks for it)
//! 0x0010_0000  RAM; the kernel at its link address, the initrd behind it
//! 0xc000_0000  hole: nothing is RAM up to 4 GiB
//! 0xd000_0000    virtio-mmio devices, one page each
//! 0xfec0_0000    IO-APIC; 0xfee0_0000 local APIC; 0xfffb_d000 KVM's TSS (Intel)
//! 0x1_0000_0000 the rest of RAM
//! ```
//! All that the host writes lies close together: the host has to clear 2 MiB for the first byte in each of them.

/// Size of a page, bytes.
pub(crate) const PAGE: u64 = 4096;

/// The GDT the vCPU starts with; anywhere below the zero page.
pub(crate) const GDT: u64 = 0x500;

/// The zero page (Linux Documentation/arch/x86/zero-page.rst).
pub(crate) const BOOT_PARAMS: u64 = 0x7000;

/// Page map level 4, followed by one page directory pointer table and one page directory.
pub(crate) const PAGE_TABLES: u64 = 0x9000;

/// The command line.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;

/// Longest command line with its final NUL, bytes (Linux arch/x86/include/asm/setup.h, `COMMAND_LINE_SIZE`).
pub(crate) const COMMAND_LINE_MAX: usize = 2048;

/// End of the conventional memory below 1 MiB that e820 offers as RAM.
pub(crate) const LOW_RAM_END: u64 = LOG_RING;

/// The log ring: below 640 KiB, where the kernel puts nothing.
pub(crate) const LOG_RING: u64 = 0x8_0000;

/// Size of the log ring, bytes.
pub(crate) const LOG_RING_SIZE: u64 = 64 << 10;

/// The MP floating pointer structure and the table behind it (MultiProcessor Specification 1.4, section 4: the BIOS
/// area).
pub(crate) const MP_TABLE: u64 = 0xf_0000;

/// Start of extended memory (1 MiB), and end of the BIOS area.
pub(crate) const HIGH_RAM: u64 = 0x10_0000;

/// Start of the hole below 4 GiB.
pub(crate) const HOLE: u64 = 0xc000_0000;

/// End of the hole below 4 GiB.
pub(crate) const HOLE_END: u64 = 0x1_0000_0000;

/// The first virtio-mmio device; each takes one page.
pub(crate) const MMIO: u64 = 0xd000_0000;

/// The port of the first of them; each takes one. A queue's number that is written to it is a notification, as by the
/// register, but one that KVM need not decode an instruction for.
pub(crate) const NOTIFICATIONS: u16 = 0xc000;

/// IO-APIC (Linux arch/x86/include/asm/apicdef.h, `IO_APIC_DEFAULT_PHYS_BASE`).
pub(crate) const IO_APIC: u32 = 0xfec0_0000;

/// Local APIC (Linux arch/x86/include/asm/apicdef.h, `APIC_DEFAULT_PHYS_BASE`).
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;

/// Three pages that KVM needs on Intel processors without unrestricted guests (Linux Documentation/virt/kvm/api.rst,
/// `KVM_SET_TSS_ADDR`): above KVM's default identity map page at `0xfffbc000`.
pub(crate) const TSS: u64 = 0xfffb_d000;

/// Global system interrupt of the first virtio-mmio device. 0 to 3 belong to the PC's timer, keyboard, cascade and
/// second serial port.
pub(crate) const FIRST_GSI: u32 = 4;

/// Maximum number of vCPUs: 8-bit APIC ids, 255 is the broadcast id and one id is the IO-APIC's.
pub(crate) const MAX_VCPUS: u8 = 254;

/// Maximum number of network slots and disks together: the devices' interrupts are below 16, those of an ISA bus.
pub const MAX_NET_SLOTS: usize = 8;
