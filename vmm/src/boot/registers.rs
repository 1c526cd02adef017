//! The registers at the kernel's entry: long mode, flat segments, an identity map (Linux
//! Documentation/arch/x86/boot.rst, "64-bit boot protocol"). Only the boot vCPU needs them; the others wait for INIT
//! and SIPI.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::layout::{BOOT_PARAMS, GDT, PAGE, PAGE_TABLES};

/// Bytes that the boot page tables map: one page directory of 2 MiB pages.
pub(super) const MAPPED: u64 = 1 << 30;

/// GDT entries at the selectors the boot protocol asks for: `__BOOT_CS` 0x10, `__BOOT_DS` 0x18 (Intel SDM volume 3A,
/// figure 3-8): base 0, limit 4 GiB, present, 64-bit execute/read; the same as read/write data.
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;

/// Page table bits: present, writable, 2 MiB page (Intel SDM volume 3A, 4.5).
const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const HUGE: u64 = 1 << 7;

/// Control register bits (Intel SDM volume 3A, 2.5) and EFER bits (volume 4, 0xc0000080).
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// RFLAGS bit 1 is always set.
const RFLAGS: u64 = 2;

/// MSRs (Intel SDM volume 4): fast string operations are on; MTRRs are on with write-back as default.
const MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

/// Writes GDT and page tables.
pub(super) fn write_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let directory_pointers = PAGE_TABLES + PAGE;
    let directory = PAGE_TABLES + 2 * PAGE;
    let pages: Vec<u8> = (0..MAPPED)
        .step_by(2 << 20)
        .flat_map(|address| (address | HUGE | WRITABLE | PRESENT).to_le_bytes())
        .collect();
    let put = |bytes: &[u8], address| memory.write_slice(bytes, GuestAddress(address));
    put(&DESCRIPTORS.map(u64::to_le_bytes).concat(), GDT)?;
    put(
        &(directory_pointers | WRITABLE | PRESENT).to_le_bytes(),
        PAGE_TABLES,
    )?;
    put(
        &(directory | WRITABLE | PRESENT).to_le_bytes(),
        directory_pointers,
    )?;
    put(&pages, directory)
}

/// Sets the boot vCPU to the kernel's entry.
pub(crate) fn configure_boot_vcpu(vcpu: &VcpuFd, entry: u64) -> Result<(), kvm_ioctls::Error> {
    let mut special = vcpu.get_sregs()?;
    let data = segment(DATA, 3, 0);
    special.cs = segment(CODE, 11, 1);
    special.ds = data;
    special.es = data;
    special.fs = data;
    special.gs = data;
    special.ss = data;
    special.gdt.base = GDT;
    special.gdt.limit = 8 * 4 - 1;
    special.idt.base = 0;
    special.idt.limit = 0;
    special.cr0 = CR0_PE | CR0_ET | CR0_PG;
    special.cr3 = PAGE_TABLES;
    special.cr4 = CR4_PAE;
    special.efer = EFER_LME | EFER_LMA;
    vcpu.set_sregs(&special)?;
    let general = kvm_regs {
        rip: entry,
        rsi: BOOT_PARAMS,
        rflags: RFLAGS,
        ..Default::default()
    };
    vcpu.set_regs(&general)
}

/// The MSRs that are not right after a reset of KVM's vCPU.
pub(crate) fn msrs() -> Result<Msrs, vmm_sys_util::fam::Error> {
    let msr = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[
        msr(MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        msr(MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK),
    ])
}

/// A flat segment: type as in the descriptor, `long` for 64-bit code.
fn segment(selector: u16, type_: u8, long: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1 - long,
        s: 1,
        l: long,
        g: 1,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Extent;

    #[test]
    fn page_tables_map_the_first_gigabyte_to_itself() {
        let memory = Extent::new(4 << 20, 40).unwrap().map().unwrap();
        write_tables(&memory).unwrap();
        let load = |address| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
        let walk = |virt: u64| {
            let third = load(PAGE_TABLES + (virt >> 39) * 8) & !0xfff;
            let second = load(third + (virt >> 30 & 511) * 8) & !0xfff;
            let entry = load(second + (virt >> 21 & 511) * 8);
            assert_eq!(entry & 0xfff, 0x83);
            (entry & !0xfff) + (virt & 0x1f_ffff)
        };
        for address in [0, 0x7123, 16 << 20, MAPPED - 1] {
            assert_eq!(walk(address), address);
        }
        assert_eq!(load(PAGE_TABLES + PAGE + 8), 0);
        assert_eq!(load(GDT + u64::from(CODE)), DESCRIPTORS[2]);
    }
}
