//! The container's file tree while the set-up still stands outside of it: every path is resolved
//! with the container's root as `/`, so that no symbolic link leads out.

use std::collections::VecDeque;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, mknodat};

use crate::error::{During, Error, Result};
use crate::sys;

/// Symbolic links followed in one path (MAXSYMLINKS of linux/namei.h).
const MAX_LINKS: usize = 40;

/// What to create where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// A file tree by its root.
pub(crate) struct Tree {
    root: OwnedFd,
}

impl Tree {
    /// The tree below `root`, a directory.
    pub(crate) fn new(root: OwnedFd) -> Tree {
        Tree { root }
    }

    /// The root itself.
    pub(crate) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Opens a path of the tree.
    pub(crate) fn open(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        openat2(&self.root, path, how)
    }

    /// A descriptor for the path alone (O_PATH), the path being created when it is missing, with
    /// all directories on its way. Directories get mode 0755, files 0644.
    pub(crate) fn create(&self, path: &Path, kind: Kind) -> Result<OwnedFd> {
        match self.open(path, OFlag::O_PATH) {
            Err(Errno::ENOENT) => self.create_missing(path, kind),
            result => result.during(|| format!("open {} in the container", path.display())),
        }
    }

    /// Walks component by component, so that what a dangling symbolic link points to is created
    /// inside of the tree.
    fn create_missing(&self, path: &Path, kind: Kind) -> Result<OwnedFd> {
        let mut todo = components(path);
        let mut done = PathBuf::new();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                done.pop();
                continue;
            }
            let next = done.join(&name);
            let fail = || format!("create {} in the container", next.display());
            match self.open(&next, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
                Ok(fd) if is(&fd, SFlag::S_IFLNK).during(fail)? => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::ELOOP).during(fail);
                    }
                    let target = PathBuf::from(readlinkat(&fd, "").during(fail)?);
                    if target.is_absolute() {
                        done.clear();
                    }
                    for name in components(&target).into_iter().rev() {
                        todo.push_front(name);
                    }
                }
                Ok(_) => done = next,
                Err(Errno::ENOENT) => {
                    let kind = if todo.is_empty() {
                        kind
                    } else {
                        Kind::Directory
                    };
                    self.make(&done, &name, kind).during(fail)?;
                    done = next;
                }
                Err(error) => return Err(error).during(fail),
            }
        }
        self.open(&done, OFlag::O_PATH)
            .during(|| format!("open {}", done.display()))
    }

    fn make(&self, parent: &Path, name: &OsStr, kind: Kind) -> nix::Result<()> {
        let parent = self.open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        match kind {
            Kind::Directory => mkdirat(&parent, name, Mode::from_bits_retain(0o755)),
            // Without opening it: what has been open for writing keeps the host from making the
            // root read-only for a moment.
            Kind::File => mknodat(
                &parent,
                name,
                SFlag::S_IFREG,
                Mode::from_bits_retain(0o644),
                0,
            ),
        }
    }

    /// Splits a path into its directory, opened (and created), and its last component.
    pub(crate) fn parent(&self, path: &Path) -> Result<(OwnedFd, OsString)> {
        let name = path
            .file_name()
            .ok_or_else(|| Error::Config(format!("{} does not name a file", path.display())))?;
        let parent = path.parent().unwrap_or_else(|| Path::new("/"));
        Ok((self.create(parent, Kind::Directory)?, name.to_owned()))
    }

    /// Attaches a detached mount at a path, which is created when missing.
    pub(crate) fn attach(&self, mount: &OwnedFd, path: &Path) -> Result<()> {
        let directory = is(mount, SFlag::S_IFDIR).during(|| "look at a mount")?;
        let kind = if directory {
            Kind::Directory
        } else {
            Kind::File
        };
        let target = self.create(path, kind)?;
        sys::attach(mount, target).during(|| format!("mount on {}", path.display()))
    }
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            _ => None,
        })
        .collect()
}

/// Whether a descriptor is of a file type.
pub(crate) fn is(fd: impl AsFd, kind: SFlag) -> nix::Result<bool> {
    Ok(fstat(fd)?.st_mode & SFlag::S_IFMT.bits() == kind.bits())
}

/// The path under which the kernel finds an open descriptor: a mount target that nothing can
/// redirect.
pub(crate) fn proc_path(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// A path as the kernel takes it.
pub(crate) fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::Config(format!("{} contains a NUL", path.display())))
}

/// A detached copy of the mount at `path`, with what is mounted below it if `recursive`.
pub(crate) fn clone_mount(dir: impl AsFd, path: &Path, recursive: bool) -> Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE
        | if recursive {
            libc::AT_RECURSIVE.cast_unsigned()
        } else {
            0
        }
        | if path.as_os_str().is_empty() {
            libc::AT_EMPTY_PATH.cast_unsigned()
        } else {
            0
        };
    sys::open_tree(dir, &c_path(path)?, flags)
        .during(|| format!("clone the mount {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn tree() -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let fd = fs::File::open(&root).unwrap();
        (dir, Tree::new(fd.into()))
    }

    #[test]
    fn missing_paths_are_created_inside() {
        let (dir, tree) = tree();
        tree.create(Path::new("/a/b/c"), Kind::Directory).unwrap();
        tree.create(Path::new("/a/../../../d/f"), Kind::File)
            .unwrap();
        assert!(dir.path().join("root/a/b/c").is_dir());
        assert!(dir.path().join("root/d/f").is_file());
        assert!(!dir.path().join("d").exists());
    }

    #[test]
    fn symbolic_links_never_lead_out() {
        let (dir, tree) = tree();
        let root = dir.path().join("root");
        symlink("/", root.join("abs")).unwrap();
        symlink("../../..", root.join("up")).unwrap();
        symlink("/not/there", root.join("dangling")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        tree.create(Path::new("/abs/x"), Kind::Directory).unwrap();
        tree.create(Path::new("/up/y"), Kind::Directory).unwrap();
        tree.create(Path::new("/dangling"), Kind::File).unwrap();
        assert!(root.join("x").is_dir() && root.join("y").is_dir());
        assert!(root.join("not/there").is_file());
        assert!(tree.create(Path::new("/loop/z"), Kind::File).is_err());
        assert!(!Path::new("/not").exists());
    }
}
