//! The MP table: processors, the IO-APIC and who interrupts where (Intel MultiProcessor Specification 1.4, chapter 4;
//! names as in Linux arch/x86/include/asm/mpspec_def.h). With it the kernel starts the other vCPUs by INIT and SIPI.

use crate::layout::{FIRST_GSI, IO_APIC, LOCAL_APIC, MP_TABLE};

/// Length of the floating pointer structure, which stands in front of the table.
const POINTER: usize = 16;

/// Length of the table's header.
const HEADER: usize = 44;

/// Specification revision 1.4.
const REVISION: u8 = 4;

/// Types of entries.
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IOAPIC: u8 = 2;
const INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

/// Version of an integrated local APIC and of KVM's IO-APIC, as their version registers say.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;

/// Processor flags: usable; the one that boots.
const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;

/// Interrupt types.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

/// All local APICs.
const ALL: u8 = 0xff;

/// The table for vCPUs with APIC ids from 0 and devices with interrupts from [`FIRST_GSI`], edge-triggered as on an ISA
/// bus.
pub(super) fn build(vcpus: u8, devices: usize) -> Vec<u8> {
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for id in 0..vcpus {
        let flags = if id == 0 {
            ENABLED | BOOT_PROCESSOR
        } else {
            ENABLED
        };
        let mut entry = vec![PROCESSOR, id, LOCAL_APIC_VERSION, flags];
        entry.resize(20, 0);
        entries.push(entry);
    }
    entries.push([&[BUS, 0][..], b"ISA   "].concat());
    let io_apic = vcpus;
    entries.push(
        [
            &[IOAPIC, io_apic, IO_APIC_VERSION, ENABLED][..],
            &IO_APIC.to_le_bytes(),
        ]
        .concat(),
    );
    for (gsi, _) in (FIRST_GSI.to_le_bytes()[0]..).zip(0..devices) {
        entries.push(vec![INTERRUPT, INT, 0, 0, 0, gsi, io_apic, gsi]);
    }
    entries.push(vec![LOCAL_INTERRUPT, EXT_INT, 0, 0, 0, 0, 0, 0]);
    entries.push(vec![LOCAL_INTERRUPT, NMI, 0, 0, 0, 0, ALL, 1]);

    let count = entries.len();
    let body = entries.concat();
    let mut header = b"PCMP".to_vec();
    header.extend_from_slice(&low16(HEADER + body.len()));
    header.extend_from_slice(&[REVISION, 0]);
    header.extend_from_slice(b"CHITON  MICROVM     ");
    header.extend_from_slice(&[0; 6]);
    header.extend_from_slice(&low16(count));
    header.extend_from_slice(&LOCAL_APIC.to_le_bytes());
    header.extend_from_slice(&[0; 4]);
    let mut table = [header, body].concat();
    table[7] = checksum(&table);

    // The table directly follows the pointer.
    let address = MP_TABLE + POINTER as u64;
    let address = &address.to_le_bytes()[..4];
    let mut pointer = [b"_MP_", address, &[1, REVISION, 0, 0, 0, 0, 0, 0]].concat();
    pointer[10] = checksum(&pointer);
    [pointer, table].concat()
}

fn low16(value: usize) -> [u8; 2] {
    let bytes = value.to_le_bytes();
    [bytes[0], bytes[1]]
}

/// The byte that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{HIGH_RAM, MAX_VCPUS};

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn pointer_and_table_check() {
        let bytes = build(3, 2);
        let (pointer, table) = bytes.split_at(POINTER);
        assert_eq!(&pointer[..4], b"_MP_");
        assert_eq!(
            u32::from_le_bytes(pointer[4..8].try_into().unwrap()),
            0xf_0010
        );
        assert_eq!((sum(pointer), sum(table)), (0, 0));
        assert_eq!(&table[..4], b"PCMP");
        assert_eq!(
            usize::from(u16::from_le_bytes(table[4..6].try_into().unwrap())),
            table.len()
        );
        assert_eq!(
            u16::from_le_bytes(table[34..36].try_into().unwrap()),
            3 + 1 + 1 + 2 + 2
        );
        assert_eq!(table[36..40], LOCAL_APIC.to_le_bytes());
        assert_eq!(table.len(), HEADER + 3 * 20 + 6 * 8);
    }

    #[test]
    fn entries_name_processors_and_interrupts() {
        let bytes = build(2, 3);
        let entries = &bytes[POINTER + HEADER..];
        assert_eq!(entries[..4], [0, 0, 0x14, 3]);
        assert_eq!(entries[20..24], [0, 1, 0x14, 1]);
        assert_eq!(&entries[40..48], b"\x01\0ISA   ");
        assert_eq!(entries[48..56], [2, 2, 0x11, 1, 0, 0, 0xc0, 0xfe]);
        assert_eq!(entries[56..64], [3, 0, 0, 0, 0, 4, 2, 4]);
        assert_eq!(entries[72..80], [3, 0, 0, 0, 0, 6, 2, 6]);
    }

    #[test]
    fn the_largest_machine_fits() {
        assert!(build(MAX_VCPUS, 16).len() as u64 <= HIGH_RAM - MP_TABLE);
    }
}
