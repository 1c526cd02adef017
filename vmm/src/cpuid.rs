//! What the guest sees of its processors: what KVM supports, less performance counters, nested virtualization and
//! enclaves, with one socket of as many single-threaded cores as there are vCPUs.
//!
//! Leaf and bit numbers: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; Linux
//! Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use crate::sys;

/// Maximum number of entries KVM takes (Linux arch/x86/include/asm/kvm_host.h, `KVM_MAX_CPUID_ENTRIES`).
const MAX_ENTRIES: usize = 256;

/// Physical address bits of a processor that does not say (Intel SDM: 36 where leaf 0x80000008 is missing).
const DEFAULT_ADDRESS_BITS: u8 = 36;

/// The processor that all vCPUs share, apart from their ids.
pub(crate) struct Cpuid {
    entries: Vec<kvm_cpuid_entry2>,
    vcpus: u8,
}

impl Cpuid {
    /// Asks KVM once and filters the answer for a guest of `vcpus` processors.
    pub(crate) fn new(kvm: &Kvm, vcpus: u8) -> Result<Cpuid, kvm_ioctls::Error> {
        let supported = kvm.get_supported_cpuid(MAX_ENTRIES)?;
        let mut cpuid = Cpuid::filter(supported.as_slice(), vcpus);
        cpuid.name(sys::cpuid);
        let deadline = 1 << 24;
        if let Some(features) = cpuid.leaf(1)
            && features.ecx & deadline == 0
            && kvm.check_extension(Cap::TscDeadlineTimer)
        {
            features.ecx |= deadline;
        }
        Ok(cpuid)
    }

    fn filter(supported: &[kvm_cpuid_entry2], vcpus: u8) -> Cpuid {
        let mut entries = supported.to_vec();
        entries.retain(|entry| {
            !matches!((entry.function, entry.index), (0xd, 17 | 18)) // states of tiles
            && !matches!(
                entry.function,
                0xa // Intel performance counters
                | 0xb | 0x1f // topology, written anew below
                | 0x12 // enclaves
                | 0x1d | 0x1e // tiles (AMX), whose state nobody asks the host for
                | 0x8000_000a // nested SVM
                | 0x8000_001f // memory encryption
                | 0x8000_0022 // AMD performance counters
                | 0x8000_0026 // AMD's form of the topology
            )
        });
        let basic_max = entries
            .iter()
            .find(|entry| entry.function == 0)
            .map_or(0, |entry| entry.eax);
        let amd = is_amd(&entries);
        for entry in &mut entries {
            restrict(entry);
            describe_cores(entry, vcpus, amd);
        }
        if basic_max >= 0xb {
            entries.extend(topology(vcpus));
        }
        Cpuid { entries, vcpus }
    }

    /// The table of one vCPU.
    pub(crate) fn of_vcpu(&self, id: u8) -> Result<CpuId, vmm_sys_util::fam::Error> {
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            match entry.function {
                1 => {
                    entry.ebx =
                        entry.ebx & 0xffff | u32::from(self.vcpus) << 16 | u32::from(id) << 24;
                }
                0xb => entry.edx = id.into(),
                0x8000_001e => {
                    // Extended APIC id; core id with one thread per core; node 0 of one.
                    entry.eax = id.into();
                    entry.ebx = id.into();
                    entry.ecx = 0;
                }
                _ => {}
            }
        }
        CpuId::from_entries(&entries)
    }

    /// The states of the processor that a guest may enable in XCR0. None without XSAVE.
    pub(crate) fn states(&self) -> u64 {
        let leaf = |function| {
            let mut entries = self.entries.iter();
            entries.find(|entry| (entry.function, entry.index) == (function, 0))
        };
        match (leaf(1), leaf(0xd)) {
            (Some(features), Some(states)) if features.ecx & 1 << 26 != 0 => {
                u64::from(states.edx) << 32 | u64::from(states.eax)
            }
            _ => 0,
        }
    }

    /// Physical address bits of a vCPU.
    pub(crate) fn physical_address_bits(&self) -> u8 {
        let leaf = self
            .entries
            .iter()
            .find(|entry| entry.function == 0x8000_0008);
        leaf.map_or(DEFAULT_ADDRESS_BITS, |entry| entry.eax.to_le_bytes()[0])
    }

    /// Whether the processor is AMD's or Hygon's.
    pub(crate) fn is_amd(&self) -> bool {
        is_amd(&self.entries)
    }

    /// Gives the processor the host's name, of which KVM says nothing. `host` is the host's own CPUID.
    fn name(&mut self, host: impl Fn(u32) -> [u32; 4]) {
        for entry in &mut self.entries {
            if (0x8000_0002..=0x8000_0004).contains(&entry.function) {
                [entry.eax, entry.ebx, entry.ecx, entry.edx] = host(entry.function);
            }
        }
    }

    fn leaf(&mut self, function: u32) -> Option<&mut kvm_cpuid_entry2> {
        self.entries
            .iter_mut()
            .find(|entry| entry.function == function)
    }
}

/// Whether the vendor in leaf 0 is AMD, or Hygon, whose processors are made as AMD's.
fn is_amd(entries: &[kvm_cpuid_entry2]) -> bool {
    let leaf = entries.iter().find(|entry| entry.function == 0);
    leaf.is_some_and(|entry| {
        let vendor = [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes);
        matches!(vendor.as_flattened(), b"AuthenticAMD" | b"HygonGenuine")
    })
}

/// Takes away what guests do not get.
fn restrict(entry: &mut kvm_cpuid_entry2) {
    match (entry.function, entry.index) {
        (1, _) => {
            entry.ecx &= !(1 << 2 | 1 << 4); // layout and filter of the debug store
            entry.edx &= !(1 << 21); // debug store: part of the performance counters
            entry.ecx &= !(1 << 5); // VMX
            entry.ecx &= !(1 << 15); // performance capabilities MSR
            entry.ecx |= 1 << 31; // a hypervisor is present
        }
        (7, 0) => {
            entry.ebx &= !(1 << 2); // SGX
            entry.ecx &= !(1 << 30); // SGX launch control
            entry.edx &= !(1 << 22 | 1 << 24 | 1 << 25); // tiles
        }
        (7, 1) => entry.eax &= !(1 << 21), // tiles of 16-bit floating-point numbers
        (0xd, 0) => entry.eax &= !(1 << 17 | 1 << 18), // states of tiles
        (0x8000_0001, _) => {
            entry.ecx &= !(1 << 2); // SVM
            entry.ecx &= !(1 << 23 | 1 << 24 | 1 << 28); // core, north bridge and L3 performance counters
        }
        _ => {}
    }
}

/// Describes one socket of `vcpus` cores in the leaves that mix topology with other matters.
fn describe_cores(entry: &mut kvm_cpuid_entry2, vcpus: u8, amd: bool) {
    let several = vcpus > 1;
    let last = u32::from(vcpus) - 1;
    match entry.function {
        1 => set(&mut entry.edx, 1 << 28, several), // more than one logical processor in the package
        4 | 0x8000_001d => {
            // Level 3 is shared by all, the others by none. Bits 31 to 26 exist on Intel only (cores in the package).
            let level = entry.eax >> 5 & 7;
            let shared = if level == 3 { last } else { 0 };
            let cores = if entry.function == 4 { last.min(63) } else { 0 };
            if entry.eax & 0x1f != 0 {
                entry.eax = entry.eax & 0x3fff | shared << 14 | cores << 26;
            }
        }
        0x8000_0001 if amd => set(&mut entry.ecx, 1 << 1, several), // CmpLegacy: cores, not threads
        0x8000_0008 if amd => entry.ecx = entry.ecx & !0xf0ff | id_bits(vcpus) << 12 | last,
        _ => {}
    }
}

/// Leaf 0xb: a level of threads (one) and a level of cores.
fn topology(vcpus: u8) -> [kvm_cpuid_entry2; 3] {
    let level = |index, kind: u32, shift, processors| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: kind << 8 | index,
        ..Default::default()
    };
    [
        level(0, 1, 0, 1),
        level(1, 2, id_bits(vcpus), vcpus.into()),
        level(2, 0, 0, 0),
    ]
}

/// Bits that an APIC id takes.
fn id_bits(vcpus: u8) -> u32 {
    u32::from(vcpus).next_power_of_two().trailing_zeros()
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on {
        *register | bit
    } else {
        *register & !bit
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    /// Leaf 0.
    fn vendor(name: &[u8; 12]) -> kvm_cpuid_entry2 {
        let part = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
        entry(0, 0, [0xd, part(0), part(8), part(4)])
    }

    fn table(vcpus: u8, id: u8, supported: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
        Cpuid::filter(supported, vcpus)
            .of_vcpu(id)
            .unwrap()
            .as_slice()
            .to_vec()
    }

    #[test]
    fn ids_and_counts_are_per_vcpu() {
        let supported = [
            vendor(b"AuthenticAMD"),
            entry(1, 0, [0, 0x1234_5678, 1 << 5, 0]),
            entry(0xb, 0, [7, 7, 7, 7]),
            entry(0x8000_0008, 0, [0x3028, 0, 0xffff_ffff, 0]),
            entry(0x8000_001e, 0, [9, 9, 9, 9]),
        ];
        let table = table(6, 5, &supported);
        let find = |f, i| {
            *table
                .iter()
                .find(|e| e.function == f && e.index == i)
                .unwrap()
        };
        assert_eq!(find(1, 0).ebx, 0x0506_5678);
        assert_eq!(find(1, 0).ecx, 1 << 31);
        assert_eq!(find(1, 0).edx, 1 << 28);
        assert_eq!(
            (find(0xb, 0).eax, find(0xb, 0).ebx, find(0xb, 0).ecx),
            (0, 1, 0x100)
        );
        assert_eq!(
            (find(0xb, 1).eax, find(0xb, 1).ebx, find(0xb, 1).ecx),
            (3, 6, 0x201)
        );
        assert_eq!((find(0xb, 2).ebx, find(0xb, 2).edx), (0, 5));
        assert_eq!(find(0x8000_0008, 0).ecx, 0xffff_0f00 | 3 << 12 | 5);
        assert_eq!(
            (find(0x8000_001e, 0).eax, find(0x8000_001e, 0).ebx & 0xff),
            (5, 5)
        );
        assert_eq!(table.iter().filter(|e| e.function == 0xb).count(), 3);
    }

    #[test]
    fn what_is_amds_own_is_reserved_with_others() {
        for (name, amd) in [
            (b"AuthenticAMD", true),
            (b"HygonGenuine", true),
            (b"GenuineIntel", false),
            (b"  Shanghai  ", false),
        ] {
            let supported = [
                vendor(name),
                entry(0x8000_0001, 0, [0; 4]),
                entry(0x8000_0008, 0, [0x3028, 0, 0, 0]),
            ];
            let cpuid = Cpuid::filter(&supported, 4);
            assert_eq!(cpuid.is_amd(), amd);
            let found = [cpuid.entries[1].ecx, cpuid.entries[2].ecx];
            let expected = if amd { [2, 2 << 12 | 3] } else { [0, 0] };
            assert_eq!(found, expected, "{name:?}");
        }
    }

    #[test]
    fn states_are_those_of_xsave_without_tiles() {
        for (xsave, states) in [(1 << 26, 1 << 33 | 0x207), (0, 0)] {
            let supported = [
                vendor(b"GenuineIntel"),
                entry(1, 0, [0, 0, xsave, 0]),
                entry(0xd, 0, [0x6_0207, 0, 0, 2]),
                entry(0xd, 1, [0xf, 0, 0x1800, 0]),
            ];
            assert_eq!(Cpuid::filter(&supported, 1).states(), states);
        }
    }

    #[test]
    fn the_name_is_the_hosts() {
        let leaves: Vec<_> = (0x8000_0001..=0x8000_0005)
            .map(|f| entry(f, 0, [0; 4]))
            .collect();
        let mut cpuid = Cpuid::filter(&leaves, 1);
        cpuid.name(|function| [function, 1, 2, 3]);
        let named = |entry: &&kvm_cpuid_entry2| entry.edx == 3 && entry.eax == entry.function;
        let names = cpuid.entries.iter().filter(named).map(|e| e.function);
        assert_eq!(
            names.collect::<Vec<_>>(),
            [0x8000_0002, 0x8000_0003, 0x8000_0004]
        );
    }

    #[test]
    fn withheld_features_are_gone() {
        let all = [u32::MAX; 4];
        let functions = [
            1,
            7,
            0xa,
            0x12,
            0x1d,
            0x1e,
            0x8000_0001,
            0x8000_000a,
            0x8000_001f,
            0x8000_0022,
        ];
        let mut supported: Vec<_> = functions.iter().map(|&f| entry(f, 0, all)).collect();
        supported.push(kvm_cpuid_entry2 {
            eax: 0,
            ..vendor(b"AuthenticAMD")
        });
        let table = table(1, 0, &supported);
        let find = |f| table.iter().find(|e| e.function == f);
        for gone in [
            0xa,
            0x12,
            0x1d,
            0x1e,
            0x8000_000a,
            0x8000_001f,
            0x8000_0022,
            0xb,
        ] {
            assert!(find(gone).is_none(), "{gone:#x}");
        }
        assert_eq!(
            find(1).unwrap().ecx & (1 << 2 | 1 << 4 | 1 << 5 | 1 << 15),
            0
        );
        assert_eq!(find(1).unwrap().edx & (1 << 21 | 1 << 28), 0);
        assert_eq!(find(7).unwrap().edx & (1 << 22 | 1 << 24 | 1 << 25), 0);
        assert_eq!(find(7).unwrap().ebx & 1 << 2, 0);
        assert_eq!(
            find(0x8000_0001).unwrap().ecx & (1 << 1 | 1 << 2 | 1 << 23),
            0
        );
    }

    #[test]
    fn no_state_of_tiles() {
        let supported = [
            entry(7, 1, [u32::MAX; 4]),
            entry(0xd, 0, [0x6_02e7, 0, 0, 0]),
            entry(0xd, 2, [256, 576, 0, 0]),
            entry(0xd, 17, [64, 2752, 2, 0]),
            entry(0xd, 18, [8192, 2816, 6, 0]),
        ];
        let table = table(1, 0, &supported);
        assert_eq!(table[0].eax & 1 << 21, 0);
        assert_eq!(table[1].eax, 0x2e7);
        assert_eq!(table[2].index, 2);
        assert_eq!(table.len(), 3);
    }

    #[test]
    fn caches_are_shared_at_level_three_only() {
        let supported = [
            entry(4, 0, [1 | 1 << 5 | 0xffff << 14, 0, 0, 0]),
            entry(4, 3, [3 | 3 << 5, 0, 0, 0]),
            entry(4, 4, [0, 0, 0, 0]),
        ];
        let table = table(4, 0, &supported);
        assert_eq!(table[0].eax, 1 | 1 << 5 | 3 << 26);
        assert_eq!(table[1].eax, 3 | 3 << 5 | 3 << 14 | 3 << 26);
        assert_eq!(table[2].eax, 0);
    }
}
