//! The nodes of the container's `/dev`: those that the specification promises, those of the
//! configuration, and the console.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::FchmodatFlags;
use nix::sys::stat::{Mode, SFlag, fchmodat, fstatat, makedev, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};
use oci_spec::runtime::{LinuxDeviceType, Process, Spec};
use protocol::{Device, Disk, Overlay};
use specification::mount::is_bind;

use super::configuration::Configuration;
use super::ids::mapped;
use super::mounts::guest_device;
use super::tree::{Kind, Tree, clone_mount};
use crate::error::{During, Error, Result};
use crate::paths;
use crate::sys;

/// A node to be made.
pub(super) struct Node {
    path: PathBuf,
    kind: SFlag,
    device: u64,
    mode: u32,
    owner: (u32, u32),
    /// The guest's own node, which is bound where none can be made.
    guest: PathBuf,
}

/// The default devices (runtime-spec, config-linux.md), with the kernel's numbers
/// (Documentation/admin-guide/devices.txt).
const DEFAULTS: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// The console and `ptmx` (devices.txt).
const TERMINALS: [u64; 2] = [makedev(5, 1), makedev(5, 2)];

/// Where the guest's own nodes are, and those of the container.
const DEV: &str = "/dev";

/// The default symbolic links (runtime-spec, runtime-linux.md).
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
];

/// Whether the container has a `/dev` of its own to be filled: not when one is bound in (as runc).
fn own_dev(spec: &Spec) -> bool {
    let mut mounts = spec.mounts().iter().flatten();
    !mounts.any(|mount| mount.destination() == Path::new(DEV) && is_bind(mount))
}

/// The block devices of the host that the guest has: their numbers there and here.
#[derive(Debug, Default)]
pub(crate) struct Disks(Vec<(Device, Device)>);

impl Disks {
    /// Finds them by their serial numbers.
    pub(crate) fn find(overlay: &Overlay) -> Result<Disks> {
        let find = |disk: &Disk| {
            let missing = || Error::Config(format!("the guest has no {}", disk.serial));
            for entry in fs::read_dir("/sys/block").during(|| "list /sys/block")? {
                let directory = entry.during(|| "list /sys/block")?.path();
                // Only virtio-blk has one.
                let serial = fs::read_to_string(directory.join("serial")).unwrap_or_default();
                if serial == disk.serial {
                    let text = fs::read_to_string(directory.join("dev"))
                        .during(|| format!("read {}/dev", directory.display()))?;
                    let (major, minor) = text.trim().split_once(':').ok_or_else(missing)?;
                    let number = |text: &str| text.parse().map_err(|_| missing());
                    let here = Device {
                        major: number(major)?,
                        minor: number(minor)?,
                    };
                    return Ok((disk.device, here));
                }
            }
            Err(missing())
        };
        overlay
            .disks
            .iter()
            .map(find)
            .collect::<Result<_>>()
            .map(Disks)
    }

    /// Disks with these numbers.
    #[cfg(test)]
    pub(crate) fn of(numbers: &[(Device, Device)]) -> Disks {
        Disks(numbers.to_vec())
    }

    /// Each with its number on the host and here.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Device, Device)> + '_ {
        self.0.iter().copied()
    }

    /// The number here of a device of the host.
    fn here(&self, host: Device) -> Option<Device> {
        self.iter()
            .find(|(there, _)| *there == host)
            .map(|(_, here)| here)
    }
}

/// The nodes of the configuration, each also made in the container's own directory of the guest with
/// its mode and owner: where none can be made, that is bound. Must be called outside of the container's
/// user namespace.
pub(super) fn configured(
    configuration: &Configuration,
    disks: &Disks,
    own: &Path,
) -> Result<Vec<Node>> {
    let spec = &configuration.spec;
    if !own_dev(spec) {
        return Ok(Vec::new());
    }
    let directory = paths::devices(own);
    let guests = configuration.setup.overlay.guests_devices;
    let mut nodes = nodes(spec, disks, guests, &directory)?;
    if !nodes.is_empty() {
        fs::create_dir(&directory).during(|| format!("create {}", directory.display()))?;
    }
    let linux = spec.linux().as_ref();
    let users = linux.and_then(|linux| linux.uid_mappings().as_ref());
    let groups = linux.and_then(|linux| linux.gid_mappings().as_ref());
    for (index, node) in nodes.iter().enumerate() {
        let id = |mappings, id| {
            mapped(mappings, id).ok_or_else(|| {
                Error::Config(format!("linux.devices[{index}]: id {id} is not mapped"))
            })
        };
        let owner = (id(users, node.owner.0)?, id(groups, node.owner.1)?);
        if node.kind != SFlag::S_IFIFO {
            make_at(AT_FDCWD, &node.guest, node, owner)
                .during(|| format!("create a node for {}", node.path.display()))?;
        }
    }
    if guests {
        add_guests(Path::new(DEV), &mut nodes).during(|| "list the guest's devices")?;
    }
    Ok(nodes)
}

/// Adds the guest's own nodes in a directory and below, but for those that the nodes have already. Terminals are the
/// container's own.
fn add_guests(directory: &Path, nodes: &mut Vec<Node>) -> std::io::Result<()> {
    let on = fs::metadata(directory)?.dev();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let found = fs::symlink_metadata(&path)?;
        let kind = SFlag::from_bits_truncate(found.mode()) & SFlag::S_IFMT;
        if kind == SFlag::S_IFDIR && found.dev() == on {
            add_guests(&path, nodes)?;
        }
        let is_device = kind == SFlag::S_IFCHR || kind == SFlag::S_IFBLK;
        let is_terminal = TERMINALS.contains(&found.rdev());
        if is_device && !is_terminal && !nodes.iter().any(|node| node.path == path) {
            nodes.push(Node {
                kind,
                device: found.rdev(),
                mode: found.mode() & 0o7777,
                owner: (0, 0),
                guest: path.clone(),
                path,
            });
        }
    }
    Ok(())
}

/// Fills `/dev`.
pub(super) fn create(spec: &Spec, tree: &Tree, configured: &[Node]) -> Result<()> {
    if !own_dev(spec) {
        return Ok(());
    }
    for (name, major, minor) in DEFAULTS {
        let path = Path::new(DEV).join(name);
        if !configured.iter().any(|node| node.path == path) {
            let device = makedev(major, minor);
            let node = Node {
                guest: path.clone(),
                path,
                kind: SFlag::S_IFCHR,
                device,
                mode: 0o666,
                owner: (0, 0),
            };
            make(tree, &node)?;
        }
    }
    for node in configured {
        make(tree, node)?;
    }
    for (path, target) in LINKS {
        link(tree, path, target)?;
    }
    link(tree, "/dev/ptmx", "pts/ptmx")
}

/// The nodes of the configuration. A device that the guest does not have is an error, as its node would be dead, or
/// left out where the list is only the host's (`guests`).
fn nodes(spec: &Spec, disks: &Disks, guests: bool, directory: &Path) -> Result<Vec<Node>> {
    let devices = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.devices().as_ref());
    let mut nodes = Vec::new();
    for (index, device) in devices.into_iter().flatten().enumerate() {
        let bad = |what: String| Error::Config(format!("linux.devices[{index}]: {what}"));
        let numbers = (u32::try_from(device.major()), u32::try_from(device.minor()));
        let (kind, number) = match (device.typ(), numbers) {
            (LinuxDeviceType::P, _) => (SFlag::S_IFIFO, 0),
            (LinuxDeviceType::C | LinuxDeviceType::U, (Ok(major), Ok(minor))) => {
                let known = Path::new("/sys/dev/char").join(format!("{major}:{minor}"));
                if !known.exists() && guests {
                    continue;
                }
                if !known.exists() {
                    return Err(bad(format!(
                        "the guest has no character device {major}:{minor}"
                    )));
                }
                (SFlag::S_IFCHR, makedev(u64::from(major), u64::from(minor)))
            }
            (LinuxDeviceType::B, _) if guests => continue,
            (LinuxDeviceType::B, (Ok(major), Ok(minor))) => {
                let here = disks.here(Device { major, minor }).ok_or_else(|| {
                    bad(format!(
                        "the host has not provided block device {major}:{minor}"
                    ))
                })?;
                (
                    SFlag::S_IFBLK,
                    makedev(here.major.into(), here.minor.into()),
                )
            }
            _ => return Err(bad("unsupported type or number".into())),
        };
        nodes.push(Node {
            path: device.path().clone(),
            kind,
            device: number,
            mode: device.file_mode().map_or(0o666, |mode| mode & 0o7777),
            owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
            guest: directory.join(index.to_string()),
        });
    }
    Ok(nodes)
}

fn make(tree: &Tree, node: &Node) -> Result<()> {
    let what = || format!("create the device {}", node.path.display());
    let (parent, name) = tree.parent(&node.path)?;
    let name = name.as_os_str();
    match make_at(&parent, Path::new(name), node, node.owner) {
        // The image's own node, if it is the right one.
        Err(Errno::EEXIST) if same(&parent, name, node).during(what)? => Ok(()),
        // No node can be made in a user namespace or on the share: bind the guest's, as runc does with the host's.
        Err(Errno::EEXIST | Errno::EPERM) if node.kind != SFlag::S_IFIFO => {
            tree.attach(&guest_device(&node.guest)?, &node.path)
        }
        result => result.during(what),
    }
}

/// Makes a node with its mode and this owner, whatever the umask is.
fn make_at(dir: impl AsFd, path: &Path, node: &Node, owner: (u32, u32)) -> nix::Result<()> {
    let mode = Mode::from_bits_retain(node.mode);
    mknodat(&dir, path, node.kind, mode, node.device)?;
    let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    fchownat(
        &dir,
        path,
        Some(uid),
        Some(gid),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )?;
    // Once more, since the umask has had its say and chown clears bits.
    fchmodat(&dir, path, mode, FchmodatFlags::FollowSymlink)
}

fn same(parent: impl AsFd, name: &std::ffi::OsStr, node: &Node) -> nix::Result<bool> {
    let stat = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(stat.st_mode & SFlag::S_IFMT.bits() == node.kind.bits() && stat.st_rdev == node.device)
}

/// Makes a symbolic link. One that exists is replaced, anything else is left alone, as runc does.
fn link(tree: &Tree, path: &str, target: &str) -> Result<()> {
    let what = || format!("create the link {path}");
    let (parent, name) = tree.parent(Path::new(path))?;
    let name = name.as_os_str();
    match symlinkat(target, &parent, name) {
        Err(Errno::EEXIST) => {}
        result => return result.during(what),
    }
    let stat = fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW).during(what)?;
    let kind = stat.st_mode & SFlag::S_IFMT.bits();
    if kind == SFlag::S_IFLNK.bits() || path == "/dev/ptmx" {
        unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir).during(what)?;
        symlinkat(target, &parent, name).during(what)?;
    }
    Ok(())
}

/// A terminal of the container's own devpts.
pub(crate) struct Terminal {
    pub(crate) master: OwnedFd,
    pub(crate) slave: OwnedFd,
}

/// Opens a terminal pair of the container.
pub(crate) fn open_terminal(tree: &Tree, process: &Process) -> Result<Terminal> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY;
    let master = tree
        .open(Path::new("/dev/ptmx"), flags)
        .during(|| "open /dev/ptmx of the container (process.terminal needs a devpts mount)")?;
    let slave = sys::open_slave(&master).during(|| "open the terminal")?;
    if let Some(size) = process.console_size() {
        let cut = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
        sys::set_window_size(&slave, cut(size.height()), cut(size.width()))
            .during(|| "set the size of the terminal")?;
    }
    Ok(Terminal { master, slave })
}

/// Mounts a terminal's slave at `/dev/console`: the open one, whatever lies at its path by now.
pub(crate) fn mount_console(tree: &Tree, terminal: &Terminal) -> Result<()> {
    let copy = clone_mount(&terminal.slave, Path::new(""), false)?;
    let console = tree.create(Path::new("/dev/console"), Kind::File)?;
    sys::attach(copy, console).during(|| "mount /dev/console")
}
