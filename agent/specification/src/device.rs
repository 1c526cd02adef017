//! Device rules (config-linux.md, Allowed Device list).

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// BPF_DEVCG_DEV_BLOCK of linux/bpf.h.
pub const BLOCK: i32 = 1;
/// BPF_DEVCG_DEV_CHAR of linux/bpf.h.
pub const CHARACTER: i32 = 2;

/// BPF_DEVCG_ACC_MKNOD of linux/bpf.h.
pub const MKNOD: i32 = 1;
/// BPF_DEVCG_ACC_READ of linux/bpf.h.
pub const READ: i32 = 2;
/// BPF_DEVCG_ACC_WRITE of linux/bpf.h.
pub const WRITE: i32 = 4;
/// Every access.
pub const ALL: i32 = MKNOD | READ | WRITE;

/// One rule of `linux.resources.devices`; `None` stands for any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRule {
    /// Whether it allows or denies.
    pub allow: bool,
    /// [`BLOCK`] or [`CHARACTER`].
    pub kind: Option<i32>,
    /// The major number.
    pub major: Option<i32>,
    /// The minor number.
    pub minor: Option<i32>,
    /// What it is about: some of [`ALL`].
    pub access: i32,
}

impl DeviceRule {
    /// Reads a rule.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(rule: &LinuxDeviceCgroup) -> Result<DeviceRule, String> {
        let kind = match rule.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(LinuxDeviceType::B) => Some(BLOCK),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
            Some(LinuxDeviceType::P) => return Err("a FIFO is not a device".into()),
        };
        let mut access = 0;
        for letter in rule.access().iter().flat_map(|access| access.chars()) {
            access |= match letter {
                'm' => MKNOD,
                'r' => READ,
                'w' => WRITE,
                _ => return Err(format!("unknown access {letter:?}")),
            };
        }
        let major = number(rule.major(), "major")?;
        let minor = number(rule.minor(), "minor")?;
        let allow = rule.allow();
        Ok(match kind {
            // `a` stands for every device and every access, whatever else is said (devices.rst).
            None => DeviceRule {
                allow,
                kind: None,
                major: None,
                minor: None,
                access: ALL,
            },
            kind => DeviceRule {
                allow,
                kind,
                major,
                minor,
                access,
            },
        })
    }
}

/// -1 stands for any.
fn number(value: Option<i64>, what: &str) -> Result<Option<i32>, String> {
    let Some(value) = value.filter(|value| *value != -1) else {
        return Ok(None);
    };
    let number = i32::try_from(value).ok().filter(|number| *number >= 0);
    let number = number.ok_or_else(|| format!("{what} is not a device number"))?;
    Ok(Some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<DeviceRule, String> {
        DeviceRule::read(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn rules_are_read() {
        let rule = |kind, major, minor, access| DeviceRule {
            allow: true,
            kind,
            major,
            minor,
            access,
        };
        for (json, expected) in [
            (
                r#"{"allow":true,"type":"c","major":1,"minor":-1,"access":"rm"}"#,
                rule(Some(CHARACTER), Some(1), None, READ | MKNOD),
            ),
            (
                r#"{"allow":true,"type":"b","access":"w"}"#,
                rule(Some(BLOCK), None, None, WRITE),
            ),
            (
                r#"{"allow":true,"major":7,"access":"r"}"#,
                rule(None, None, None, ALL),
            ),
            (r#"{"allow":true,"type":"a"}"#, rule(None, None, None, ALL)),
        ] {
            assert_eq!(read(json), Ok(expected), "{json}");
        }
    }

    #[test]
    fn bad_rules_are_refused() {
        for (json, problem) in [
            (
                r#"{"allow":true,"type":"c","access":"x"}"#,
                "unknown access 'x'",
            ),
            (
                r#"{"allow":true,"type":"p","access":"r"}"#,
                "a FIFO is not a device",
            ),
            (
                r#"{"allow":true,"type":"c","major":-2,"access":"r"}"#,
                "major is not a device number",
            ),
            (
                r#"{"allow":true,"type":"c","minor":4294967296,"access":"r"}"#,
                "minor is not a device number",
            ),
        ] {
            assert_eq!(read(json), Err(problem.to_owned()), "{json}");
        }
    }
}
