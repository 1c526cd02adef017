//! What a plan depends on besides the configuration, as this host has it; and the decision, which `create` follows and
//! `explain` prints.

use std::arch::x86_64::__cpuid;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, major, minor};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, NSFS_MAGIC, PROC_SUPER_MAGIC, statfs};
use oci_spec::runtime::LinuxNamespaceType as Kind;
use protocol::Device;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use specification::namespace;

use super::context::Context;
use super::error::Error;
use crate::config::Config;
use crate::error::{Doing, one_line};
use crate::host::{apparmor, resctrl, selinux};
use crate::machine;
use crate::plan::{self, Decision, Facts, FileKind, Owner, Pin, Policies, Policy};
use crate::state::{ContainerId, Record, StateDir, index};
use crate::sys;

/// Decides about the configuration of a bundle.
pub(super) fn decide(
    context: &Context<'_>,
    config: &Config,
    bundle: &Path,
) -> Result<Decision, Error> {
    let memory = memory()?;
    let facts = Facts {
        bundle,
        memory,
        room: room(memory),
        kind: &kind_of,
        real: &real,
        systemd: context.systemd_cgroup,
        resctrl: resctrl::is_mounted(),
        policies: policies(),
        selinux: selinux(),
        labels: &|id| Some(record(context.root, id)?.labels),
        namespace: &|path, kind| owner(context.root, path, kind),
        annotations: &|id| annotations(context.root, id),
    };
    Ok(plan::decide(&config.spec, &config.value, &facts))
}

/// Memory of this host in bytes.
pub(super) fn memory() -> Result<u64, Error> {
    let system = nix::sys::sysinfo::sysinfo().doing("read the host's memory size")?;
    Ok(system.ram_total())
}

/// How much memory a machine may be given although it may never use it.
fn room(memory: u64) -> u64 {
    // 2: a mapping counts as memory that is used (Linux Documentation/mm/overcommit-accounting.rst).
    let strict = fs::read_to_string("/proc/sys/vm/overcommit_memory");
    if strict.is_ok_and(|mode| mode.trim() == "2") {
        return 0;
    }
    // The other half of what the processor can address is for devices and files.
    let bits = address_bits();
    memory.min(plan::ROOM_MAX).min(1 << (bits - 1))
}

/// Physical address bits of the host's processor (Intel SDM volume 2A, CPUID, leaf 0x80000008).
fn address_bits() -> u32 {
    const BITS: u32 = 0x8000_0008;
    let least = 36;
    if __cpuid(0x8000_0000).eax < BITS {
        return least;
    }
    (__cpuid(BITS).eax & 0xff).clamp(least, 52)
}

/// The policies of this host's AppArmor, if that is active.
pub(super) fn policies() -> Option<&'static Policies<'static>> {
    apparmor::is_enabled().then_some(&|profile| apparmor::policy(profile).map_err(|e| one_line(&e)))
}

/// The labels that this host's SELinux knows, if that is enabled.
pub(super) fn selinux() -> Option<&'static Policy<'static>> {
    selinux::is_enabled()
        .then_some(&|what, label| selinux::label(what, label).map_err(|e| one_line(&e)))
}

/// What a path is; symbolic links are followed.
fn kind_of(path: &Path) -> Result<FileKind, String> {
    let metadata = fs::metadata(path).map_err(|e| format!("stat {}: {e}", path.display()))?;
    let kind = metadata.file_type();
    if let Some(kind) = refused_for_its_mount(path).filter(|_| kind.is_dir() || kind.is_file()) {
        return Ok(kind);
    }
    Ok(if kind.is_dir() {
        FileKind::Directory
    } else if kind.is_socket() {
        FileKind::Socket
    } else if kind.is_fifo() {
        FileKind::Fifo
    } else if kind.is_block_device() {
        FileKind::Block
    } else if kind.is_char_device() {
        // 12 and 20 bits (linux/kdev_t.h).
        let number = |of: fn(u64) -> u64| u32::try_from(of(metadata.rdev())).unwrap_or(0);
        FileKind::Character(Device {
            major: number(major),
            minor: number(minor),
        })
    } else {
        FileKind::File
    })
}

/// A path without symbolic links, as far as there is something. One of a container is that below `root`, which no link
/// leaves.
fn real(root: Option<&Path>, path: &Path) -> PathBuf {
    let found = path.ancestors().find_map(|existing| {
        let rest = path.strip_prefix(existing).ok()?;
        let real = real_existing(root, existing)?;
        // As a path that ends in `/` it would be another one.
        Some(match rest.as_os_str().is_empty() {
            true => real,
            false => real.join(rest),
        })
    });
    found.unwrap_or_else(|| path.to_owned())
}

/// The same of all of a path; `None` if there is nothing.
fn real_existing(root: Option<&Path>, path: &Path) -> Option<PathBuf> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let open = |path: &Path| open(path, flags, Mode::empty()).ok();
    let found = match root {
        None => open(path)?,
        Some(root) => {
            let how = OpenHow::new()
                .flags(flags)
                .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
            openat2(open(root)?, path, how).ok()?
        }
    };
    // In fewer calls than by looking at each directory of it.
    let found = fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()?;
    match root {
        None => Some(found),
        Some(root) => Some(Path::new("/").join(found.strip_prefix(root).ok()?)),
    }
}

/// What a file or directory is of which the file system decides.
fn refused_for_its_mount(path: &Path) -> Option<FileKind> {
    match statfs(path).ok()?.filesystem_type() {
        PROC_SUPER_MAGIC | NSFS_MAGIC => Some(FileKind::Processes),
        FUSE_SUPER_MAGIC => {
            let mount = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok()?;
            let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
            is_closed(&mounts, mount.stx_mnt_id).then_some(FileKind::Closed)
        }
        _ => None,
    }
}

/// Whether this mount of the table (proc_pid_mountinfo(5)) is of a FUSE file system that only its user may enter.
/// Virtiofs, which says nothing of users, lets in all.
fn is_closed(mounts: &str, id: u64) -> bool {
    let id = id.to_string();
    let is_it = |line: &&str| line.trim_start().split(' ').next() == Some(&id);
    let line = mounts.lines().find(is_it);
    let options = line.and_then(|line| Some(line.split_once(" - ")?.1.rsplit_once(' ')?.1));
    let has = |like: &str| {
        let mut options = options.into_iter().flat_map(|options| options.split(','));
        options.any(|option| option.starts_with(like))
    };
    has("user_id=") && !has("allow_other")
}

/// Whose namespace a path leads to. Who names one by a container's process means the container's, although that process
/// has it on this host.
fn owner(root: &Path, path: &Path, kind: Kind) -> Result<Owner, String> {
    let problem = |e: &dyn std::fmt::Display| format!("open {}: {e}", path.display());
    // Without opening it first: what is no namespace may be a pipe or a device.
    let found = statfs(path).map_err(|e| problem(&io::Error::from(e)))?;
    if found.filesystem_type() != NSFS_MAGIC {
        return Err(format!("{} is not a namespace", path.display()));
    }
    let file = File::open(path).map_err(|e| problem(&e))?;
    let found = sys::namespace_type(&file).map_err(|e| problem(&e))?;
    if found != namespace::flag(kind) {
        let is = namespace::ALL.into_iter();
        let is = is.filter(|kind| namespace::flag(*kind) == found);
        let is = is.map(namespace::name).next().unwrap_or("unknown");
        return Err(format!(
            "{} is a namespace of the type {is}, not {}",
            path.display(),
            namespace::name(kind)
        ));
    }
    if path.starts_with("/proc") {
        let found = process_of(path, kind).and_then(|pid| index::find(root, pid));
        let seat = found.and_then(|(_, record)| record.seat());
        return Ok(seat.map_or(Owner::Host, Owner::Container));
    }
    let own = format!("/proc/self/ns/{}", namespace::file(kind));
    let own = fs::metadata(&own).map_err(|e| problem(&e))?.ino();
    let inode = file.metadata().map_err(|e| problem(&e))?.ino();
    if inode == own || !matches!(kind, Kind::Ipc | Kind::Network | Kind::User | Kind::Uts) {
        return Ok(Owner::Host);
    }
    let pod = match kind {
        Kind::Uts => index::find_pod(root, inode),
        _ => None,
    };
    let pod = pod.and_then(|pod| pod.process.zip(pod.pins));
    let maps = match kind {
        Kind::User => Some(machine::maps_of(&file)),
        _ => None,
    };
    let maps = maps.transpose();
    let maps = maps.map_err(|e| format!("read the id maps of {}: {e}", path.display()))?;
    Ok(Owner::Pinned(Pin { inode, pod, maps }))
}

/// The process whose namespace a path names: `/proc/<pid>/ns/<kind>`.
fn process_of(path: &Path, kind: Kind) -> Option<i32> {
    let mut names = path.strip_prefix("/proc").ok()?.iter();
    let pid = names.next()?.to_str()?.parse().ok()?;
    let rest = names.as_path();
    (rest == Path::new("ns").join(namespace::file(kind))).then_some(pid)
}

/// The annotations of the container or pod with this name; none if there is none.
fn annotations(root: &Path, id: &str) -> BTreeMap<String, String> {
    let record = record(root, id);
    record.map(|record| record.annotations).unwrap_or_default()
}

/// The record of the container with this id, if there is one.
fn record(root: &Path, id: &str) -> Option<Record> {
    let id = ContainerId::of_sandbox(id).ok()?;
    StateDir::open(root, &id).ok()?.record().ok()?
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_leads_to_processes_is_known() {
        for path in ["/proc", "/proc/self/ns/net", "/proc/version"] {
            assert_eq!(kind_of(Path::new(path)), Ok(FileKind::Processes), "{path}");
        }
        assert_eq!(kind_of(Path::new("/sys")), Ok(FileKind::Directory));
        assert_eq!(kind_of(Path::new("/etc/passwd")), Ok(FileKind::File));
    }

    #[test]
    fn paths_are_without_links_as_far_as_they_exist() {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap();
        fs::create_dir(root.join("there")).unwrap();
        symlink("/there", root.join("link")).unwrap();
        for (path, expected) in [
            ("/link", "/there"),
            ("/link/a/b", "/there/a/b"),
            ("/../link/a", "/there/a"),
            ("/no/such", "/no/such"),
            ("/", "/"),
        ] {
            assert_eq!(
                real(Some(&root), Path::new(path)),
                Path::new(expected),
                "{path}"
            );
        }
        assert_eq!(real(None, &root.join("there/x")), root.join("there/x"));
        // There it leads to the host's.
        assert_eq!(real(None, &root.join("link/x")), root.join("link/x"));
    }

    #[test]
    fn a_file_system_of_one_user_is_known_by_its_options() {
        let mounts = "\
            30 1 0:30 / /one rw,nosuid - fuse.sshfs me@there: rw,user_id=0,group_id=0\n\
            31 1 0:31 / /all rw - fuse bugs rw,user_id=0,group_id=0,allow_other\n\
            32 1 0:32 / /share rw shared:1 - virtiofs share rw\n";
        assert_eq!(
            [30, 31, 32, 3].map(|id| is_closed(mounts, id)),
            [true, false, false, false]
        );
    }

    #[test]
    fn namespaces_of_this_host_are_no_containers() {
        let state = tempfile::tempdir().unwrap();
        let owner = |path: &str, kind| super::owner(state.path(), Path::new(path), kind);
        for (name, kind) in [
            ("ipc", Kind::Ipc),
            ("net", Kind::Network),
            ("pid", Kind::Pid),
        ] {
            let path = format!("/proc/self/ns/{name}");
            assert_eq!(owner(&path, kind), Ok(Owner::Host), "{name}");
        }
        assert!(
            owner("/proc/self/status", Kind::Ipc)
                .unwrap_err()
                .contains("is not a namespace")
        );
        let other = owner("/proc/self/ns/uts", Kind::Ipc).unwrap_err();
        assert!(
            other.ends_with("is a namespace of the type uts, not ipc"),
            "{other}"
        );
        assert!(
            owner("/no/such", Kind::Ipc)
                .unwrap_err()
                .contains("No such file")
        );
    }
}
