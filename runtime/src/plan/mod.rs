//! From a configuration to what is done about it: by the machine, by the host, by the guest; and what is refused.
//!
//! [`plan`] is a pure function. The specification says that a runtime which cannot apply a property must fail (runtime.md, Create), so
//! every property has an entry in the [`ledger`], and one that is refused there is an error that names it.

mod ledger;
mod mounts;
mod size;
#[cfg(test)]
mod tests;
mod update;

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDeviceType, LinuxNamespaceType, Process, Spec};
use protocol::Overlay;
use serde_json::Value;

pub(crate) use update::{MachineSize, update};

use crate::cgroup::Limit;
use crate::machine::{Network, Share};
use crate::{hooks, seccomp};

/// Name of the root filesystem's share.
const ROOTFS: &str = "rootfs";

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// Properties that are not applied.
    #[error("{} {} not supported yet", .0.join(", "), if .0.len() == 1 { "is" } else { "are" })]
    Unsupported(Vec<String>),
    /// A value that the specification or the machine does not allow.
    #[error("{property}: {problem}")]
    Invalid { property: String, problem: String },
    /// A seccomp profile that cannot be compiled.
    #[error(transparent)]
    Seccomp(#[from] seccomp::Error),
}

/// A value that is not allowed.
fn invalid(property: impl Into<String>, problem: impl Into<String>) -> Refused {
    Refused::Invalid {
        property: property.into(),
        problem: problem.into(),
    }
}

/// What a path of the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Directory,
    File,
    /// A socket, FIFO or device: its other end is on this host and not in the guest.
    Special,
}

impl FileKind {
    /// Follows symbolic links.
    pub(crate) fn of(path: &Path) -> Result<FileKind, String> {
        let kind = fs::metadata(path)
            .map_err(|e| format!("stat {}: {e}", path.display()))?
            .file_type();
        Ok(if kind.is_dir() {
            FileKind::Directory
        } else if kind.is_file() {
            FileKind::File
        } else {
            FileKind::Special
        })
    }
}

/// What a plan depends on beside the configuration.
pub(crate) struct Facts<'a> {
    /// The bundle's absolute path.
    pub(crate) bundle: &'a Path,
    /// Memory of this host in bytes.
    pub(crate) memory: u64,
    /// What a path of this host is, or why that is not known.
    pub(crate) kind: &'a dyn Fn(&Path) -> Result<FileKind, String>,
}

/// What is to be done.
pub(crate) struct Plan {
    /// Guest RAM in bytes, a multiple of 2 MiB.
    pub(crate) memory: u64,
    /// Number of vCPUs.
    pub(crate) vcpus: u8,
    /// Files that the guest sees: the root filesystem first, then the sources of the bind mounts.
    pub(crate) shares: Vec<Share>,
    /// What the guest must know beside the configuration.
    pub(crate) overlay: Overlay,
    /// Network namespace of the machine process.
    pub(crate) network: Network,
    /// `oom_score_adj` of the machine process.
    pub(crate) oom_score_adj: Option<i32>,
    /// `linux.cgroupsPath`.
    pub(crate) cgroups_path: Option<PathBuf>,
    /// Limits of the machine process's cgroup.
    pub(crate) limits: Vec<Limit>,
    /// What the caller should know.
    pub(crate) warnings: Vec<String>,
}

/// The root filesystem's absolute path.
pub(crate) fn rootfs(spec: &Spec, bundle: &Path) -> Result<PathBuf, Refused> {
    let root = spec
        .root()
        .as_ref()
        .ok_or_else(|| invalid("root", "must be specified"))?;
    if root.path().as_os_str().is_empty() {
        return Err(invalid("root.path", "must not be empty"));
    }
    Ok(bundle.join(root.path()))
}

/// Decides what is done about a configuration. `value` is all of it, unknown properties included.
pub(crate) fn plan(spec: &Spec, value: &Value, facts: &Facts<'_>) -> Result<Plan, Refused> {
    let audit = ledger::audit(value);
    let mut refused = audit.refused;
    let linux = spec.linux().clone().unwrap_or_default_empty();
    refused.extend(refused_by_value(&linux));
    let mounts = mounts::mounts(
        spec.mounts().as_deref().unwrap_or_default(),
        facts,
        &mut refused,
    )?;
    if !refused.is_empty() {
        return Err(Refused::Unsupported(refused));
    }
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| invalid("process", "must not be empty"))?;
    check_process(process)?;
    check_hostname(spec, &linux)?;
    check_hooks(spec)?;

    let rootfs = Share {
        name: ROOTFS.into(),
        source: rootfs(spec, facts.bundle)?,
        recursive: true,
        readonly: spec
            .root()
            .as_ref()
            .is_some_and(|root| root.readonly() == Some(true)),
    };
    let size = size::size(linux.resources().as_ref(), facts)?;
    let overlay = Overlay {
        rootfs: ROOTFS.into(),
        binds: mounts.binds,
        seccomp: linux.seccomp().as_ref().map(seccomp::compile).transpose()?,
    };
    Ok(Plan {
        memory: size.memory,
        vcpus: size.vcpus,
        shares: std::iter::once(rootfs).chain(mounts.shares).collect(),
        overlay,
        network: network(&linux),
        oom_score_adj: process.oom_score_adj(),
        cgroups_path: linux.cgroups_path().clone(),
        limits: size.limits,
        warnings: ignored(&audit.unknown),
    })
}

/// Decides whether the process of an exec, given as the `process` of a configuration, can be had; what the caller should know.
pub(crate) fn check_exec(config: &Value) -> Result<Vec<String>, Refused> {
    let audit = ledger::audit(config);
    if audit.refused.is_empty() {
        Ok(ignored(&audit.unknown))
    } else {
        Err(Refused::Unsupported(audit.refused))
    }
}

/// The warnings about properties that the specification does not have.
fn ignored(unknown: &[String]) -> Vec<String> {
    let warning = |name| format!("ignoring unknown property {name}");
    unknown.iter().map(warning).collect()
}

/// `Linux::default()` is a configuration of oci-spec's own making; nothing said must mean nothing asked for.
trait OrEmpty {
    fn unwrap_or_default_empty(self) -> Linux;
}

impl OrEmpty for Option<Linux> {
    fn unwrap_or_default_empty(self) -> Linux {
        self.unwrap_or_else(|| {
            let mut linux = Linux::default();
            linux
                .set_resources(None)
                .set_namespaces(None)
                .set_masked_paths(None)
                .set_readonly_paths(None);
            linux
        })
    }
}

/// Properties that are applied or refused depending on their value.
fn refused_by_value(linux: &Linux) -> Vec<String> {
    let mut refused = Vec::new();
    for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
        let joins = namespace
            .path()
            .as_ref()
            .is_some_and(|path| !path.as_os_str().is_empty());
        if joins && namespace.typ() != LinuxNamespaceType::Network {
            // Namespaces of this host's kernel cannot be joined by a process of another kernel.
            refused.push(format!(
                "linux.namespaces[{index}].path (of type {})",
                namespace.typ()
            ));
        }
    }
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        if matches!(device.typ(), LinuxDeviceType::B | LinuxDeviceType::A) {
            refused.push(format!("linux.devices[{index}] (block device)"));
        }
    }
    refused.extend(linux.seccomp().iter().flat_map(seccomp::unsupported));
    let unified = linux
        .resources()
        .as_ref()
        .and_then(|resources| resources.unified().as_ref());
    let mut keys: Vec<_> = unified
        .into_iter()
        .flat_map(|unified| unified.keys())
        .collect();
    keys.sort();
    for key in keys {
        let controller = key.split_once('.').map_or("", |(controller, _)| controller);
        if !matches!(controller, "memory" | "cpu" | "pids" | "hugetlb") {
            refused.push(format!("linux.resources.unified[{key}]"));
        }
    }
    refused
}

/// What runc demands of a process.
fn check_process(process: &Process) -> Result<(), Refused> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(invalid("process.args", "must not be empty"));
    }
    if !process.cwd().is_absolute() {
        return Err(invalid("process.cwd", "must be an absolute path"));
    }
    Ok(())
}

/// What the specification demands of hooks (config.md, POSIX-platform Hooks).
fn check_hooks(spec: &Spec) -> Result<(), Refused> {
    for kind in hooks::KINDS {
        for (index, hook) in kind.of(spec).iter().enumerate() {
            let property = |name| format!("hooks.{kind}[{index}].{name}");
            if !hook.path().is_absolute() {
                return Err(invalid(property("path"), "must be an absolute path"));
            }
            if hook.timeout().is_some_and(|timeout| timeout <= 0) {
                return Err(invalid(property("timeout"), "must be greater than zero"));
            }
        }
    }
    Ok(())
}

/// A name belongs to a UTS namespace.
fn check_hostname(spec: &Spec, linux: &Linux) -> Result<(), Refused> {
    let is_uts =
        |namespace: &oci_spec::runtime::LinuxNamespace| namespace.typ() == LinuxNamespaceType::Uts;
    if linux.namespaces().iter().flatten().any(is_uts) {
        return Ok(());
    }
    for (property, name) in [
        ("hostname", spec.hostname()),
        ("domainname", spec.domainname()),
    ] {
        if name.as_ref().is_some_and(|name| !name.is_empty()) {
            return Err(invalid(
                property,
                "cannot be set without a private UTS namespace",
            ));
        }
    }
    Ok(())
}

/// The machine process never lives in the host's own network namespace. Without a network namespace in the configuration the container
/// shares that of the guest.
fn network(linux: &Linux) -> Network {
    let namespaces = linux.namespaces().iter().flatten();
    let mut network = namespaces.filter(|ns| ns.typ() == LinuxNamespaceType::Network);
    match network.next().and_then(|ns| ns.path().clone()) {
        Some(path) if !path.as_os_str().is_empty() => Network::Path(path),
        _ => Network::New,
    }
}
