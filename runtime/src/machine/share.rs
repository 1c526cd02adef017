//! The shares: what of the host's files the guest sees, as clones of the host's mounts.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, mknodat};
use protocol::HostMount;
use rustix::fs::{CWD, fstatfs};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use specification::mount::Change;

use super::error::JailError as Error;
use super::id_map::{self, IdMap, Users};
use super::inside::inside;
use super::mountinfo::Mount;
use crate::error::Doing;
use crate::sys::{self, MountChange};

/// One tree or file of the host that the guest sees.
#[derive(Debug, Default)]
pub(crate) struct Share {
    /// Where it is in the exported tree: `rootfs`, `mnt/N`, or `mapped/N` if the ids of its files are mapped as no other's
    /// are.
    pub(crate) name: String,
    /// The host's path; for an overlay a name for messages.
    pub(crate) source: PathBuf,
    /// The options of an overlay file system (mount(2), `data`), which is mounted to be shared.
    pub(crate) overlay: Option<String>,
    /// Whether mounts below `source` come along.
    pub(crate) recursive: bool,
    /// Whether the mount itself is to differ from those below in what it allows, here or in the guest.
    pub(crate) apart: bool,
    /// `MOUNT_ATTR_*` that are changed on the mount itself.
    pub(crate) own: Change,
    /// What is changed before on the mount and all that are below it.
    pub(crate) below: Change,
    /// Whether mounts that the host makes or takes away below `source` later appear and disappear here.
    pub(crate) follows: bool,
    /// How the ids of the files are mapped.
    pub(crate) id_map: Option<IdMap>,
    /// Whether it becomes read-only once the guest has prepared the container ([`seal`]).
    pub(crate) sealed: bool,
}

/// Nothing is executed on the tree, no device works and no set-user-id bit counts.
pub(super) const SAFE: u64 =
    libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;

/// `linux/magic.h`
const OVERLAYFS_SUPER_MAGIC: i64 = 0x794c_7630;

impl Share {
    fn step<T, E: Into<io::Error>>(&self, result: Result<T, E>) -> Result<T, Error> {
        Ok(result.doing_to("share", &self.source)?)
    }

    /// A detached clone of the share's mount, changed as it says. Must be called before the mounts of this namespace
    /// are made private: only a clone of a shared mount can follow it. `None` for what [`Share::attach`] mounts itself.
    fn clone_mount(&self) -> Result<Option<OwnedFd>, Error> {
        if self.overlay.is_some() {
            return Ok(None);
        }
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if self.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let clone = self.step(open_tree(CWD, &self.source, flags))?;
        self.change(&clone)?;
        Ok(Some(clone))
    }

    /// The same with the owners that its files have for processes of the host.
    pub(super) fn clone_for_host(&self) -> Result<Option<OwnedFd>, Error> {
        let clone = self.clone_mount()?;
        if let Some(clone) = &clone {
            self.map_ids(clone)?;
        }
        Ok(clone)
    }

    fn change(&self, mount: &OwnedFd) -> Result<(), Error> {
        let propagation = if self.follows {
            libc::MS_SLAVE
        } else {
            libc::MS_PRIVATE
        };
        let below = MountChange {
            set: self.below.set,
            clear: self.below.clear,
            propagation,
            user_namespace: None,
        };
        self.step(sys::mount_setattr(mount.as_fd(), &below, self.recursive))?;
        if self.own != Change::default() {
            let own = MountChange {
                set: self.own.set,
                clear: self.own.clear,
                ..MountChange::default()
            };
            self.step(sys::mount_setattr(mount.as_fd(), &own, false))?;
        }
        Ok(())
    }

    /// Maps the ids of the files as the share says.
    fn map_ids(&self, mount: &OwnedFd) -> Result<(), Error> {
        let Some(map) = &self.id_map else {
            return Ok(());
        };
        let mapped = id_map::user_namespace(map)
            .and_then(|users| show_ids(mount, &users, map.recursive && self.recursive));
        Ok(mapped.doing_with(|| {
            format!(
                "map the ids of {} (its file system has to allow that)",
                self.source.display()
            )
        })?)
    }

    /// The same for a process whose ids are shifted as those of `users` are.
    fn shift_ids(&self, mount: &OwnedFd, users: &OwnedFd) -> io::Result<()> {
        match self.id_map.as_ref().map(IdMap::seen_shifted) {
            None => show_ids(mount, users, self.recursive),
            Some(map) => {
                let map = map.ok_or(Errno::EINVAL)?;
                show_ids(mount, &id_map::user_namespace(&map)?, self.recursive)
            }
        }
    }

    /// Whether the ids of all files may be shifted, as far as that can be told without trying.
    fn may_be_shifted(&self, clone: Option<&OwnedFd>) -> bool {
        // An overlay of its own is mounted in its place, where no mount can be mapped any more.
        let Some(clone) = clone else {
            return false;
        };
        // What the host mounts later is as the host has it.
        let changes = self.follows;
        let differs_below = |map: &IdMap| self.recursive && !map.recursive;
        // What clients' root filesystems are. Others say so when they are asked.
        let is_overlay = fstatfs(clone).is_ok_and(|found| found.f_type == OVERLAYFS_SUPER_MAGIC);
        !changes && !is_overlay && !self.id_map.as_ref().is_some_and(differs_below)
    }

    /// Makes the mount point of the share below a directory.
    pub(super) fn make_place(&self, clone: Option<&OwnedFd>, root: &OwnedFd) -> Result<(), Error> {
        let mode = Mode::from_bits_truncate(0o755);
        let kind = match clone {
            None => SFlag::S_IFDIR,
            Some(clone) => SFlag::from_bits_truncate(self.step(fstat(clone))?.st_mode),
        };
        let kind = kind & SFlag::S_IFMT;
        let name = self.name.as_str();
        if kind == SFlag::S_IFDIR {
            self.step(mkdirat(root, name, mode))
        } else if kind == SFlag::S_IFREG {
            self.step(mknodat(root, name, SFlag::S_IFREG, mode, 0))
        } else {
            let unsupported = io::Error::new(
                io::ErrorKind::Unsupported,
                "only directories and regular files can be shared with the guest",
            );
            self.step(Err(unsupported))
        }
    }

    /// Mounts the share on its mount point below the current directory.
    pub(super) fn mount(&self, clone: Option<&OwnedFd>) -> Result<(), Error> {
        let place = Path::new(&self.name);
        let Some(clone) = clone else {
            let (kind, data) = (Some("overlay"), self.overlay.as_deref());
            self.step(mount(kind, place, kind, MsFlags::empty(), data))?;
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let mounted = self.step(open(place, flags, Mode::empty()))?;
            return self.change(&mounted);
        };
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        self.step(move_mount(clone.as_fd(), c"", CWD, place, flags))
    }

    /// Whether the guest has to tell what is mounted below from the mount itself.
    fn differs_below(&self) -> bool {
        self.recursive && (self.sealed || self.apart)
    }

    /// Whether a path of the tree is its own or below it.
    fn has(&self, path: &str) -> bool {
        let rest = path.strip_prefix(&self.name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// What the guest must know of the mounts of the tree: those of shares of which one mount forbids something, or of which
/// the mounts below are to differ.
pub(super) fn for_the_guest(shares: &[Share], mounts: &[Mount]) -> Vec<HostMount> {
    let of = |share: &Share| -> Vec<HostMount> {
        let paths = mounts.iter().filter_map(|mount| {
            let path = mount.target.strip_prefix('/')?;
            share.has(path).then(|| HostMount {
                path: path.to_owned(),
                attributes: mount.attributes,
            })
        });
        paths.collect()
    };
    let all = shares.iter().flat_map(|share| {
        let mounts = of(share);
        let differ = share.differs_below() || mounts.iter().any(|mount| mount.attributes != 0);
        if differ { mounts } else { Vec::new() }
    });
    all.collect()
}

/// Clones of the mounts of all shares, and whom a process has to be to see their files' owners: one with shifted ids if
/// all shares and the clone `bundle` can be mapped so, and it `shifts`. Its own id on the host is `own`.
pub(super) fn clone_mounts(
    shares: &[Share],
    bundle: &OwnedFd,
    own: u32,
    shifts: bool,
) -> Result<(Vec<Option<OwnedFd>>, Users), Error> {
    let users = |map: &IdMap, own: u32| -> Result<Users, Error> {
        let namespace = id_map::user_namespace(map).doing("create a user namespace")?;
        Ok(Users { namespace, own })
    };
    let clone = || {
        let clones = shares.iter().map(Share::clone_mount);
        clones.collect::<Result<Vec<_>, _>>()
    };
    let mut clones = clone()?;
    let mut each = shares.iter().zip(&clones);
    if shifts
        && each.all(|(share, clone)| share.may_be_shifted(clone.as_ref()))
        && let Some(map) = IdMap::shifted(own)
    {
        let users = users(&map, id_map::OWN)?;
        if shift(shares, &clones, bundle, &users.namespace)? {
            return Ok((clones, users));
        }
        // What is mapped stays so.
        clones = clone()?;
    }
    for (share, clone) in shares.iter().zip(&clones) {
        clone
            .as_ref()
            .map_or(Ok(()), |clone| share.map_ids(clone))?;
    }
    Ok((clones, users(&IdMap::identity(), own)?))
}

/// The same for a machine that there is: one whose ids are shifted as those of `shifted` are, or one that has the
/// identity.
pub(super) fn clone_mounts_for(
    shares: &[Share],
    shifted: Option<&OwnedFd>,
) -> Result<Vec<Option<OwnedFd>>, Error> {
    let clone = |share: &Share| {
        let clone = share.clone_mount()?;
        match (shifted, &clone) {
            (Some(users), Some(mount)) if share.may_be_shifted(Some(mount)) => {
                share.step(share.shift_ids(mount, users))?;
            }
            (Some(_), _) => {
                let text =
                    "its ids cannot be mapped as those of the other files of the machine are";
                share.step(Err(io::Error::new(io::ErrorKind::Unsupported, text)))?;
            }
            (None, Some(mount)) => share.map_ids(mount)?,
            (None, None) => {}
        }
        Ok(clone)
    };
    shares.iter().map(clone).collect()
}

/// Maps the ids of all; whether all can be. The bundle is the last, and mapped only then.
fn shift(
    shares: &[Share],
    clones: &[Option<OwnedFd>],
    bundle: &OwnedFd,
    users: &OwnedFd,
) -> Result<bool, Error> {
    let all = || -> io::Result<()> {
        for (share, clone) in shares.iter().zip(clones) {
            share.shift_ids(clone.as_ref().ok_or(Errno::EINVAL)?, users)?;
        }
        show_ids(bundle, users, false)
    };
    match all() {
        // One of a file system that has no ID-mapped mounts, or one that is mapped already.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EPERM)) => Ok(false),
        all => Ok(all.map(|()| true).doing("map the ids of the shares")?),
    }
}

/// Shows the ids of files on a mount that has not been attached yet as the map of a user namespace says.
fn show_ids(mount: &OwnedFd, users: &OwnedFd, recursive: bool) -> io::Result<()> {
    let change = MountChange {
        set: libc::MOUNT_ATTR_IDMAP,
        user_namespace: Some(users.as_fd()),
        ..MountChange::default()
    };
    sys::mount_setattr(mount.as_fd(), &change, recursive)
}

/// Makes what is shared as `name` by the machine process `pid` read-only. The machine itself has given up the right to;
/// until now the guest's agent alone had to do with it, which had mount points to make.
pub(super) fn seal(pid: i32, name: &str) -> io::Result<()> {
    let root = tree_of(pid)?;
    inside(pid, || {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let share = openat(&root, name, flags, Mode::empty())?;
        let change = MountChange {
            set: libc::MOUNT_ATTR_RDONLY,
            ..MountChange::default()
        };
        sys::mount_setattr(share.as_fd(), &change, false)
    })
}

/// The root of the exported tree of the machine process `pid`, whatever is mounted on it.
pub(super) fn tree_of(pid: i32) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(open(&*format!("/proc/{pid}/root"), flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn the_guest_is_told_of_mounts_that_forbid_and_of_their_neighbours() {
        let share = |name: &str, recursive, sealed| Share {
            name: name.into(),
            recursive,
            sealed,
            ..Share::default()
        };
        let mount = |target: &str, attributes| Mount {
            id: 0,
            parent: 0,
            device: (0, 0),
            root: "/".into(),
            target: target.into(),
            attributes,
            access_times: 0,
            id_mapped: false,
            follows: false,
        };
        let none = 0;
        let some = libc::MOUNT_ATTR_NOEXEC;
        let mounts = [
            mount("/", libc::MOUNT_ATTR_RDONLY),
            mount("/rootfs", none),
            mount("/rootfs/below", none),
            mount("/mnt/1", none),
            mount("/mnt/1/below", some),
            mount("/mnt/10", none),
            mount("/mnt/2", some),
        ];
        let told = |sealed| {
            let shares = [
                share("rootfs", true, sealed),
                share("mnt/1", true, false),
                share("mnt/10", false, false),
                share("mnt/2", false, false),
            ];
            let mounts = for_the_guest(&shares, &mounts).into_iter();
            mounts
                .map(|mount| (mount.path, mount.attributes))
                .collect::<Vec<_>>()
        };
        let expected = [("mnt/1", none), ("mnt/1/below", some), ("mnt/2", some)];
        let expected = expected.map(|(path, attributes)| (path.to_owned(), attributes));
        assert_eq!(told(false), expected);
        let root = [
            ("rootfs".to_owned(), none),
            ("rootfs/below".to_owned(), none),
        ];
        assert_eq!(told(true), [&root[..], &expected[..]].concat());
    }

    #[test]
    fn what_can_never_be_shifted_is_not_tried() {
        let somewhere = OwnedFd::from(File::open("/proc").unwrap());
        let may = |share: Share| share.may_be_shifted(Some(&somewhere));
        let id_map = |recursive| {
            Some(IdMap {
                recursive,
                ..IdMap::identity()
            })
        };
        assert!(may(Share::default()));
        assert!(may(Share {
            recursive: true,
            id_map: id_map(true),
            ..Share::default()
        }));
        assert!(may(Share {
            id_map: id_map(false),
            ..Share::default()
        }));
        assert!(!may(Share {
            recursive: true,
            id_map: id_map(false),
            ..Share::default()
        }));
        assert!(!may(Share {
            follows: true,
            ..Share::default()
        }));
        assert!(!Share::default().may_be_shifted(None));
    }
}
