//! A tree that is served, and something beside it that nobody may touch.
//!
//! ```text
//!  playground/outside/secret      watched: an inotify descriptor says who opens or changes what
//!  playground/tree/               exported, or its mount at playground/view; links in it lead outside
//! ```

use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use vmm_fs::{Config, Mount, Server};

/// Descriptors of inodes that a server keeps: few, so that they are given up and opened again.
pub const OPEN_FDS: usize = 3;

/// What the secret says: nothing that a guest reads may hold it.
pub const SECRET: &[u8] = b"not for any guest to read";

/// What mounts the tree is of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mounts {
    /// Nobody takes them away, and they can be written.
    Lasting,
    /// The host may take them away.
    Fleeting,
    /// They are read-only: large files of theirs are mapped.
    ReadOnly,
}

/// The directories, and what is to be noticed of the one that is not served.
pub struct Playground {
    directory: TempDir,
    watch: OwnedFd,
}

impl Playground {
    /// A playground with a tree in it, and a server of that tree, before INIT.
    ///
    /// # Panics
    /// The host does not let it be made.
    #[must_use]
    pub fn new(mounts: Mounts) -> (Playground, Server) {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::create_dir(directory.path().join("tree")).unwrap();
        fs::write(outside.join("secret"), SECRET).unwrap();
        fs::create_dir(outside.join("inner")).unwrap();
        let watch = watch(&[directory.path(), &outside, &outside.join("inner")]);
        let playground = Playground { directory, watch };
        let root = match mounts {
            Mounts::ReadOnly => playground.view(),
            _ => playground.tree(),
        };
        let server = Server::new(Config {
            root: path_fd(&root),
            proc_self_fd: path_fd(Path::new("/proc/self/fd")),
            open_fd_limit: OPEN_FDS,
            held_fd_limit: 64,
            timeout: Duration::from_secs(1),
            mounts: vmm_fs::Mounts {
                others: Mount {
                    privileges: true,
                    lasts: mounts != Mounts::Fleeting,
                    read_only: mounts == Mounts::ReadOnly,
                    maps: mounts == Mounts::ReadOnly,
                    class: None,
                },
                ..vmm_fs::Mounts::default()
            },
            maps: true,
        });
        (playground, server.unwrap())
    }

    /// The directory that is served.
    #[must_use]
    pub fn tree(&self) -> PathBuf {
        self.directory.path().join("tree")
    }

    /// Mounts the tree read-only beside it, in a mount namespace of this thread and of those that it starts.
    fn view(&self) -> PathBuf {
        let view = self.directory.path().join("view");
        fs::create_dir(&view).unwrap();
        // SAFETY: flags alone.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
        mount(
            Path::new("/"),
            Path::new("/"),
            libc::MS_REC | libc::MS_PRIVATE,
        );
        mount(&self.tree(), &view, libc::MS_BIND);
        mount(
            &view,
            &view,
            libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY,
        );
        self.forget();
        view
    }

    /// Fills the tree anew.
    ///
    /// # Panics
    /// The host does not let it.
    pub fn fill(&self) {
        let tree = self.tree();
        fs::set_permissions(&tree, fs::Permissions::from_mode(0o755)).unwrap();
        for entry in fs::read_dir(&tree).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                fs::remove_dir_all(entry.path()).unwrap();
            } else {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        fs::write(tree.join("file"), "public").unwrap();
        fs::create_dir_all(tree.join("dir/deep")).unwrap();
        fs::write(tree.join("dir/deep/file"), "public").unwrap();
        fs::hard_link(tree.join("file"), tree.join("dir/c")).unwrap();
        symlink(
            self.directory.path().join("outside/secret"),
            tree.join("absolute"),
        )
        .unwrap();
        symlink("../outside/secret", tree.join("relative")).unwrap();
        symlink("..", tree.join("up")).unwrap();
        File::create(tree.join("large"))
            .unwrap()
            .set_len(5 << 20)
            .unwrap();
        let fifo = std::ffi::CString::new(tree.join("fifo").into_os_string().into_encoded_bytes());
        // SAFETY: a path that ends in NUL.
        assert_eq!(unsafe { libc::mkfifo(fifo.unwrap().as_ptr(), 0o644) }, 0);
        self.forget();
    }

    /// Fails if anything has happened outside of the tree since [`Playground::fill`], or if a descriptor leads there.
    ///
    /// # Panics
    /// That is what it is there for.
    pub fn check(&self) {
        if let Some(what) = self.event() {
            panic!("outside of the tree: {what}");
        }
        let outside = self.directory.path().join("outside");
        let served = [self.tree(), self.directory.path().join("view")];
        for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
            // One that is closed meanwhile leads nowhere.
            let Ok(target) = fs::read_link(entry.path()) else {
                continue;
            };
            assert!(
                !target.starts_with(&outside),
                "a descriptor of {}",
                target.display()
            );
            let ours = target.starts_with(self.directory.path());
            let inside = served.iter().any(|tree| target.starts_with(tree));
            assert!(!ours || inside, "a descriptor of {}", target.display());
        }
        let secret = fs::symlink_metadata(outside.join("secret")).unwrap();
        assert_eq!((secret.nlink(), secret.len()), (1, SECRET.len() as u64));
    }

    fn forget(&self) {
        while self.event().is_some() {}
    }

    /// The next thing noticed. The tree itself may be opened and changed: by its own name in the directory above.
    fn event(&self) -> Option<String> {
        let mut buffer = [0_u8; 4096];
        // SAFETY: room for what is read.
        let count = unsafe {
            libc::read(
                self.watch.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
            )
        };
        let mut rest = &buffer[..usize::try_from(count).unwrap_or(0)];
        while let Some(event) = rest.get(..16) {
            let number = |at: usize| u32::from_ne_bytes(event[at..at + 4].try_into().unwrap());
            let (mask, length) = (number(4), number(12) as usize);
            let name = String::from_utf8_lossy(&rest[16..16 + length]);
            let name = name.trim_end_matches('\0').to_owned();
            rest = &rest[16 + length..];
            let moved = libc::IN_MOVE | libc::IN_CREATE | libc::IN_DELETE;
            if name != "tree" || mask & moved != 0 {
                return Some(format!("{name:?}, events {mask:#x}"));
            }
        }
        None
    }
}

fn mount(source: &Path, target: &Path, flags: libc::c_ulong) {
    let [source, target] = [source, target]
        .map(|path| std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap());
    let none = std::ptr::null();
    // SAFETY: paths that end in NUL; a type and options are not needed for these flags.
    let result = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), none, flags, none.cast()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn path_fd(path: &Path) -> OwnedFd {
    let path_only = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path);
    path_only.unwrap().into()
}

/// Notices all that is done in these directories. What is only looked up (O_PATH) is not noticed.
fn watch(directories: &[&Path]) -> OwnedFd {
    // SAFETY: flags alone.
    let fd = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: a new descriptor that nobody else owns.
    let watch = unsafe { OwnedFd::from_raw_fd(fd) };
    for path in directories {
        let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
        // Of the directory itself only what is done in it: looking at its own entry is not forbidden.
        let mask = libc::IN_ACCESS
            | libc::IN_MODIFY
            | libc::IN_ATTRIB
            | libc::IN_OPEN
            | libc::IN_MOVE
            | libc::IN_CREATE
            | libc::IN_DELETE;
        // SAFETY: a path that ends in NUL.
        let added = unsafe { libc::inotify_add_watch(fd, path.as_ptr(), mask) };
        assert!(added >= 0);
    }
    watch
}

/// How many descriptors this process has.
///
/// # Panics
/// There is no /proc.
#[must_use]
pub fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}
