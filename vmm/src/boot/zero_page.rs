//! boot_params, the "zero page" (Linux Documentation/arch/x86/zero-page.rst and boot.rst,
//! arch/x86/include/uapi/asm/bootparam.h).

use super::Initrd;
use crate::layout::{
    COMMAND_LINE, COMMAND_LINE_MAX, HIGH_RAM, HOLE_END, LOG_RING, LOG_RING_SIZE, LOW_RAM_END,
    MP_TABLE,
};
use crate::memory::Extent;

/// Offsets in boot_params.
const E820_ENTRIES: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const CMDLINE_SIZE: usize = 0x238;
const E820_TABLE: usize = 0x2d0;

/// Types of e820 ranges (Linux arch/x86/include/asm/e820/types.h).
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// Where memory is and what may be used of it.
fn e820(extent: &Extent) -> Vec<(u64, u64, u32)> {
    let mut ranges = vec![
        (0, LOW_RAM_END, RAM),
        (LOG_RING, LOG_RING_SIZE, RESERVED),
        (MP_TABLE, HIGH_RAM - MP_TABLE, RESERVED),
        (HIGH_RAM, extent.low_end - HIGH_RAM, RAM),
    ];
    ranges.extend(extent.high_end.map(|end| (HOLE_END, end - HOLE_END, RAM)));
    ranges
}

pub(super) fn build(extent: &Extent, initrd: Initrd, command_line: usize) -> [u8; 4096] {
    debug_assert!(command_line < COMMAND_LINE_MAX);
    let mut page = [0; 4096];
    let mut put = |offset: usize, bytes: &[u8]| {
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(BOOT_FLAG, &0xaa55_u16.to_le_bytes());
    put(HEADER, b"HdrS");
    put(VERSION, &0x20f_u16.to_le_bytes());
    put(TYPE_OF_LOADER, &[0xff]); // no id assigned
    put(LOADFLAGS, &[1]); // LOADED_HIGH
    put(RAMDISK_IMAGE, &initrd.start.to_le_bytes());
    put(RAMDISK_SIZE, &initrd.size.to_le_bytes());
    put(CMD_LINE_PTR, &COMMAND_LINE.to_le_bytes()[..4]);
    put(CMDLINE_SIZE, &command_line.to_le_bytes()[..4]);
    for (index, (start, size, kind)) in (0_u8..).zip(e820(extent)) {
        let entry = [
            &start.to_le_bytes()[..],
            &size.to_le_bytes(),
            &kind.to_le_bytes(),
        ]
        .concat();
        put(E820_TABLE + usize::from(index) * entry.len(), &entry);
        put(E820_ENTRIES, &[index + 1]);
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
    use std::mem::offset_of;

    #[test]
    fn offsets_are_those_of_the_kernel() {
        let header = |field| offset_of!(boot_params, hdr) + field;
        assert_eq!(E820_ENTRIES, offset_of!(boot_params, e820_entries));
        assert_eq!(E820_TABLE, offset_of!(boot_params, e820_table));
        assert_eq!(BOOT_FLAG, header(offset_of!(setup_header, boot_flag)));
        assert_eq!(HEADER, header(offset_of!(setup_header, header)));
        assert_eq!(VERSION, header(offset_of!(setup_header, version)));
        assert_eq!(
            TYPE_OF_LOADER,
            header(offset_of!(setup_header, type_of_loader))
        );
        assert_eq!(LOADFLAGS, header(offset_of!(setup_header, loadflags)));
        assert_eq!(
            RAMDISK_IMAGE,
            header(offset_of!(setup_header, ramdisk_image))
        );
        assert_eq!(RAMDISK_SIZE, header(offset_of!(setup_header, ramdisk_size)));
        assert_eq!(CMD_LINE_PTR, header(offset_of!(setup_header, cmd_line_ptr)));
        assert_eq!(CMDLINE_SIZE, header(offset_of!(setup_header, cmdline_size)));
        assert_eq!(size_of::<boot_e820_entry>(), 20);
    }

    #[test]
    fn the_page_describes_memory_initrd_and_command_line() {
        let extent = Extent::new(5 << 30, 40).unwrap();
        let page = build(
            &extent,
            Initrd {
                start: 0x1234_5000,
                size: 0x6789,
            },
            100,
        );
        let word = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
        assert_eq!(
            (word(RAMDISK_IMAGE), word(RAMDISK_SIZE)),
            (0x1234_5000, 0x6789)
        );
        assert_eq!((word(CMD_LINE_PTR), word(CMDLINE_SIZE)), (0x2_0000, 100));
        assert_eq!(page[E820_ENTRIES], 5);
        let ranges: Vec<_> = (0..5)
            .map(|i| E820_TABLE + i * 20)
            .map(|at| (long(at), long(at) + long(at + 8), word(at + 16)))
            .collect();
        assert_eq!(ranges[1], (0x8_0000, 0x9_0000, RESERVED));
        assert_eq!(ranges[2], (0xf_0000, 0x10_0000, RESERVED));
        assert_eq!(ranges[3], (0x10_0000, 0xc000_0000, RAM));
        assert_eq!(ranges[4], (4 << 30, 6 << 30, RAM));
        assert!(
            ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0),
            "{ranges:x?}"
        );
        let ram: u64 = ranges
            .iter()
            .filter(|r| r.2 == RAM)
            .map(|r| r.1 - r.0)
            .sum();
        assert_eq!(ram, (5 << 30) - (HIGH_RAM - LOW_RAM_END));
    }
}
