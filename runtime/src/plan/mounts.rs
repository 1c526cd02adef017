//! What the mounts of a configuration need of the host: their sources.

use std::path::PathBuf;

use oci_spec::runtime::Mount;

use super::ledger::{Ledger, Place};
use super::{Facts, FileKind};
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

/// Sorts the mounts; what is not supported is refused in `ledger`.
pub(super) fn mounts(mounts: &[Mount], facts: &Facts<'_>, ledger: &mut Ledger) -> Mounts {
    let mut sorted = Mounts {
        shares: Vec::new(),
        binds: Vec::new(),
    };
    for (index, mount) in mounts.iter().enumerate() {
        let property = |name: &str| format!("mounts[{index}].{name}");
        if !mount.destination().is_absolute() {
            let problem = format!("{} is not an absolute path", mount.destination().display());
            ledger.refuse(property("destination"), problem);
        }
        for option in unsupported_options(mount) {
            let problem = format!("{option} is not supported yet");
            ledger.refuse(property("options"), problem);
        }
        if is_bind(mount) {
            let name = format!("mnt/{}", sorted.binds.len());
            match share(mount, name.clone(), facts) {
                Ok(share) => {
                    sorted.shares.push(share);
                    sorted.binds.push((index, name));
                }
                Err(problem) => ledger.refuse(property("source"), problem),
            }
            for name in ["source", "options"] {
                ledger.place(&property(name), Place::Both);
            }
        } else {
            let kind = mount.typ().as_deref().unwrap_or_default();
            if !GUEST_TYPES.contains(&kind) {
                let problem = format!("{kind:?} is not supported yet");
                ledger.refuse(property("type"), problem);
            }
        }
    }
    sorted
}

fn options(mount: &Mount) -> impl Iterator<Item = &str> {
    mount.options().iter().flatten().map(String::as_str)
}

/// As with runc the type or an option says that a mount is a bind mount.
fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || options(mount).any(|o| matches!(o, "bind" | "rbind"))
}

/// Options that no side applies. What is mounted later on one side does not show on the other, so no bind mount propagates.
fn unsupported_options(mount: &Mount) -> impl Iterator<Item = &str> {
    let bind = is_bind(mount);
    options(mount).filter(move |option| match *option {
        "idmap" | "ridmap" | "remount" => true,
        "shared" | "rshared" | "slave" | "rslave" => bind,
        _ => false,
    })
}

/// The share of a bind mount, or why there can be none.
fn share(mount: &Mount, name: String, facts: &Facts<'_>) -> Result<Share, String> {
    let source = mount
        .source()
        .as_ref()
        .filter(|source| !source.as_os_str().is_empty())
        .ok_or("must not be empty")?;
    let path: PathBuf = facts.bundle.join(source);
    if (facts.kind)(&path)? == FileKind::Special {
        let source = source.display();
        return Err(format!(
            "{source} is a socket, FIFO or device, which is not supported yet"
        ));
    }
    let mut readonly = false;
    for option in options(mount) {
        match option {
            "ro" | "rro" => readonly = true,
            "rw" | "rrw" => readonly = false,
            _ => {}
        }
    }
    Ok(Share {
        name,
        source: path,
        // Without an option the mount is not recursive. What is read-only on the host is so with all that is mounted below.
        recursive: options(mount).any(|option| option == "rbind"),
        readonly,
    })
}
