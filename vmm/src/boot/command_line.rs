//! The kernel's command line: what every guest gets, then where its devices and its log ring are.

use std::fmt::Write;

use super::Error;
use crate::layout::{COMMAND_LINE_MAX, FIRST_GSI, LOG_RING, LOG_RING_SIZE, MMIO, PAGE};

/// What does not depend on the machine; guest-kernel/README.md has the reason for each word.
const BASE: &str = "reboot=t rcupdate.rcu_expedited=1 tsc=reliable swiotlb=noforce noreplace-smp \
                    dummy.numdummies=0 movable_node rootfstype=ramfs";

/// What there is besides where AppArmor is active: the security modules in their order, `capability` left out, which is
/// always the first.
const APPARMOR: &str = " lsm=landlock,apparmor";

pub(super) fn build(devices: usize, apparmor: bool) -> Result<String, Error> {
    let mut line = String::from(BASE);
    if apparmor {
        line.push_str(APPARMOR);
    }
    // ramoops: one console zone over the whole region, cached memory (Documentation/admin-guide/ramoops.rst).
    let (ring, size) = (LOG_RING, LOG_RING_SIZE);
    // Writing to a String cannot fail.
    let _ = write!(
        line,
        " ramoops.mem_address={ring:#x} ramoops.mem_size={size:#x} ramoops.console_size={size:#x} \
         ramoops.record_size=0 ramoops.ftrace_size=0 ramoops.pmsg_size=0 ramoops.mem_type=2"
    );
    for ((base, gsi), _) in (MMIO..).step_by(PAGE_STEP).zip(FIRST_GSI..).zip(0..devices) {
        let _ = write!(line, " virtio_mmio.device={PAGE}@{base:#x}:{gsi}");
    }
    if line.len() >= COMMAND_LINE_MAX {
        return Err(Error::CommandLine(line.len()));
    }
    Ok(line)
}

#[allow(clippy::cast_possible_truncation, reason = "4096")]
const PAGE_STEP: usize = PAGE as usize;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_ring_follow_the_base() {
        let line = build(2, false).unwrap();
        assert!(line.starts_with(BASE));
        assert!(line.contains(" ramoops.mem_address=0x80000 "), "{line}");
        assert!(line.ends_with(
            " virtio_mmio.device=4096@0xd0000000:4 virtio_mmio.device=4096@0xd0001000:5"
        ));
        let with = build(2, true).unwrap();
        assert_eq!(with.replace(APPARMOR, ""), line);
        assert!(matches!(build(64, false), Err(Error::CommandLine(_))));
    }
}
