//! What a process of the host sees that enters the machine process's mount namespace and takes the container's files to
//! be there, as they are with runc: Podman's `cp` does, and its `top`.
//!
//! The view is stacked on the root of the exported tree, where the machine process itself does not look: its root
//! directory is below. It has the root filesystem, each bind mount at its destination, and an empty read-only
//! directory where the guest has a file system of its own. `/proc` has the machine process alone, and what a list of
//! processes needs.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, mknodat};
use nix::unistd::fchdir;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::inside::inside;
use super::jail;
use super::share::{SAFE, Share};
use crate::error::{Doing, SystemError};
use crate::sys::{self, MountChange};

/// One mount of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its destination in the container.
    pub(crate) destination: PathBuf,
    /// What is there.
    pub(crate) content: Content,
}

/// What is mounted at a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// A share, by its index.
    Share(usize),
    /// A procfs of the guest.
    Processes,
    /// Another file system of the guest.
    Guests,
}

const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);

/// Makes the view of the container in the machine process `pid`: `shares`, of which the first is the root filesystem,
/// and the mounts in their order.
pub(crate) fn show(pid: i32, shares: &[Share], targets: &[Target]) -> Result<(), SystemError> {
    // From where the host has them, with the ids that the files have there.
    let clones = shares.iter().map(Share::clone_for_host);
    let clones = clones.collect::<Result<_, _>>().map_err(io::Error::other);
    let clones = clones.doing("clone the container's mounts")?;
    let processes = [pid.to_string().as_str(), "stat"].map(|name| {
        let clone = open_tree(CWD, Path::new("/proc").join(name), CLONE)?;
        Ok((name.to_owned(), clone))
    });
    let processes = processes.into_iter().collect::<io::Result<_>>();
    let processes = processes.doing("clone what is in /proc")?;
    let view = View {
        shares,
        targets,
        clones,
        processes,
    };
    inside(pid, || view.build()).doing("show the container's files")
}

/// What the view is made from.
struct View<'a> {
    shares: &'a [Share],
    targets: &'a [Target],
    /// Detached mounts of the shares; `None` where the exported tree alone has what is shared.
    clones: Vec<Option<OwnedFd>>,
    /// Detached mounts of what there is in `/proc`, and their names there.
    processes: Vec<(String, OwnedFd)>,
}

impl View<'_> {
    fn build(&self) -> io::Result<()> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let tree = open("/", flags, Mode::empty())?;
        let root = self.mount_of(0, &tree)?;
        attach(&root, &tree)?;
        let filled = self.fill(&root, &tree);
        if filled.is_err() {
            // Half of it would be worse than none: what is copied would not be where it is looked for.
            fchdir(&root)?;
            umount2(".", MntFlags::MNT_DETACH)?;
        }
        filled
    }

    fn fill(&self, root: &OwnedFd, tree: &OwnedFd) -> io::Result<()> {
        let mut own = Vec::new();
        for target in self.targets {
            let mounted = match target.content {
                Content::Share(index) => self.mount_of(index, tree)?,
                _ => jail::tmpfs(c"64k", None)?,
            };
            let place = destination(root, &target.destination, is_file(&mounted)?, &own)?;
            attach(&mounted, &place)?;
            if target.content == Content::Processes {
                for (name, process) in &self.processes {
                    make(&mounted, OsStr::new(name), is_file(process)?)?;
                    attach(process, &beneath(&mounted, Path::new(name))?)?;
                }
            }
            if !matches!(target.content, Content::Share(_)) {
                own.push(mounted);
            }
        }
        let read_only = MountChange {
            set: libc::MOUNT_ATTR_RDONLY,
            ..MountChange::default()
        };
        let mut own = own.iter();
        own.try_for_each(|own| sys::mount_setattr(own.as_fd(), &read_only, false))
    }

    /// A detached mount of a share.
    fn mount_of(&self, index: usize, tree: &OwnedFd) -> io::Result<OwnedFd> {
        let share = self.shares.get(index).ok_or(Errno::EINVAL)?;
        let clone = match self.clones.get(index) {
            Some(Some(clone)) => clone.try_clone()?,
            _ => open_tree(tree, &share.name, CLONE)?,
        };
        let safe = MountChange {
            set: SAFE,
            ..MountChange::default()
        };
        sys::mount_setattr(clone.as_fd(), &safe, true)?;
        if share.sealed {
            let read_only = MountChange {
                set: libc::MOUNT_ATTR_RDONLY,
                ..MountChange::default()
            };
            sys::mount_setattr(clone.as_fd(), &read_only, false)?;
        }
        Ok(clone)
    }
}

fn attach(mount: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, c"", target, c"", flags)?)
}

fn is_file(mount: &OwnedFd) -> nix::Result<bool> {
    Ok(fstat(mount)?.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFDIR.bits())
}

/// A path of the container, whose symbolic links lead nowhere else.
fn beneath(root: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    let path = path.strip_prefix("/").unwrap_or(path);
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

/// A destination, which the guest has made where it was missing, unless it is in one of the guest's file systems: here
/// in one of `own`.
fn destination(root: &OwnedFd, path: &Path, is_file: bool, own: &[OwnedFd]) -> io::Result<OwnedFd> {
    match beneath(root, path) {
        Err(Errno::ENOENT) => {}
        found => return Ok(found?),
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::ENOENT.into());
    };
    let parent = destination(root, parent, false, own)?;
    let device = fstat(&parent)?.st_dev;
    let is_own = |own: &OwnedFd| fstat(own).is_ok_and(|own| own.st_dev == device);
    if !own.iter().any(is_own) {
        return Err(Errno::ENOENT.into());
    }
    make(&parent, name, is_file)?;
    Ok(beneath(&parent, Path::new(name))?)
}

/// Makes a mount point.
fn make(parent: &OwnedFd, name: &OsStr, is_file: bool) -> nix::Result<()> {
    let mode = Mode::from_bits_truncate(0o555);
    if is_file {
        mknodat(parent, name, SFlag::S_IFREG, mode, 0)
    } else {
        mkdirat(parent, name, mode)
    }
}
