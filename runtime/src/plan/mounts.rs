//! What the mounts of a configuration need of the host: their sources, and what is changed on the host's side of them.
//!
//! | mount | host | guest |
//! |---|---|---|
//! | bind of a directory or file | a clone of the mount in the share | a bind mount of that |
//! | bind of a character device that the guest has too | - | a bind mount of the guest's own |
//! | overlay, whose layers are the host's | mounts it in the share | a bind mount of that |
//! | anything else of [`GUEST_TYPES`] | - | mounts it |

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Mount};
use protocol::Device;

use super::ledger::{Ledger, Place};
use super::{Facts, FileKind, devices};
use crate::machine::{Attributes, IdMap, IdRange, Share};

/// File systems that the guest mounts.
const GUEST_TYPES: [&str; 10] = [
    "proc",
    "sysfs",
    "tmpfs",
    "ramfs",
    "devpts",
    "mqueue",
    "cgroup",
    "cgroup2",
    "hugetlbfs",
    "bpf",
];

/// The host's part of the mounts.
#[derive(Default)]
pub(super) struct Mounts {
    pub(super) shares: Vec<Share>,
    /// Index of a mount whose source is shared, and the name of its share.
    pub(super) binds: Vec<(usize, String)>,
    /// Index of a bind mount of a character device, and the device.
    pub(super) devices: Vec<(usize, Device)>,
}

/// A property of a mount and why it is refused.
type Problem = (&'static str, String);

/// Sorts the mounts; what is not supported is refused in `ledger`.
pub(super) fn mounts(
    mounts: &[Mount],
    linux: &Linux,
    facts: &Facts<'_>,
    ledger: &mut Ledger,
) -> Mounts {
    let mut sorted = Mounts::default();
    for (index, mount) in mounts.iter().enumerate() {
        let property = |name: &str| format!("mounts[{index}].{name}");
        if !mount.destination().is_absolute() {
            let problem = format!("{} is not an absolute path", mount.destination().display());
            ledger.refuse(property("destination"), problem);
        }
        for problem in unsupported_options(mount) {
            ledger.refuse(property("options"), problem);
        }
        let id_map = id_map(mount, linux).unwrap_or_else(|(name, problem)| {
            ledger.refuse(property(name), problem);
            None
        });
        if has(mount, &["remount"]) {
            // What it changes is there already.
            continue;
        }
        let kind = mount.typ().as_deref().unwrap_or_default();
        let taken = if is_bind(mount) {
            sorted.bind(mount, index, id_map, facts)
        } else if kind == "overlay" {
            sorted.overlay(mount, index)
        } else if GUEST_TYPES.contains(&kind) {
            continue;
        } else {
            Err(("type", format!("{kind:?} is not supported yet")))
        };
        if let Err((name, problem)) = taken {
            ledger.refuse(property(name), problem);
        }
        for name in ["source", "options"] {
            ledger.place(&property(name), Place::Both);
        }
    }
    sorted
}

impl Mounts {
    fn bind(
        &mut self,
        mount: &Mount,
        index: usize,
        id_map: Option<IdMap>,
        facts: &Facts<'_>,
    ) -> Result<(), Problem> {
        let refuse = |problem: String| ("source", problem);
        let source = mount.source().as_deref();
        let source = source.filter(|source| !source.as_os_str().is_empty());
        let source = source.ok_or_else(|| refuse("must not be empty".into()))?;
        let source = facts.bundle.join(source);
        let why = match (facts.kind)(&source).map_err(refuse)? {
            FileKind::Directory | FileKind::File => {
                self.share(mount, index, source, id_map);
                return Ok(());
            }
            FileKind::Character(device) if devices::guest_has(device) => {
                self.devices.push((index, device));
                return Ok(());
            }
            // The inode would be there, the other end would not.
            FileKind::Socket => "a socket: its other end is on the host",
            FileKind::Fifo => "a FIFO: its other end is on the host",
            FileKind::Character(_) => "a device that the guest does not have",
            FileKind::Block => {
                "a block device: the guest can have it by linux.devices, and not by a mount"
            }
        };
        Err(refuse(format!("{} is {why}", source.display())))
    }

    fn share(&mut self, mount: &Mount, index: usize, source: PathBuf, id_map: Option<IdMap>) {
        let name = self.name(index);
        let (own, below) = attributes(mount);
        self.shares.push(Share {
            name,
            source,
            recursive: has(mount, &["rbind"]),
            apart: options(mount).any(is_attribute),
            own,
            below,
            follows: has(mount, &["slave", "rslave"]),
            id_map,
            ..Share::default()
        });
    }

    /// An overlay file system whose layers are directories of the host: it is mounted there.
    fn overlay(&mut self, mount: &Mount, index: usize) -> Result<(), Problem> {
        let name = self.name(index);
        let mut data = Vec::new();
        for option in options(mount).filter(|option| !is_known(option)) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            let layers = matches!(key, "lowerdir" | "upperdir" | "workdir");
            if layers && !value.starts_with('/') {
                let problem = format!("{option} is not an absolute path");
                return Err(("options", problem));
            }
            data.push(option);
        }
        let (own, below) = attributes(mount);
        self.shares.push(Share {
            name,
            source: PathBuf::from("overlay"),
            overlay: Some(data.join(",")),
            own,
            below,
            ..Share::default()
        });
        Ok(())
    }

    /// Names the share of a mount.
    fn name(&mut self, index: usize) -> String {
        let name = format!("mnt/{}", self.binds.len());
        self.binds.push((index, name.clone()));
        name
    }
}

fn options(mount: &Mount) -> impl Iterator<Item = &str> {
    mount.options().iter().flatten().map(String::as_str)
}

fn has(mount: &Mount, names: &[&str]) -> bool {
    options(mount).any(|option| names.contains(&option))
}

/// As with runc the type or an option says that a mount is a bind mount.
fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || has(mount, &["bind", "rbind"])
}

/// What no side can apply.
fn unsupported_options(mount: &Mount) -> impl Iterator<Item = String> {
    let bind = is_bind(mount);
    options(mount).filter_map(move |option| {
        let why = match option {
            "shared" | "rshared" if bind => "what the container mounts cannot appear on the host",
            "idmap" | "ridmap" if !bind => "is not a bind mount",
            option if bind && !is_known(option) => "is unknown to bind mounts",
            _ => return None,
        };
        Some(format!("{option}: {why}"))
    })
}

/// The attributes of mounts. With a leading `r` they are those of all mounts below too.
const ATTRIBUTES: [&str; 18] = [
    "atime",
    "dev",
    "diratime",
    "exec",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "relatime",
    "ro",
    "rw",
    "strictatime",
    "suid",
    "symfollow",
];

/// Kinds of propagation, which likewise take an `r`.
const PROPAGATION: [&str; 4] = ["private", "shared", "slave", "unbindable"];

fn is_attribute(option: &str) -> bool {
    ATTRIBUTES.contains(&option)
}

/// Whether an option is one of the specification's, in whatever form, and not one for the file system itself. Those of them that mean
/// something to the host are in [`attributes`].
fn is_known(option: &str) -> bool {
    const OTHERS: [&str; 21] = [
        "",
        "acl",
        "async",
        "bind",
        "defaults",
        "dirsync",
        "idmap",
        "iversion",
        "lazytime",
        "loud",
        "mand",
        "noacl",
        "noiversion",
        "nolazytime",
        "nomand",
        "rbind",
        "remount",
        "ridmap",
        "silent",
        "sync",
        "tmpcopyup",
    ];
    let of_mounts = |option| is_attribute(option) || PROPAGATION.contains(&option);
    OTHERS.contains(&option) || of_mounts(option) || option.strip_prefix('r').is_some_and(of_mounts)
}

/// What is changed on the host's clone: of the mount itself, and of it and all mounts below. Access times are the host's to keep; all
/// else that a mount can forbid is forbidden there anyway.
fn attributes(mount: &Mount) -> (Attributes, Attributes) {
    let (mut own, mut below) = (Attributes::default(), Attributes::default());
    for option in options(mount) {
        if let Some(change) = host_attribute(option) {
            own.apply(change);
            if option == "rw" {
                // As runc: nothing is read-only by this mount, and what is read-only already stays so.
                own.clear &= !libc::MOUNT_ATTR_RDONLY;
            }
        } else if let Some(change) = option.strip_prefix('r').and_then(host_attribute) {
            below.apply(change);
        }
    }
    (own, below)
}

fn host_attribute(option: &str) -> Option<Attributes> {
    let set = |set| Attributes { set, clear: 0 };
    let clear = |clear| Attributes { set: 0, clear };
    // One field (mount_setattr(2)), which is cleared whole to be set.
    let time = |set| Attributes {
        set,
        clear: libc::MOUNT_ATTR__ATIME,
    };
    Some(match option {
        "ro" => set(libc::MOUNT_ATTR_RDONLY),
        "rw" => clear(libc::MOUNT_ATTR_RDONLY),
        "nodiratime" => set(libc::MOUNT_ATTR_NODIRATIME),
        "diratime" => clear(libc::MOUNT_ATTR_NODIRATIME),
        "noatime" => time(libc::MOUNT_ATTR_NOATIME),
        "strictatime" => time(libc::MOUNT_ATTR_STRICTATIME),
        "relatime" | "norelatime" | "atime" | "nostrictatime" => time(libc::MOUNT_ATTR_RELATIME),
        _ => return None,
    })
}

/// How ids are mapped between the files and the mount (config.md, Mounts): by mappings of its own or, where only the option is
/// there, by those of the container's user namespace.
fn id_map(mount: &Mount, linux: &Linux) -> Result<Option<IdMap>, Problem> {
    let given = |list: &Option<Vec<LinuxIdMapping>>| list.clone().filter(|list| !list.is_empty());
    let (uids, gids) = (given(mount.uid_mappings()), given(mount.gid_mappings()));
    let recursive = has(mount, &["ridmap"]);
    let asked = recursive || has(mount, &["idmap"]);
    let (uids, gids) = match (uids, gids) {
        (Some(_), None) => return Err(("gidMappings", "must be specified too".into())),
        (None, Some(_)) => return Err(("uidMappings", "must be specified too".into())),
        (None, None) if !asked => return Ok(None),
        (Some(uids), Some(gids)) => (uids, gids),
        (None, None) => {
            let namespaces = linux.namespaces().iter().flatten();
            let user = namespaces
                .into_iter()
                .any(|ns| ns.typ() == LinuxNamespaceType::User);
            let maps = given(linux.uid_mappings()).zip(given(linux.gid_mappings()));
            maps.filter(|_| user).ok_or_else(|| {
                let problem = "idmap needs mappings, of the mount or of a user namespace";
                ("options", problem.to_owned())
            })?
        }
    };
    if !is_bind(mount) {
        return Err(("uidMappings", "is not of a bind mount".into()));
    }
    let ranges = |list: Vec<LinuxIdMapping>| {
        let range = |map: LinuxIdMapping| IdRange {
            file: map.container_id(),
            seen: map.host_id(),
            count: map.size(),
        };
        list.into_iter().map(range).collect()
    };
    Ok(Some(IdMap {
        uids: ranges(uids),
        gids: ranges(gids),
        recursive,
    }))
}
