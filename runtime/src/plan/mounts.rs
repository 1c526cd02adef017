//! What the mounts of a configuration need of the host: their sources, and what is changed on the host's side of them.
//!
//! | mount | host | guest |
//! |---|---|---|
//! | bind of a directory or file | a clone of the mount in the share | a bind mount of that |
//! | bind of a character device that the guest has too | - | a bind mount of the guest's own |
//! | bind of what an earlier mount has put below the root | - | a bind mount of that |
//! | bind of procfs or a namespace | refused: it leads to the machine process | - |
//! | overlay, whose layers are the host's | mounts it in the share | a bind mount of that |
//! | anything else of [`GUEST_TYPES`] | - | mounts it |

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Mount, Spec};
use protocol::Device;
use specification::mount::{Change, Reach, is_bind, options};
use specification::{MountOption, Place};

use super::ledger::Ledger;
use super::provided::Provided;
use super::{CLOSED, Facts, FileKind, devices};
use crate::machine::{Content, IdMap, IdRange, Share, Target};

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
    /// Index of a bind mount whose source an earlier mount provides, and its path in the container.
    pub(super) inner: Vec<(usize, String)>,
}

/// A property of a mount and why it is refused.
type Problem = (&'static str, String);

/// Sorts the mounts; what is not supported is refused in `ledger`.
pub(super) fn mounts(
    mounts: &[Mount],
    rootfs: &Share,
    linux: &Linux,
    facts: &Facts<'_>,
    ledger: &mut Ledger,
) -> Mounts {
    let mut sorted = Mounts::default();
    let mut provided = Provided::new(&rootfs.source, rootfs.sealed, facts);
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
        if has(mount, |option| option == MountOption::Remount) {
            // What it changes is there already.
            continue;
        }
        let kind = mount.typ().as_deref().unwrap_or_default();
        let inner = sorted.inner(mount, index, id_map.is_some(), &provided, facts);
        provided.add(mount.destination());
        let taken = if inner == Ok(true) {
            continue;
        } else if let Err(problem) = inner {
            Err(problem)
        } else if is_bind(mount) {
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
    /// Whether it is a bind mount of what the guest has by an earlier one.
    fn inner(
        &mut self,
        mount: &Mount,
        index: usize,
        is_mapped: bool,
        provided: &Provided<'_>,
        facts: &Facts<'_>,
    ) -> Result<bool, Problem> {
        let source = mount.source().as_deref().filter(|_| is_bind(mount));
        let Some(source) = source.filter(|source| !source.as_os_str().is_empty()) else {
            return Ok(false);
        };
        let source = facts.bundle.join(source);
        let recursive = has(mount, |option| option == MountOption::Bind(Reach::Tree));
        let refuse = |name, why: &str| Err((name, format!("{} is {why}", source.display())));
        let path = match provided.find(&source, recursive) {
            Ok(Some(path)) => path,
            Ok(None) => return Ok(false),
            Err(why) => return refuse("source", why),
        };
        if is_mapped {
            return refuse("uidMappings", "what an earlier mount provides");
        }
        let Some(path) = path.to_str() else {
            return refuse("source", "not UTF-8");
        };
        self.inner.push((index, path.to_owned()));
        Ok(true)
    }

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
            FileKind::Closed => CLOSED,
            FileKind::Processes => {
                "of the host's procfs, by which files of the machine process can be reached: a mount of type proc has the \
                 container's own processes; what is to see the host's needs another runtime"
            }
            FileKind::Block => {
                "a block device: the guest can have it by linux.devices, and not by a mount"
            }
        };
        Err(refuse(format!("{} is {why}", source.display())))
    }

    fn share(&mut self, mount: &Mount, index: usize, source: PathBuf, id_map: Option<IdMap>) {
        let directory = if id_map.is_some() { "mapped" } else { "mnt" };
        let name = self.name(index, directory);
        let (own, below) = attributes(mount);
        self.shares.push(Share {
            name,
            source,
            recursive: has(mount, |option| option == MountOption::Bind(Reach::Tree)),
            apart: has(mount, |option| {
                matches!(option, MountOption::Attributes(_, Reach::Mount))
            }),
            own,
            below,
            follows: has(mount, |option| {
                matches!(option, MountOption::Propagation(libc::MS_SLAVE, _))
            }),
            id_map,
            ..Share::default()
        });
    }

    /// An overlay file system whose layers are directories of the host: it is mounted there.
    fn overlay(&mut self, mount: &Mount, index: usize) -> Result<(), Problem> {
        let name = self.name(index, "mnt");
        let mut data = Vec::new();
        for option in options(mount).filter(|option| MountOption::of(option).is_none()) {
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
    fn name(&mut self, index: usize, directory: &str) -> String {
        let name = format!("{directory}/{}", self.binds.len());
        self.binds.push((index, name.clone()));
        name
    }
}

/// The mounts that are file systems, in their order; `sorted` are the same.
pub(super) fn targets(spec: &Spec, sorted: &Mounts) -> Vec<Target> {
    let mounts = spec.mounts().iter().flatten().enumerate();
    let target = |(index, mount): (usize, &Mount)| {
        let bind = sorted.binds.iter().position(|(bind, _)| *bind == index);
        let content = match (bind, mount.typ().as_deref()) {
            // The first share is the root filesystem.
            (Some(bind), _) => Content::Share(bind + 1),
            _ if is_bind(mount) || has(mount, |option| option == MountOption::Remount) => {
                return None;
            }
            (None, Some("proc")) => Content::Processes,
            (None, _) => Content::Guests,
        };
        Some(Target {
            destination: mount.destination().clone(),
            content,
        })
    };
    mounts.filter_map(target).collect()
}

/// Whether one of the options is like that.
fn has(mount: &Mount, like: impl Fn(MountOption) -> bool) -> bool {
    options(mount).filter_map(MountOption::of).any(like)
}

/// What no side can apply.
fn unsupported_options(mount: &Mount) -> impl Iterator<Item = String> {
    let bind = is_bind(mount);
    options(mount).filter_map(move |option| {
        let why = refusal(option, bind)?;
        Some(format!("{option}: {why}"))
    })
}

/// Why no mount of that sort can have an option.
fn refusal(option: &str, bind: bool) -> Option<&'static str> {
    match MountOption::of(option) {
        Some(MountOption::Propagation(libc::MS_SHARED, _)) if bind => {
            Some("what the container mounts cannot appear on the host")
        }
        Some(MountOption::IdMap(_)) if !bind => Some("is not a bind mount"),
        None if bind => Some("is unknown to bind mounts"),
        _ => None,
    }
}

/// The options of the specification that bind mounts can have, which are all that any mount can have, in order.
pub(crate) fn mount_options() -> Vec<String> {
    let mut names: Vec<String> = MountOption::names()
        .filter(|name| refusal(name, true).is_none())
        .collect();
    names.sort();
    names
}

/// What a mount allows that is the host's to keep. All else that a mount can forbid is forbidden on the host's clone
/// anyway.
const HOSTS: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODIRATIME | libc::MOUNT_ATTR__ATIME;

/// What is changed on the host's clone: of the mount itself, and of it and all mounts below.
fn attributes(mount: &Mount) -> (Change, Change) {
    let (mut own, mut below) = (Change::default(), Change::default());
    for option in options(mount) {
        let Some(MountOption::Attributes(change, reach)) = MountOption::of(option) else {
            continue;
        };
        let change = change.within(HOSTS);
        match reach {
            Reach::Mount => own.apply(change),
            Reach::Tree => below.apply(change),
        }
    }
    // rw, as runc: nothing is read-only by this mount, and what is read-only already stays so.
    own.clear &= !libc::MOUNT_ATTR_RDONLY;
    (own, below)
}

/// How ids are mapped between the files and the mount (config.md, Mounts): by mappings of its own or, where only the
/// option is there, by those of the container's user namespace.
fn id_map(mount: &Mount, linux: &Linux) -> Result<Option<IdMap>, Problem> {
    let given = |list: &Option<Vec<LinuxIdMapping>>| list.clone().filter(|list| !list.is_empty());
    let (uids, gids) = (given(mount.uid_mappings()), given(mount.gid_mappings()));
    let recursive = has(mount, |option| option == MountOption::IdMap(Reach::Tree));
    let asked = has(mount, |option| matches!(option, MountOption::IdMap(_)));
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
