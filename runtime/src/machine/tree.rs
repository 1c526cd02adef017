//! The mounts of the exported tree as the file server has to know them.
//!
//! A container's shares are `rootfs`, `mnt/N` and `mapped/N` in the tree's root, or in a directory of it whose name is a
//! number.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;

use nix::libc;
use protocol::ContainerId;

use super::jail;
use super::mountinfo::{self, Mount};

/// The exported tree, whose mounts come and go with the containers of the machine.
pub(super) struct Exported {
    pub(super) server: Arc<vmm_fs::Server>,
    /// The list of the mounts (`Tree::mountinfo`).
    pub(super) mountinfo: File,
    /// As of [`served`].
    pub(super) privileges: bool,
}

impl Exported {
    /// Tells the server of the mounts that there are now. The share `sealed` is to become read-only.
    ///
    /// # Errors
    /// The mounts cannot be read.
    pub(super) fn look(&self, sealed: Option<&str>) -> io::Result<()> {
        let mounts = jail::mounts(&self.mountinfo)?;
        let served = served(&mounts, sealed.as_slice(), self.privileges);
        self.server.set_mounts(served);
        Ok(())
    }

    /// Has the server give up the mounts of a container that has gone. Returns whether files are still in use that only
    /// these mounts lead to.
    ///
    /// # Errors
    /// The mounts cannot be read.
    pub(super) fn part(&self, container: ContainerId) -> io::Result<bool> {
        let mounts = jail::mounts(&self.mountinfo)?;
        let (staying, parting) = parting(mounts, container, self.privileges);
        self.server.set_mounts(staying);
        Ok(self.server.part_with(&parting))
    }
}

/// What the server has to know of the mounts that stay when a container goes, and of those that do not.
fn parting(
    mounts: Vec<Mount>,
    container: ContainerId,
    privileges: bool,
) -> (vmm_fs::Mounts, Vec<vmm_fs::Parting>) {
    let directory = Path::new("/").join(container.to_string());
    let is_of_it = |mount: &Mount| Path::new(&mount.target).starts_with(&directory);
    let (going, staying): (Vec<_>, Vec<_>) = mounts.into_iter().partition(is_of_it);
    let served = served(&staying, &[], privileges);
    let class_of = |mount: &Mount| served.known.get(&mount.id)?.class;
    let elsewhere = |gone: &Mount| {
        let alike = staying
            .iter()
            .filter(|mount| class_of(mount) == class(gone));
        let found = alike.filter_map(|mount| {
            let below = Path::new(&gone.root).strip_prefix(&mount.root).ok()?;
            let target = Path::new(&mount.target).strip_prefix("/").ok()?;
            Some((
                mount.attributes & libc::MOUNT_ATTR_RDONLY,
                target.join(below),
            ))
        });
        let mut found: Vec<_> = found.collect();
        found.sort_by_key(|(read_only, _)| *read_only);
        found.into_iter().map(|(_, path)| path).collect()
    };
    let parting = going.iter().map(|gone| vmm_fs::Parting {
        mount: gone.id,
        elsewhere: elsewhere(gone),
    });
    let parting = parting.collect();
    (served, parting)
}

/// What the server has to know of the mounts of a machine process: all that there are in its namespace. The shares
/// `sealed`, by their paths in the tree, are to become read-only. `privileges`: files that give privileges may be made
/// everywhere, and not in root filesystems alone.
pub(super) fn served(mounts: &[Mount], sealed: &[&str], privileges: bool) -> vmm_fs::Mounts {
    let mounts = mountinfo::exported(mounts);
    let parents: HashSet<u64> = mounts.iter().map(|mount| mount.parent).collect();
    let following = mounts.iter().filter(|mount| mount.follows);
    let following: HashSet<u64> = following.map(|mount| mount.id).collect();
    let is_read_only = |mount: &Mount| {
        let path = mount.target.strip_prefix('/').unwrap_or_default();
        mount.attributes & libc::MOUNT_ATTR_RDONLY != 0 || sealed.contains(&path)
    };
    let mut writable: HashMap<_, Vec<&str>> = HashMap::new();
    for mount in mounts.iter().filter(|mount| !is_read_only(mount)) {
        let roots = writable.entry(mount.device).or_default();
        roots.push(&mount.root);
    }
    let describe = |mount: &Mount| {
        let name = name(&mount.target);
        // Nothing is mounted there, nothing will be, and files have the owners that they have by the others.
        let is_plain = !parents.contains(&mount.id) && !mount.follows;
        let lasts = !following.contains(&mount.parent);
        let is_shared = is_plain && lasts && !name.starts_with("mapped/");
        let read_only = is_read_only(mount);
        let overlaps = |root: &&str| {
            let (root, own) = (Path::new(*root), Path::new(&mount.root));
            root.starts_with(own) || own.starts_with(root)
        };
        let mut writable = writable.get(&mount.device).into_iter().flatten();
        vmm_fs::Mount {
            class: class(mount).filter(|_| is_shared),
            read_only,
            privileges: privileges || name == "rootfs",
            lasts,
            maps: lasts && read_only && !writable.any(overlaps),
        }
    };
    vmm_fs::Mounts {
        known: mounts
            .iter()
            .map(|mount| (mount.id, describe(mount)))
            .collect(),
        others: vmm_fs::Mount {
            privileges,
            ..vmm_fs::Mount::default()
        },
    }
}

/// Where something of the tree is among the shares of its container.
fn name(target: &str) -> &str {
    let path = target.strip_prefix('/').unwrap_or(target);
    let is_number = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    match path.split_once('/') {
        Some((container, name)) if is_number(container) => name,
        _ => path,
    }
}

/// Of mounts of one file system that keep access times alike: a device number has 12 and 20 bits (`linux/kdev_t.h`).
fn class(mount: &Mount) -> Option<NonZeroU64> {
    let (major, minor) = mount.device;
    NonZeroU64::new(mount.access_times << 32 | u64::from(major) << 20 | u64::from(minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of two containers: a root filesystem, volumes of one file system, and what is mounted below some.
    const TEXT: &str = "\
50 49 0:40 / / ro - tmpfs none rw
51 50 0:41 / /rootfs rw - overlay overlay rw
52 50 8:1 /v /mnt/0 rw - ext4 /dev/sda1 rw
53 50 8:1 /v /mnt/1 ro - ext4 /dev/sda1 rw
54 50 8:1 /w /mnt/2 rw - ext4 /dev/sda1 rw
55 54 0:42 / /mnt/2/below rw - tmpfs none rw
56 50 8:1 /f /mnt/3 rw master:3 - ext4 /dev/sda1 rw
57 56 0:43 / /mnt/3/below rw - tmpfs none rw
58 50 8:1 /m /mapped/4 rw,idmapped - ext4 /dev/sda1 rw
59 50 8:1 /r /mnt/5 ro - ext4 /dev/sda1 rw
64 50 8:1 /v /mnt/6 rw,noatime - ext4 /dev/sda1 rw
60 50 8:1 /rootfs /mnt/rootfs rw - ext4 /dev/sda1 rw
61 50 0:44 / /7/rootfs rw - overlay overlay rw
62 50 8:1 /v/in /7/mnt/0 rw - ext4 /dev/sda1 rw
63 50 0:45 / /7/mapped/1 rw - tmpfs none rw
80 50 8:1 / / rw - ext4 /dev/sda1 rw
81 80 8:1 / /rootfs rw - ext4 /dev/sda1 rw
";

    fn served(sealed: &[&str], privileges: bool) -> vmm_fs::Mounts {
        super::served(&mountinfo::parse(TEXT), sealed, privileges)
    }

    /// The mounts that are like that.
    fn which(mounts: &vmm_fs::Mounts, like: impl Fn(&vmm_fs::Mount) -> bool) -> Vec<u64> {
        let known = mounts.known.iter().filter(|(_, mount)| like(mount));
        known.map(|(id, _)| *id).collect()
    }

    #[test]
    fn a_container_that_goes_leaves_the_ways_to_what_others_have() {
        let (staying, parting) = super::parting(mountinfo::parse(TEXT), 7, false);
        assert!(staying.known.contains_key(&52) && !staying.known.contains_key(&62));
        let paths = |mount: u64| {
            let found = parting.iter().find(|parting| parting.mount == mount);
            let paths = &found.unwrap().elsewhere;
            paths
                .iter()
                .map(|path| path.to_str().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(parting.len(), 3);
        assert_eq!(paths(61), Vec::<&str>::new());
        // /v/in of 8:1: what can be written is before what cannot, and other access times are another class.
        assert_eq!(paths(62), ["mnt/0/in", "mnt/1/in"]);
    }

    #[test]
    fn mounts_that_show_the_same_are_of_one_class() {
        let mounts = served(&[], true);
        let of = |id: u64| which(&mounts, |mount| mount.class == mounts.known[&id].class);
        assert_eq!(of(52), [52, 53, 59, 60, 62]);
        // Of other file systems, or with access times of its own.
        for id in [51, 55, 61, 64] {
            assert_eq!(of(id), [id]);
        }
        // The root; what has something mounted below, follows, is taken away, or shows other owners.
        assert_eq!(
            which(&mounts, |mount| mount.class.is_none()),
            [50, 54, 56, 57, 58, 63]
        );
        assert_eq!(mounts.others.class, None);
    }

    #[test]
    fn what_is_in_a_following_mount_does_not_last() {
        let mounts = served(&[], true);
        assert_eq!(which(&mounts, |mount| !mount.lasts), [57]);
        assert!(!mounts.others.lasts);
    }

    #[test]
    fn root_filesystems_may_have_files_that_give_privileges() {
        let mounts = served(&[], false);
        assert_eq!(which(&mounts, |mount| mount.privileges), [51, 61]);
        assert!(!mounts.others.privileges);
        let mounts = served(&[], true);
        assert!(which(&mounts, |mount| !mount.privileges).is_empty());
        assert!(mounts.others.privileges);
    }

    #[test]
    fn what_cannot_be_written_at_all_is_mapped() {
        let mounts = served(&["rootfs"], true);
        assert_eq!(which(&mounts, |mount| mount.read_only), [50, 51, 53, 59]);
        // Another share can write to what is in 53.
        assert_eq!(which(&mounts, |mount| mount.maps), [50, 51, 59]);
        let mounts = served(&["mnt/0", "mnt/6", "7/mnt/0"], true);
        let mapped = which(&mounts, |mount| mount.maps);
        assert_eq!(mapped, [50, 52, 53, 59, 62, 64]);
        assert!(!mounts.others.maps);
    }

    #[test]
    fn names_are_within_a_container() {
        assert_eq!(name("/7/mnt/0"), "mnt/0");
        assert_eq!(name("/mnt/7/0"), "mnt/7/0");
        assert_eq!(name("/rootfs"), "rootfs");
        assert_eq!(name("/"), "");
    }
}
