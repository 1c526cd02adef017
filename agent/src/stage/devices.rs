//! The nodes of the container's `/dev`: those that the specification promises, those of the
//! configuration, and the console.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::FchmodatFlags;
use nix::sys::stat::{Mode, SFlag, fchmodat, fstatat, major, makedev, minor, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};
use oci_spec::runtime::{LinuxDeviceType, Process, Spec};

use super::mounts::guest_device;
use super::tree::{Kind, Tree, clone_mount};
use crate::error::{During, Error, Result};
use crate::sys;

/// A node to be made.
struct Node {
    path: PathBuf,
    kind: SFlag,
    device: u64,
    mode: u32,
    owner: (u32, u32),
}

/// The default devices (runtime-spec, config-linux.md), with the kernel's numbers
/// (Documentation/admin-guide/devices.txt).
const DEFAULTS: [(&str, u64, u64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

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
    !spec.mounts().iter().flatten().any(|mount| {
        let bind = mount.typ().as_deref() == Some("bind")
            || mount
                .options()
                .iter()
                .flatten()
                .any(|o| matches!(o.as_str(), "bind" | "rbind"));
        mount.destination() == Path::new("/dev") && bind
    })
}

/// Fills `/dev`.
pub(crate) fn create(spec: &Spec, tree: &Tree) -> Result<()> {
    if !own_dev(spec) {
        return Ok(());
    }
    let configured = nodes(spec)?;
    for (path, major, minor) in DEFAULTS {
        let path = PathBuf::from(path);
        if !configured.iter().any(|node| node.path == path) {
            let device = makedev(major, minor);
            let node = Node {
                path,
                kind: SFlag::S_IFCHR,
                device,
                mode: 0o666,
                owner: (0, 0),
            };
            make(tree, &node)?;
        }
    }
    for node in &configured {
        make(tree, node)?;
    }
    for (path, target) in LINKS {
        link(tree, path, target)?;
    }
    link(tree, "/dev/ptmx", "pts/ptmx")
}

/// The nodes of the configuration. A device that the guest does not have is an error: its node
/// would be dead.
fn nodes(spec: &Spec) -> Result<Vec<Node>> {
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
                if !known.exists() {
                    return Err(bad(format!(
                        "the guest has no character device {major}:{minor}"
                    )));
                }
                (SFlag::S_IFCHR, makedev(u64::from(major), u64::from(minor)))
            }
            _ => return Err(bad("unsupported type or number".into())),
        };
        nodes.push(Node {
            path: device.path().clone(),
            kind,
            device: number,
            mode: device.file_mode().map_or(0o666, |mode| mode & 0o7777),
            owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
        });
    }
    Ok(nodes)
}

fn make(tree: &Tree, node: &Node) -> Result<()> {
    let what = || format!("create the device {}", node.path.display());
    let (parent, name) = tree.parent(&node.path)?;
    let name = name.as_os_str();
    match mknodat(
        &parent,
        name,
        node.kind,
        Mode::from_bits_retain(node.mode),
        node.device,
    ) {
        Ok(()) => {
            let (uid, gid) = (Uid::from_raw(node.owner.0), Gid::from_raw(node.owner.1));
            fchownat(
                &parent,
                name,
                Some(uid),
                Some(gid),
                AtFlags::AT_SYMLINK_NOFOLLOW,
            )
            .during(what)?;
            // Once more, since the umask has had its say and chown clears bits.
            let mode = Mode::from_bits_retain(node.mode);
            fchmodat(&parent, name, mode, FchmodatFlags::FollowSymlink).during(what)
        }
        // The image's own node, if it is the right one.
        Err(Errno::EEXIST) if same(&parent, name, node).during(what)? => Ok(()),
        // No node can be made in a user namespace or on the share: bind the guest's, as runc does.
        Err(Errno::EEXIST | Errno::EPERM) if node.kind == SFlag::S_IFCHR => bind(tree, node),
        result => result.during(what),
    }
}

fn same(parent: impl AsFd, name: &std::ffi::OsStr, node: &Node) -> nix::Result<bool> {
    let stat = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(stat.st_mode & SFlag::S_IFMT.bits() == node.kind.bits() && stat.st_rdev == node.device)
}

fn bind(tree: &Tree, node: &Node) -> Result<()> {
    // The kernel keeps the node's name in devtmpfs in its uevent.
    let id = format!(
        "/sys/dev/char/{}:{}/uevent",
        major(node.device),
        minor(node.device)
    );
    let uevent = std::fs::read_to_string(&id).during(|| format!("read {id}"))?;
    let name = uevent
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| {
        Error::Config(format!(
            "{}: the guest has no node for it",
            node.path.display()
        ))
    })?;
    tree.attach(&guest_device(name)?, &node.path)
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

/// Opens a terminal pair of the container. Returns it and its number.
pub(crate) fn open_terminal(tree: &Tree, process: &Process) -> Result<(Terminal, u32)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY;
    let master = tree
        .open(Path::new("/dev/ptmx"), flags)
        .during(|| "open /dev/ptmx of the container (process.terminal needs a devpts mount)")?;
    let (number, slave) = sys::open_slave(&master).during(|| "open the terminal")?;
    if let Some(size) = process.console_size() {
        let cut = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
        sys::set_window_size(&slave, cut(size.height()), cut(size.width()))
            .during(|| "set the size of the terminal")?;
    }
    Ok((Terminal { master, slave }, number))
}

/// Mounts a terminal's slave at `/dev/console`.
pub(crate) fn mount_console(tree: &Tree, number: u32) -> Result<()> {
    let path = PathBuf::from(format!("/dev/pts/{number}"));
    let node = tree
        .open(&path, OFlag::O_PATH)
        .during(|| format!("open {}", path.display()))?;
    let copy = clone_mount(&node, Path::new(""), false)?;
    let console = tree.create(Path::new("/dev/console"), Kind::File)?;
    sys::attach(copy, console).during(|| "mount /dev/console")
}
