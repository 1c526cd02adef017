//! What the mounts of a configuration need of the host: their sources.

use std::path::PathBuf;

use oci_spec::runtime::Mount;

use super::{Facts, FileKind, Refused, invalid};
use crate::machine::Share;

/// File systems that the guest mounts.
const GUEST_TYPES: [&str; 7] = [
    "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2",
];

/// The host's part of the mounts.
pub(super) struct Mounts {
    pub(super) shares: Vec<Share>,
    /// Index of a bind mount, and the name of its share.
    pub(super) binds: Vec<(usize, String)>,
}

/// Sorts the mounts; what is not supported is added to `refused`.
pub(super) fn mounts(
    mounts: &[Mount],
    facts: &Facts<'_>,
    refused: &mut Vec<String>,
) -> Result<Mounts, Refused> {
    let mut sorted = Mounts {
        shares: Vec::new(),
        binds: Vec::new(),
    };
    for (index, mount) in mounts.iter().enumerate() {
        if !mount.destination().is_absolute() {
            let problem = format!("{} is not an absolute path", mount.destination().display());
            return Err(invalid(format!("mounts[{index}].destination"), problem));
        }
        let unsupported = unsupported_options(mount, index);
        if !unsupported.is_empty() {
            refused.extend(unsupported);
        } else if is_bind(mount) {
            let name = format!("mnt/{}", sorted.binds.len());
            match share(mount, index, name.clone(), facts)? {
                Some(share) => {
                    sorted.shares.push(share);
                    sorted.binds.push((index, name));
                }
                None => refused.push(format!(
                    "mounts[{index}].source {} (socket, FIFO or device)",
                    mount.source().clone().unwrap_or_default().display()
                )),
            }
        } else {
            let kind = mount.typ().as_deref().unwrap_or_default();
            if !GUEST_TYPES.contains(&kind) {
                refused.push(format!("mounts[{index}].type {kind:?}"));
            }
        }
    }
    Ok(sorted)
}

fn options(mount: &Mount) -> impl Iterator<Item = &str> {
    mount.options().iter().flatten().map(String::as_str)
}

/// As with runc the type or an option says that a mount is a bind mount.
fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || options(mount).any(|o| matches!(o, "bind" | "rbind"))
}

/// Options that no side applies. What is mounted later on one side does not show on the other, so no bind mount propagates.
fn unsupported_options(mount: &Mount, index: usize) -> Vec<String> {
    let bind = is_bind(mount);
    let unsupported = |option: &&str| match *option {
        "idmap" | "ridmap" | "remount" => true,
        "shared" | "rshared" | "slave" | "rslave" => bind,
        _ => false,
    };
    let found = options(mount).filter(unsupported);
    found
        .map(|option| format!("mounts[{index}].options {option}"))
        .collect()
}

/// The share of a bind mount; `None` if its source is something that cannot be shared.
fn share(
    mount: &Mount,
    index: usize,
    name: String,
    facts: &Facts<'_>,
) -> Result<Option<Share>, Refused> {
    let source = mount
        .source()
        .as_ref()
        .filter(|source| !source.as_os_str().is_empty());
    let property = || format!("mounts[{index}].source");
    let source: PathBuf = facts
        .bundle
        .join(source.ok_or_else(|| invalid(property(), "must not be empty"))?);
    let kind = (facts.kind)(&source).map_err(|problem| invalid(property(), problem))?;
    let mut readonly = false;
    for option in options(mount) {
        match option {
            "ro" | "rro" => readonly = true,
            "rw" | "rrw" => readonly = false,
            _ => {}
        }
    }
    // Without an option the mount is not recursive. What is read-only on the host is so with all that is mounted below.
    let recursive = options(mount).any(|option| option == "rbind");
    Ok((kind != FileKind::Special).then_some(Share {
        name,
        source,
        recursive,
        readonly,
    }))
}
