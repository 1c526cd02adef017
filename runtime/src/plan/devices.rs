//! Devices: which of the host's the guest has a counterpart of.

use oci_spec::runtime::{Capability, Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};
use protocol::Device;
use specification::device::{BLOCK, WRITE};
use specification::{CAPABILITIES, DeviceRule, Place};

use super::ledger::Ledger;
use crate::machine::BlockDevice;

/// Most block devices of a machine, which has places for so many and for network interfaces together.
const MAX_DISKS: usize = vmm::MAX_NET_SLOTS;

/// The capabilities that every caller knows: Linux 5.8 and 5.9 brought three more.
const OLD_CAPABILITIES: &[Capability] = CAPABILITIES.split_at(38).0;

/// The character devices that the guest's kernel has of its own, with the same numbers as any Linux (devices.txt), and
/// why a container may have them: none reaches beyond the guest.
const CHARACTER: [(u32, u32, &str); 12] = [
    (1, 3, "null: holds nothing"),
    (1, 5, "zero: holds nothing"),
    (1, 7, "full: holds nothing"),
    (
        1,
        8,
        "random: the guest's own generator, seeded by the host",
    ),
    (1, 9, "urandom: the same"),
    (1, 11, "kmsg: the log of the guest's kernel"),
    (5, 0, "tty: the terminal of the process that opens it"),
    (5, 1, "console: the container's terminal is mounted over it"),
    (5, 2, "ptmx: pseudo-terminals are the guest's"),
    (10, 200, "net/tun: interfaces of the guest"),
    (
        10,
        229,
        "fuse: file systems that the container serves itself",
    ),
    (10, 237, "loop-control: the guest's loop devices"),
];

/// Whether the guest has a counterpart of this character device of the host.
pub(super) fn guest_has(device: Device) -> bool {
    CHARACTER
        .iter()
        .any(|(major, minor, _)| (*major, *minor) == (device.major, device.minor))
}

/// Why a device of `linux.devices` cannot be had.
fn refusal(device: &LinuxDevice) -> Option<String> {
    let path = device.path().display();
    match device.typ() {
        LinuxDeviceType::P | LinuxDeviceType::B => None,
        LinuxDeviceType::C | LinuxDeviceType::U => {
            let number = number(device);
            let Device { major, minor } = number;
            (!guest_has(number))
                .then(|| format!("{path}: the guest has no character device {major}:{minor}"))
        }
        LinuxDeviceType::A => Some(format!("{path} has type \"a\", which no device has")),
    }
}

fn number(device: &LinuxDevice) -> Device {
    let part = |part: i64| u32::try_from(part).unwrap_or(u32::MAX);
    Device {
        major: part(device.major()),
        minor: part(device.minor()),
    }
}

/// Whether the container may do anything, as after `--privileged`: it has all capabilities, and every device is allowed.
/// Its list of devices is then that of the host's `/dev`, whatever there is, and is not meant literally.
pub(super) fn everything_is_allowed(spec: &Spec) -> bool {
    let rules = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    let rules = rules.and_then(|resources| resources.devices().as_deref());
    let last = rules.unwrap_or_default().last();
    let devices = last
        .and_then(|rule| DeviceRule::read(rule).ok())
        .is_some_and(|rule| rule.allow && rule.kind.is_none());
    let capabilities = spec
        .process()
        .as_ref()
        .and_then(|process| process.capabilities().as_ref());
    let bounding = capabilities.and_then(|capabilities| capabilities.bounding().as_ref());
    devices && bounding.is_some_and(|held| OLD_CAPABILITIES.iter().all(|one| held.contains(one)))
}

/// Leaves the devices of the host out of a list that is not meant literally.
pub(super) fn leave_out(linux: &Linux, ledger: &mut Ledger) -> Vec<BlockDevice> {
    let devices = linux.devices().iter().flatten();
    let is_hosts =
        |device: &&LinuxDevice| device.typ() == LinuxDeviceType::B || refusal(device).is_some();
    let count = devices.filter(is_hosts).count();
    if count > 0 {
        let what = format!(
            "{count} devices of this host are left out: everything is allowed, so the container has the guest's own"
        );
        ledger.leave_out("linux.devices", what);
    }
    Vec::new()
}

/// The block devices of `linux.devices`, each once. The guest has them as virtio-blk. What the guest cannot have is
/// refused.
pub(super) fn disks(linux: &Linux, ledger: &mut Ledger) -> Vec<BlockDevice> {
    let rules = linux.resources().as_ref();
    let rules = rules.and_then(|resources| resources.devices().as_deref());
    let mut disks: Vec<BlockDevice> = Vec::new();
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        let property = format!("linux.devices[{index}]");
        if let Some(problem) = refusal(device) {
            ledger.refuse(property, problem);
            continue;
        }
        if device.typ() != LinuxDeviceType::B {
            continue;
        }
        ledger.place(&property, Place::Both);
        let device = number(device);
        if !disks.iter().any(|disk| disk.device == device) {
            disks.push(BlockDevice {
                device,
                serial: format!("disk{}", disks.len()),
                read_only: !may_write(rules.unwrap_or_default(), device),
            });
        }
    }
    if disks.len() > MAX_DISKS {
        let problem = format!(
            "{} block devices exceed the maximum of {MAX_DISKS}",
            disks.len()
        );
        ledger.refuse("linux.devices", problem);
    }
    disks
}

/// Whether the device rules let the container write to a block device: the last one that says something about it
/// decides.
fn may_write(rules: &[LinuxDeviceCgroup], device: Device) -> bool {
    let is =
        |rule: Option<i32>, number: u32| rule.is_none_or(|rule| u32::try_from(rule) == Ok(number));
    let decides = |rule: &DeviceRule| match rule.kind {
        None => true,
        Some(kind) => {
            let numbers = is(rule.major, device.major) && is(rule.minor, device.minor);
            kind == BLOCK && numbers && rule.access & WRITE != 0
        }
    };
    // Bad rules are refused elsewhere.
    let rules = rules.iter().filter_map(|rule| DeviceRule::read(rule).ok());
    rules.rev().find(decides).is_some_and(|rule| rule.allow)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_only(rules: &str) -> Vec<bool> {
        let linux = format!(
            r#"{{"devices":[{{"path":"/dev/a","type":"b","major":7,"minor":1}},
                {{"path":"/dev/null","type":"c","major":1,"minor":3}},
                {{"path":"/dev/again","type":"b","major":7,"minor":1}},
                {{"path":"/dev/b","type":"b","major":7,"minor":2}}],
               "resources":{{"devices":{rules}}}}}"#
        );
        let mut ledger = Ledger::default();
        let disks = disks(&serde_json::from_str(&linux).unwrap(), &mut ledger);
        assert_eq!(ledger.refused(), None);
        let serials: Vec<_> = disks.iter().map(|disk| disk.serial.as_str()).collect();
        assert_eq!(serials, ["disk0", "disk1"]);
        disks.iter().map(|disk| disk.read_only).collect()
    }

    #[test]
    fn a_disk_is_writable_if_the_rules_say_so() {
        let none = r#"{"allow":false,"access":"rwm"}"#;
        assert_eq!(read_only("[]"), [true, true]);
        assert_eq!(read_only(&format!("[{none}]")), [true, true]);
        let one = r#"{"allow":true,"type":"b","major":7,"minor":2,"access":"rwm"}"#;
        assert_eq!(read_only(&format!("[{none},{one}]")), [true, false]);
        assert_eq!(read_only(&format!("[{one},{none}]")), [true, true]);
        let read = r#"{"allow":true,"type":"b","major":7,"access":"r"}"#;
        assert_eq!(read_only(&format!("[{none},{read}]")), [true, true]);
        let all = r#"{"allow":true,"type":"b","major":7,"minor":-1,"access":"rw"}"#;
        assert_eq!(read_only(&format!("[{none},{all},{read}]")), [false, false]);
        let other = r#"{"allow":true,"type":"c","major":7,"access":"rw"}"#;
        assert_eq!(read_only(&format!("[{none},{other}]")), [true, true]);
        assert_eq!(
            read_only(r#"[{"allow":true,"access":"rwm"}]"#),
            [false, false]
        );
    }
}
