//! The shares: what of the host's files the guest sees, as clones of the host's mounts.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use specification::mount::Change;

use super::error::JailError as Error;
use super::inside::inside;
use crate::error::Doing;
use crate::sys::{self, Cloned, MountChange};

/// One tree or file of the host that the guest sees.
#[derive(Debug, Default)]
pub(crate) struct Share {
    /// Where it is in the exported tree: `rootfs` or `mnt/N`.
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

/// How a mount shows the ids of its files (mount_setattr(2), ID-mapped mounts).
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct IdMap {
    pub(crate) uids: Vec<IdRange>,
    pub(crate) gids: Vec<IdRange>,
    /// Whether the mounts below are mapped too.
    pub(crate) recursive: bool,
}

/// `count` ids from `file` on, as files have them, are seen as those from `seen` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdRange {
    pub(crate) file: u32,
    pub(crate) seen: u32,
    pub(crate) count: u32,
}

/// Nothing is executed on a share, no device works and no set-user-id bit counts.
pub(super) const SAFE: u64 =
    libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;

impl Share {
    fn step<T, E: Into<io::Error>>(&self, result: Result<T, E>) -> Result<T, Error> {
        Ok(result.doing_to("share", &self.source)?)
    }

    /// A detached clone of the share's mount, changed as it says. Must be called before the mounts of this namespace
    /// are made private: only a clone of a shared mount can follow it. `None` for what [`Share::attach`] mounts itself.
    pub(super) fn clone_mount(&self) -> Result<Option<OwnedFd>, Error> {
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

    fn change(&self, mount: &OwnedFd) -> Result<(), Error> {
        let propagation = if self.follows {
            libc::MS_SLAVE
        } else {
            libc::MS_PRIVATE
        };
        let below = MountChange {
            set: SAFE | self.below.set,
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
        if let Some(map) = &self.id_map {
            let doing = || {
                format!(
                    "map the ids of {} (its file system has to allow that)",
                    self.source.display()
                )
            };
            let namespace = user_namespace(map).doing_with(doing)?;
            let change = MountChange {
                set: libc::MOUNT_ATTR_IDMAP,
                user_namespace: Some(namespace.as_fd()),
                ..MountChange::default()
            };
            let recursive = map.recursive && self.recursive;
            sys::mount_setattr(mount.as_fd(), &change, recursive).doing_with(doing)?;
        }
        Ok(())
    }

    /// Attaches the share below the current directory.
    pub(super) fn attach(&self, clone: Option<&OwnedFd>) -> Result<(), Error> {
        let place = Path::new(&self.name);
        let mode = Mode::from_bits_truncate(0o755);
        let Some(clone) = clone else {
            self.step(mkdirat(AT_FDCWD, place, mode))?;
            let (kind, data) = (Some("overlay"), self.overlay.as_deref());
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            self.step(mount(kind, place, kind, flags, data))?;
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let mounted = self.step(open(place, flags, Mode::empty()))?;
            return self.change(&mounted);
        };
        let kind = SFlag::from_bits_truncate(self.step(fstat(clone))?.st_mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFDIR {
            self.step(mkdirat(AT_FDCWD, place, mode))?;
        } else if kind == SFlag::S_IFREG {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            self.step(openat(AT_FDCWD, place, flags, mode))?;
        } else {
            let unsupported = io::Error::new(
                io::ErrorKind::Unsupported,
                "only directories and regular files can be shared with the guest",
            );
            return self.step(Err(unsupported));
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        self.step(move_mount(clone.as_fd(), c"", CWD, place, flags))
    }

    /// Whether the guest has to tell what is mounted below from the mount itself.
    pub(super) fn differs_below(&self) -> bool {
        self.recursive && (self.sealed || self.apart)
    }
}

/// The id of the root filesystem's mount in the exported tree `root`: that of the first share itself, and of none that is
/// mounted below it.
pub(super) fn root_mount(shares: &[Share], root: &OwnedFd) -> Result<u64, Error> {
    let name = shares.first().map_or("", |share| &share.name);
    let stat = statx(root, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID)
        .map_err(io::Error::from)
        .and_then(|stat| match stat.stx_mask & StatxFlags::MNT_ID.bits() {
            0 => Err(io::ErrorKind::Unsupported.into()),
            _ => Ok(stat.stx_mnt_id),
        });
    Ok(stat.doing("look at the root filesystem's mount")?)
}

/// A user namespace with these mappings, made for ID-mapped mounts alone: no process lives in it.
fn user_namespace(map: &IdMap) -> io::Result<OwnedFd> {
    let (ours, mut theirs) = UnixStream::pair()?;
    let child = match sys::clone_process(None)? {
        Cloned::Child => {
            drop(ours);
            // What has failed shows in the parent as an end of the stream. It ends here when the namespace is open
            // there, or the parent has ended.
            if unshare(CloneFlags::CLONE_NEWUSER).is_ok() && theirs.write_all(&[0]).is_ok() {
                let _ = theirs.read(&mut [0]);
            }
            sys::exit_now(0)
        }
        Cloned::Parent(pid) => Pid::from_raw(pid),
    };
    drop(theirs);
    let made = mapped_namespace(child, &ours, map);
    drop(ours);
    waitpid(child, None)?;
    made
}

fn mapped_namespace(child: Pid, mut ready: &UnixStream, map: &IdMap) -> io::Result<OwnedFd> {
    if ready.read(&mut [0])? == 0 {
        return Err(Errno::EPERM.into());
    }
    for (file, ranges) in [("uid_map", &map.uids), ("gid_map", &map.gids)] {
        let lines = ranges
            .iter()
            .map(|range| format!("{} {} {}\n", range.file, range.seen, range.count));
        std::fs::write(format!("/proc/{child}/{file}"), lines.collect::<String>())?;
    }
    let path = format!("/proc/{child}/ns/user");
    Ok(open(
        path.as_str(),
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?)
}

/// Makes the share `name` of the machine process `pid` read-only. The machine itself has given up the right to; until
/// now the guest has run nothing but the agent, which had mount points to make.
pub(super) fn seal(pid: i32, name: &str) -> io::Result<()> {
    inside(pid, || {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let share = open(&*format!("/{name}"), flags, Mode::empty())?;
        let change = MountChange {
            set: libc::MOUNT_ATTR_RDONLY,
            ..MountChange::default()
        };
        sys::mount_setattr(share.as_fd(), &change, false)
    })
}
