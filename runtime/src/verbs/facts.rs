//! What a plan depends on besides the configuration, as this host has it; and the decision, which `create` follows and
//! `explain` prints.

use std::arch::x86_64::__cpuid;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use oci_spec::runtime::LinuxNamespaceType as Kind;
use protocol::Device;
use specification::namespace;

use super::context::Context;
use super::error::Error;
use crate::config::Config;
use crate::error::{Doing, one_line};
use crate::host::{apparmor, resctrl};
use crate::plan::{self, Decision, Facts, FileKind, Owner, Policies};
use crate::state::{Identity, StateDir};

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
        systemd: context.systemd_cgroup,
        resctrl: resctrl::is_mounted(),
        policies: policies(),
        namespace: &|path, kind| owner(context.root, path, kind),
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

/// What a path is; symbolic links are followed.
fn kind_of(path: &Path) -> Result<FileKind, String> {
    let metadata = fs::metadata(path).map_err(|e| format!("stat {}: {e}", path.display()))?;
    let kind = metadata.file_type();
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

/// Whose namespace a path leads to. A machine process shares some namespaces with this host; who names one of them by
/// that process nevertheless means the container.
fn owner(root: &Path, path: &Path, kind: Kind) -> Result<Owner, String> {
    let problem = |e: &dyn std::fmt::Display| format!("open {}: {e}", path.display());
    let found = fs::metadata(path).map_err(|e| problem(&e))?;
    if statfs(path).map_err(|e| problem(&e))?.filesystem_type() != NSFS_MAGIC {
        return Err(format!("{} is not a namespace", path.display()));
    }
    if kind == Kind::Network {
        // It is joined, whosever it is.
        return Ok(Owner::Host);
    }
    let identity = |path: &Path| {
        fs::metadata(path)
            .map(|found| (found.dev(), found.ino()))
            .ok()
    };
    let of = |process: &str| PathBuf::from(format!("/proc/{process}/ns/{}", namespace::file(kind)));
    let found = Some((found.dev(), found.ino()));
    let hosts = identity(&of("self")) == found;
    for dir in StateDir::all(root).map_err(|e| e.to_string())? {
        let machine = dir
            .record()
            .ok()
            .flatten()
            .and_then(|record| record.machine);
        let Some(machine) = machine.filter(Identity::is_alive) else {
            continue;
        };
        let own = of(&machine.pid.to_string());
        if path == own || !hosts && identity(&own) == found {
            return Ok(Owner::Container(dir.id().to_owned()));
        }
    }
    Ok(Owner::Host)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(
            owner("/no/such", Kind::Ipc)
                .unwrap_err()
                .contains("No such file")
        );
    }
}
