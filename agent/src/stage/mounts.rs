//! The mounts of the configuration, made from outside of the container's root.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fstat};
use oci_spec::runtime::{Mount, Spec};
use protocol::{Device, HostMount};
use specification::MountOption;
use specification::mount::{Reach, is_bind, options};

use super::configuration::Configuration;
use super::copy_up;
use super::options::MountOptions;
use super::tree::{Kind, Tree, c_path, clone_mount, is, proc_path};
use crate::error::{During, Error, Result};
use crate::paths::{self, NOTIFY, SHARE};
use crate::sys::{self, MountAttributes};
use crate::task::Create;

/// The guest's cgroups.
const CGROUP_TREE: &CStr = c"/sys/fs/cgroup";

/// Detached mounts, taken before the namespaces are entered: a user namespace could not.
pub(crate) struct Sources {
    rootfs: OwnedFd,
    binds: HashMap<usize, OwnedFd>,
    /// Sources that earlier mounts provide, by their paths in the container.
    inner: HashMap<usize, String>,
    notify: Option<OwnedFd>,
}

impl Sources {
    /// Takes the root file system and the bind mounts from the share.
    pub(super) fn take(configuration: &Configuration, create: &Create) -> Result<Sources> {
        let Configuration { spec, setup, .. } = configuration;
        let overlay = &setup.overlay;
        let share = Path::new(SHARE);
        let share = File::open(share).during(|| "open the share")?;
        let take = |path: &str, recursive| {
            if Path::new(path)
                .components()
                .any(|c| !matches!(c, std::path::Component::Normal(_)))
            {
                return Err(Error::Config(format!(
                    "{path:?} is not a path of the share"
                )));
            }
            let clone = clone_mount(&share, Path::new(path), recursive)?;
            let of_host = overlay.mounts.iter().find(|mount| mount.path == path);
            if let Some(mount) = of_host {
                keep(&clone, mount)?;
            }
            Ok(clone)
        };
        let is_taken = |path: &str| {
            let mut binds = overlay.binds.iter();
            path == overlay.rootfs || binds.any(|(_, bind)| bind == path)
        };
        for mount in overlay.mounts.iter().filter(|mount| !is_taken(&mount.path)) {
            // Mounts it, as the kernel otherwise does when somebody first goes there, and then with
            // the attributes of the mount above. What cannot be entered is not mounted then either.
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            if let Ok(mounted) = openat(&share, mount.path.as_str(), flags, Mode::empty()) {
                keep(&mounted, mount)?;
            }
        }
        let rootfs = take(&overlay.rootfs, true)?;
        let mut binds = HashMap::new();
        for (index, path) in &overlay.binds {
            let mount = spec.mounts().as_ref().and_then(|mounts| mounts.get(*index));
            let mount =
                mount.ok_or_else(|| Error::Config(format!("the overlay names mounts[{index}]")))?;
            let options = parse(mount);
            binds.insert(*index, take(path, options.recursive)?);
        }
        for (index, device) in &overlay.devices {
            binds.insert(*index, own(SFlag::S_IFCHR, *device)?);
        }
        let notify = || clone_mount(AT_FDCWD, &paths::notify(&create.directory), false);
        let notify = create.notify.then(notify).transpose()?;
        Ok(Sources {
            rootfs,
            binds,
            inner: overlay.inner.iter().cloned().collect(),
            notify,
        })
    }
}

/// Gives a mount the attributes that it has on the host: what is forbidden there stays forbidden, unless an option of
/// the configuration changes it later.
fn keep(mounted: &OwnedFd, mount: &HostMount) -> Result<()> {
    let set = mount.attributes;
    // Access times are one field.
    let clear = if set & libc::MOUNT_ATTR__ATIME == 0 {
        0
    } else {
        libc::MOUNT_ATTR__ATIME
    };
    let change = MountAttributes {
        set,
        clear,
        ..MountAttributes::default()
    };
    sys::mount_setattr(mounted, false, change)
        .during(|| format!("keep the attributes of the mount {}", mount.path))
}

fn parse(mount: &Mount) -> MountOptions {
    MountOptions {
        bind: is_bind(mount),
        ..MountOptions::parse(options(mount))
    }
}

/// Mounts the root file system at the staging directory, and all else in it.
pub(crate) fn mount_all(spec: &Spec, sources: Sources, directory: &Path) -> Result<Tree> {
    let staging = paths::root(directory);
    let staging = File::open(&staging).during(|| format!("open {}", staging.display()))?;
    sys::attach(&sources.rootfs, staging).during(|| "mount the root file system")?;
    let tree = Tree::new(sources.rootfs);
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let inner = sources.inner.get(&index);
        let inner = inner.map(|path| provided(&tree, mount, path)).transpose()?;
        let source = inner.as_ref().or_else(|| sources.binds.get(&index));
        one(&tree, mount, source, index)?;
    }
    if let Some(notify) = sources.notify {
        let set = libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NOEXEC
            | libc::MOUNT_ATTR_NODEV;
        let change = MountAttributes {
            set,
            ..MountAttributes::default()
        };
        sys::mount_setattr(&notify, false, change).during(|| format!("change {NOTIFY}"))?;
        tree.attach(&notify, Path::new(NOTIFY))?;
    }
    Ok(tree)
}

/// A mount of what an earlier one has put into the container.
fn provided(tree: &Tree, mount: &Mount, path: &str) -> Result<OwnedFd> {
    let source = tree.open(Path::new(path), OFlag::O_PATH);
    let source = source.during(|| format!("open {path}, a source, in the container"))?;
    clone_mount(&source, Path::new(""), parse(mount).recursive)
}

fn one(tree: &Tree, mount: &Mount, source: Option<&OwnedFd>, index: usize) -> Result<()> {
    let options = parse(mount);
    let path = mount.destination();
    if options.remount {
        return remount(tree, mount, &options);
    }
    if options.bind && !options.data.is_empty() {
        let text = format!("{}: unknown bind option {:?}", path.display(), options.data);
        return Err(Error::Config(text));
    }
    if let Some(source) = source {
        // What is read-only on the host is so whatever the options say, and what is not is writable there.
        let mut options = options;
        options.attributes.clear &= !libc::MOUNT_ATTR_RDONLY;
        options.recursive_attributes.clear &= !libc::MOUNT_ATTR_RDONLY;
        change(source, &options, path)?;
        return tree.attach(source, path);
    }
    if options.bind {
        return Err(Error::Config(format!(
            "mounts[{index}]: the host has not provided the bind mount"
        )));
    }
    file_system(tree, mount, &options)
}

/// Changes what is mounted at the destination already (mount(2), MS_REMOUNT): of a bind mount the
/// mount alone, else the file system too.
fn remount(tree: &Tree, mount_: &Mount, options: &MountOptions) -> Result<()> {
    let path = mount_.destination();
    let mounted = tree
        .open(path, OFlag::O_PATH)
        .during(|| format!("open {}", path.display()))?;
    let mut flags = options.mount_flags() | MsFlags::MS_REMOUNT;
    flags.set(MsFlags::MS_BIND, options.bind);
    let data = (!options.data.is_empty()).then_some(options.data.as_str());
    mount(
        None::<&str>,
        &proc_path(&mounted),
        None::<&str>,
        flags,
        data,
    )
    .during(|| format!("remount {}", path.display()))?;
    sys::mount_setattr(&mounted, true, options.recursive_attributes.into())
        .during(|| format!("change the mount {}", path.display()))?;
    propagate(&mounted, options, path)
}

/// Applies attributes and propagation to a mount.
fn change(mount: &OwnedFd, options: &MountOptions, path: &Path) -> Result<()> {
    let what = || format!("change the mount {}", path.display());
    sys::mount_setattr(mount, true, options.recursive_attributes.into()).during(what)?;
    sys::mount_setattr(mount, false, options.attributes.into()).during(what)?;
    propagate(mount, options, path)
}

fn propagate(mount: &OwnedFd, options: &MountOptions, path: &Path) -> Result<()> {
    for (propagation, recursive) in &options.propagation {
        let change = MountAttributes {
            propagation: *propagation,
            ..MountAttributes::default()
        };
        sys::mount_setattr(mount, *recursive, change)
            .during(|| format!("set the propagation of {}", path.display()))?;
    }
    Ok(())
}

fn file_system(tree: &Tree, mount_: &Mount, options: &MountOptions) -> Result<()> {
    let path = mount_.destination();
    let kind = mount_.typ().as_deref().unwrap_or_default();
    // cgroup v1 does not exist here; runc maps the name to v2 in the same way.
    let kind = if kind == "cgroup" { "cgroup2" } else { kind };
    // What is hidden lends its mode, unless the options say otherwise (they come later); where nothing was there, a
    // tmpfs has the kernel's own.
    let lends = kind == "tmpfs" && tree.open(path, OFlag::O_PATH).is_ok();
    let target = tree.create(path, Kind::Directory)?;
    if matches!(kind, "proc" | "sysfs") {
        ordinary(tree, path, kind)?;
    }
    let mut flags = options.mount_flags();
    let mut data = options.data.clone();
    if lends {
        let mode = fstat(&target)
            .during(|| format!("stat {}", path.display()))?
            .st_mode
            & 0o7777;
        data = if data.is_empty() {
            format!("mode={mode:o}")
        } else {
            format!("mode={mode:o},{data}")
        };
    }
    if delays_read_only(path) || options.copy_up {
        // Still to be filled; see `seal`.
        flags -= MsFlags::MS_RDONLY;
    }
    let source = mount_
        .source()
        .as_deref()
        .unwrap_or_else(|| Path::new(kind));
    let data = (!data.is_empty()).then_some(data.as_str());
    match mount(Some(source), &proc_path(&target), Some(kind), flags, data) {
        Err(Errno::EPERM) if kind == "cgroup2" => bind_cgroups(&target, options),
        result => result.map_err(io::Error::from),
    }
    .during(|| {
        format!(
            "mount {kind} on {} with options {:?}",
            path.display(),
            data.unwrap_or_default()
        )
    })?;
    let mounted = tree
        .open(path, OFlag::O_PATH)
        .during(|| format!("open {}", path.display()))?;
    if options.copy_up {
        copy_up::copy(&target, &mounted)
            .during(|| format!("copy what {} hides into it", path.display()))?;
        if !delays_read_only(path) {
            seal_one(&mounted, options, path)?;
        }
    }
    sys::mount_setattr(&mounted, true, options.recursive_attributes.into())
        .during(|| format!("change the mount {}", path.display()))?;
    propagate(&mounted, options, path)
}

/// What the kernel keeps there is where a process looks for it only if no symbolic link stands in
/// its place, as runc has it.
fn ordinary(tree: &Tree, path: &Path, kind: &str) -> Result<()> {
    let found = tree
        .open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW)
        .during(|| format!("open {}", path.display()))?;
    if is(&found, SFlag::S_IFDIR).during(|| format!("stat {}", path.display()))? {
        return Ok(());
    }
    Err(Error::Config(format!(
        "filesystem {kind:?} must be mounted on ordinary directory: {}",
        path.display()
    )))
}

/// A user namespace without a cgroup namespace of its own may not mount cgroups: as with runc it sees the guest's.
fn bind_cgroups(target: &OwnedFd, options: &MountOptions) -> io::Result<()> {
    let copy = sys::open_tree(AT_FDCWD, CGROUP_TREE, libc::OPEN_TREE_CLONE)?;
    sys::mount_setattr(&copy, false, options.attributes.into())?;
    sys::attach(&copy, target)
}

/// `/dev` is filled after it is mounted.
fn delays_read_only(path: &Path) -> bool {
    path == Path::new("/dev")
}

fn seal_one(mounted: &OwnedFd, options: &MountOptions, path: &Path) -> Result<()> {
    let set = options.attributes.set & libc::MOUNT_ATTR_RDONLY;
    sys::mount_setattr(
        mounted,
        false,
        MountAttributes {
            set,
            ..MountAttributes::default()
        },
    )
    .during(|| format!("make {} read-only", path.display()))
}

/// Makes read-only what had to be written first: `/dev`, and at last the root.
pub(crate) fn seal(spec: &Spec, tree: &Tree) -> Result<()> {
    for mount in spec.mounts().iter().flatten() {
        let path = mount.destination();
        let options = parse(mount);
        if delays_read_only(path) && !options.bind {
            let mounted = tree.open(path, OFlag::O_PATH).during(|| "open /dev")?;
            seal_one(&mounted, &options, path)?;
        }
    }
    if spec
        .root()
        .as_ref()
        .is_some_and(|root| root.readonly() == Some(true))
    {
        let set = libc::MOUNT_ATTR_RDONLY;
        sys::mount_setattr(
            tree.root(),
            false,
            MountAttributes {
                set,
                ..Default::default()
            },
        )
        .during(|| "make the root read-only")?;
    }
    Ok(())
}

/// `linux.rootfsPropagation`, of the container's root when it is `/`: pivot_root(2) takes no shared mount.
pub(crate) fn propagate_root(spec: &Spec) -> Result<()> {
    let propagation = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.rootfs_propagation().as_deref());
    let Some(name) = propagation.filter(|name| !name.is_empty()) else {
        return Ok(());
    };
    let Some(MountOption::Propagation(propagation, reach)) = MountOption::of(name) else {
        let text = format!("linux.rootfsPropagation: unknown {name:?}");
        return Err(Error::Config(text));
    };
    let root = File::open("/").during(|| "open the root")?;
    let change = MountAttributes {
        propagation,
        ..MountAttributes::default()
    };
    sys::mount_setattr(root, reach == Reach::Tree, change)
        .during(|| "set the propagation of the root")
}

/// A mount of one of the guest's own nodes. Whether that is mounted read-only or hidden in the
/// container does not matter: it is copied from there by name.
pub(crate) fn guest_device(node: &Path) -> Result<OwnedFd> {
    clone_mount(AT_FDCWD, node, false)
}

/// A mount of the guest's own node of a device.
fn own(kind: SFlag, device: Device) -> Result<OwnedFd> {
    let Device { major, minor } = device;
    let kind = if kind == SFlag::S_IFBLK {
        "block"
    } else {
        "char"
    };
    // The kernel keeps the node's name in devtmpfs in its uevent.
    let id = format!("/sys/dev/{kind}/{major}:{minor}/uevent");
    let uevent = fs::read_to_string(&id).during(|| format!("read {id}"))?;
    let name = uevent
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name
        .ok_or_else(|| Error::Config(format!("the guest has no node of device {major}:{minor}")))?;
    guest_device(&Path::new("/dev").join(name))
}

/// Hides `linux.maskedPaths` and protects `linux.readonlyPaths`.
pub(crate) fn protect(spec: &Spec, tree: &Tree) -> Result<()> {
    let Some(linux) = spec.linux() else {
        return Ok(());
    };
    for path in linux.readonly_paths().iter().flatten() {
        let Some(target) = existing(tree, path)? else {
            continue;
        };
        let copy = clone_mount(&target, Path::new(""), true)?;
        let set = libc::MOUNT_ATTR_RDONLY;
        sys::mount_setattr(
            &copy,
            false,
            MountAttributes {
                set,
                ..Default::default()
            },
        )
        .and_then(|()| sys::attach(copy, target))
        .during(|| format!("make {path} read-only"))?;
    }
    for path in linux.masked_paths().iter().flatten() {
        let Some(target) = existing(tree, path)? else {
            continue;
        };
        if is(&target, SFlag::S_IFDIR).during(|| format!("stat {path}"))? {
            let target = proc_path(&target);
            mount(
                Some("tmpfs"),
                &target,
                Some("tmpfs"),
                MsFlags::MS_RDONLY,
                None::<&str>,
            )
            .during(|| format!("mask {path}"))?;
        } else {
            let null = guest_device(Path::new("/dev/null"))?;
            sys::attach(null.as_fd(), target).during(|| format!("mask {path}"))?;
        }
    }
    Ok(())
}

/// A path that may be missing, in which case there is nothing to protect.
fn existing(tree: &Tree, path: &str) -> Result<Option<OwnedFd>> {
    c_path(Path::new(path))?;
    match tree.open(Path::new(path), OFlag::O_PATH) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        result => result
            .during(|| format!("open {path} in the container"))
            .map(Some),
    }
}
