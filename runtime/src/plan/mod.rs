//! From a configuration to what is done about it: by the machine, by the host, by the guest; and what is refused.
//!
//! [`decide`] is a pure function. The specification says that a runtime which cannot apply a property must fail
//! (runtime.md, Create), so every property has a line in the [`Ledger`], and one that is refused there is an error that
//! names it. `create` does what is decided, `explain` prints it.

mod annotations;
mod apparmor;
mod devices;
mod ledger;
mod memory_policy;
mod mounts;
mod namespaces;
mod pins;
mod process;
mod properties;
mod provided;
mod resources;
pub(crate) mod seccomp;
mod selinux;
mod size;
#[cfg(test)]
mod tests;
mod update;

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxIntelRdt, LinuxNamespaceType, Process, Spec};
use protocol::{Device, IdMaps, Overlay, Seccomp};
use serde_json::{Value, json};
use specification::{HookKind, MountOption};

pub(crate) use annotations::ANNOTATIONS;
pub(crate) use apparmor::Policies;
pub(crate) use ledger::{Entry, Ledger, Refused};
pub(crate) use mounts::mount_options;
pub(crate) use namespaces::{Member, Owner};
pub(crate) use pins::{Holder, Pin};
pub(crate) use selinux::Policy;
pub(crate) use size::ROOM_MAX;
pub(crate) use update::{MachineSize, update};

use crate::host::cgroup::Limit;
use crate::host::cgroup::systemd::{self, Scope};
use crate::host::network::NetDevice;
use crate::machine::{BlockDevice, Isolation, Share, Target};
use crate::state::{Labels, Network};
use crate::sys::MemoryPolicy;

/// Name of the root filesystem's share.
const ROOTFS: &str = "rootfs";

/// The property that limits are in.
const RESOURCES: &str = "linux.resources";

/// What a path of the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Directory,
    File,
    Socket,
    Fifo,
    /// A character device, with its number.
    Character(Device),
    /// A block device.
    Block,
    /// A file or directory of procfs or nsfs, which leads to processes and what they have.
    Processes,
    /// A file or directory of a FUSE file system that lets in nobody but the user who has mounted it.
    Closed,
}

/// Why [`FileKind::Closed`] is refused.
const CLOSED: &str =
    "of a FUSE file system that lets in nobody but its user: mount it with allow_other";

/// What a plan depends on beside the configuration.
pub(crate) struct Facts<'a> {
    /// The bundle's absolute path.
    pub(crate) bundle: &'a Path,
    /// Memory of this host in bytes.
    pub(crate) memory: u64,
    /// Memory that a machine may be given although it may never use it, in bytes.
    pub(crate) room: u64,
    /// What a path of this host is, or why that is not known.
    pub(crate) kind: &'a dyn Fn(&Path) -> Result<FileKind, String>,
    /// A path without symbolic links, as far as there is something: of this host, or of a container by its root directory.
    pub(crate) real: &'a dyn Fn(Option<&Path>, &Path) -> PathBuf,
    /// Whether systemd is to make the cgroup.
    pub(crate) systemd: bool,
    /// Whether resctrl is mounted.
    pub(crate) resctrl: bool,
    /// The policies of this host's AppArmor, if that is active.
    pub(crate) policies: Option<&'a Policies<'a>>,
    /// The labels that this host's SELinux knows, if that is enabled.
    pub(crate) selinux: Option<&'a Policy<'a>>,
    /// The labels of the container with this id; none if there is none.
    pub(crate) labels: &'a dyn Fn(&str) -> Option<Labels>,
    /// Whose namespace of this type a path leads to, or why that is not known.
    pub(crate) namespace: &'a dyn Fn(&Path, LinuxNamespaceType) -> Result<Owner, String>,
    /// The annotations of the container with this id; none if there is none.
    pub(crate) annotations: &'a dyn Fn(&str) -> BTreeMap<String, String>,
}

/// What is to be done.
pub(crate) struct Plan {
    /// Guest RAM in bytes, a multiple of 2 MiB.
    pub(crate) memory: u64,
    /// Number of vCPUs.
    pub(crate) vcpus: u8,
    /// What the machine shares with the rest of the host.
    pub(crate) isolation: Isolation,
    /// Files that the guest sees: the root filesystem first, then the sources of the bind mounts.
    pub(crate) shares: Vec<Share>,
    /// The mounts of the container, where the caller looks for them in the mount namespace of its pid.
    pub(crate) view: Option<Vec<Target>>,
    /// Block devices that the guest has.
    pub(crate) disks: Vec<BlockDevice>,
    /// What the guest must know beside the configuration.
    pub(crate) overlay: Overlay,
    /// Whether AppArmor is active in the guest.
    pub(crate) apparmor: bool,
    /// The compiled AppArmor policy of the init's profile; empty if it has none.
    pub(crate) policy: Vec<u8>,
    /// What SELinux is to know.
    pub(crate) labels: Labels,
    /// The machine that it becomes a member of, if that is not one of its own.
    pub(crate) member: Option<Member>,
    /// Network namespace of the machine process.
    pub(crate) network: Network,
    /// Network interfaces that move there.
    pub(crate) net_devices: Vec<NetDevice>,
    /// `oom_score_adj` of the machine process.
    pub(crate) oom_score_adj: Option<i32>,
    /// The machine's share of caches and memory bandwidth.
    pub(crate) intel_rdt: Option<LinuxIntelRdt>,
    /// Where the machine takes its memory from.
    pub(crate) memory_policy: Option<MemoryPolicy>,
    /// `linux.cgroupsPath`.
    pub(crate) cgroups_path: Option<PathBuf>,
    /// Whether the container has a pid namespace of its own.
    pub(crate) own_pids: bool,
    /// Limits of the machine process's cgroup.
    pub(crate) limits: Vec<Limit>,
    /// What the caller should know.
    pub(crate) warnings: Vec<String>,
}

impl Plan {
    /// The root filesystem's absolute path.
    pub(crate) fn rootfs(&self) -> &Path {
        let rootfs = self.shares.first();
        rootfs.map_or_else(|| Path::new(""), |share| &share.source)
    }
}

/// What becomes of a configuration.
pub(crate) struct Decision {
    /// What becomes of each property.
    pub(crate) ledger: Ledger,
    /// What is to be done, unless the ledger has refusals: these.
    pub(crate) plan: Result<Plan, Refused>,
}

/// Decides what is done about a configuration. `value` is all of it, unknown properties included.
pub(crate) fn decide(spec: &Spec, value: &Value, facts: &Facts<'_>) -> Decision {
    let mut ledger = Ledger::of(value);
    let mut linux = spec.linux().clone().unwrap_or_default_empty();
    let rootfs = rootfs(spec, facts, &mut ledger);
    check_cgroup(spec, &linux, facts, &mut ledger);
    check_hooks(spec, &mut ledger);
    check_linux(&linux, value, facts, &mut ledger);
    let no_annotations = Default::default();
    let annotations = spec.annotations().as_ref().unwrap_or(&no_annotations);
    let said = annotations::said(annotations, &mut ledger);
    namespaces::check(spec, &linux, &mut ledger);
    let (member, id_maps) = member(&mut linux, annotations, facts, &mut ledger);
    if !said.guests_namespaces {
        namespaces::check_host(&linux, &mut ledger);
    }
    let resources = linux.resources().as_ref();
    if let Some(resources) = resources {
        resources::check(resources, &mut ledger);
    }
    let asked = size::SizeRequest::of(annotations, value, &mut ledger);
    let size = size::size(resources, &asked, facts, &mut ledger);
    let mut policy = Vec::new();
    match spec.process() {
        Some(process) => {
            process::check(process, size.vcpus, &mut ledger);
            policy = apparmor::policy(process, None, facts.policies, &mut ledger);
        }
        None => ledger.refuse("process", "must not be empty"),
    }
    let labels = selinux::labels(spec, member.as_ref(), facts, &mut ledger);
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let mounts = mounts::mounts(mounts, &rootfs, &linux, facts, &mut ledger);
    let seccomp = compile_seccomp(&linux, &mut ledger);
    let memory_policy = memory_policy::memory_policy(linux.memory_policy().as_ref(), &mut ledger);
    let guests_devices = devices::everything_is_allowed(spec);
    let disks = match guests_devices {
        true => devices::leave_out(&linux, &mut ledger),
        false => devices::disks(&linux, &mut ledger),
    };
    let net_devices = namespaces::net_devices(&linux, &mut ledger);
    ledger.note_unknown(value, spec);
    let plan = match ledger.refused() {
        Some(refused) => Err(refused),
        None => Ok(Plan {
            memory_policy,
            intel_rdt: linux.intel_rdt().clone(),
            memory: size.memory,
            vcpus: size.vcpus,
            isolation: said.isolation,
            view: annotations::enters(annotations).then(|| mounts::targets(spec, &mounts)),
            shares: std::iter::once(rootfs).chain(mounts.shares).collect(),
            overlay: Overlay {
                rootfs: ROOTFS.into(),
                binds: mounts.binds,
                devices: mounts.devices,
                inner: mounts.inner,
                mounts: Vec::new(),
                disks: disks.iter().map(BlockDevice::for_the_guest).collect(),
                guests_devices,
                seccomp,
                // What the verb is asked for, not the configuration.
                env: Vec::new(),
                limits: Vec::new(),
                parameters: Vec::new(),
                id_maps,
            },
            // A process that is executed later may have a profile where the init has none.
            apparmor: facts.policies.is_some(),
            policy,
            labels,
            disks,
            network: namespaces::network(&linux, member.as_ref()),
            net_devices,
            member,
            oom_score_adj: spec.process().as_ref().and_then(Process::oom_score_adj),
            cgroups_path: linux.cgroups_path().clone(),
            own_pids: namespaces::own_pids(&linux),
            limits: size.limits,
            warnings: ledger.warnings(),
        }),
    };
    Decision { ledger, plan }
}

/// The machine of another container that this one becomes a member of, if it does, and the maps of the user namespace that
/// it names, if that is pinned: the configuration has them from here on.
fn member(
    linux: &mut Linux,
    annotations: &HashMap<String, String>,
    facts: &Facts<'_>,
    ledger: &mut Ledger,
) -> (Option<Member>, Option<IdMaps>) {
    let (member, id_maps) = namespaces::member(linux, facts, ledger);
    if let Some(maps) = &id_maps {
        namespaces::set_maps(linux, maps);
    }
    if let Some(member) = &member {
        namespaces::check_member(linux, ledger);
        // A machine that is to be made is made as this container says.
        if member.machine.is_some() {
            let of_machine = (facts.annotations)(&member.sandbox);
            annotations::check_member(annotations, &of_machine, &member.sandbox, ledger);
        }
    }
    (member, id_maps)
}

/// The limits of the machine that slow it down. They hold from the container's first instruction on, not while the
/// machine boots.
pub(crate) fn limits_of_speed(spec: &Spec) -> Vec<Limit> {
    let linux = spec.linux().as_ref();
    // What is wrong with them has been refused.
    let (_, mut limits) = size::host_limits(
        linux.and_then(|linux| linux.resources().as_ref()),
        &mut Ledger::default(),
    );
    limits.retain(Limit::is_of_speed);
    limits
}

/// What a container and its machine have for one more process.
pub(crate) struct Room<'a> {
    /// Number of vCPUs.
    pub(crate) vcpus: u8,
    /// The AppArmor profile of the init.
    pub(crate) profile: Option<&'a str>,
    /// The policies of this host's AppArmor, if that is active.
    pub(crate) policies: Option<&'a Policies<'a>>,
    /// The SELinux label that the container has.
    pub(crate) label: Option<&'a str>,
    /// The labels that this host's SELinux knows, if that is enabled.
    pub(crate) selinux: Option<&'a Policy<'a>>,
}

/// What a process of an exec needs.
pub(crate) struct Needs {
    /// The compiled AppArmor policy that the guest must be given for it, which may be empty.
    pub(crate) policy: Vec<u8>,
    /// The SELinux label of what stands for it.
    pub(crate) label: Option<String>,
    /// What the caller should know.
    pub(crate) warnings: Vec<String>,
}

/// Decides whether the process of an exec, given as the `process` of a configuration, can be had.
pub(crate) fn check_exec(
    config: &Value,
    process: &Process,
    room: &Room<'_>,
) -> Result<Needs, Refused> {
    let mut ledger = Ledger::of(config);
    process::check(process, room.vcpus, &mut ledger);
    let policy = apparmor::policy(process, room.profile, room.policies, &mut ledger);
    let label = selinux::of_exec(process, room.label, room.selinux, &mut ledger);
    ledger.note_unknown(config, &json!({ "process": process }));
    match ledger.refused() {
        Some(refused) => Err(refused),
        None => Ok(Needs {
            policy,
            label,
            warnings: ledger.warnings(),
        }),
    }
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

/// The root filesystem, which has to be a directory.
fn rootfs(spec: &Spec, facts: &Facts<'_>, ledger: &mut Ledger) -> Share {
    let root = spec.root().as_ref();
    let path = root
        .map(|root| root.path().as_path())
        .unwrap_or_else(|| Path::new(""));
    let source = facts.bundle.join(path);
    if root.is_none() {
        ledger.refuse("root", "must be specified");
    } else if path.as_os_str().is_empty() {
        ledger.refuse("root.path", "must not be empty");
    } else {
        match (facts.kind)(&source) {
            Ok(FileKind::Directory) => {}
            Ok(FileKind::Processes) => ledger.refuse(
                "root.path",
                format!("invalid rootfs: {} is of procfs", source.display()),
            ),
            Ok(FileKind::Closed) => ledger.refuse(
                "root.path",
                format!("invalid rootfs: {} is {CLOSED}", source.display()),
            ),
            Ok(_) => ledger.refuse(
                "root.path",
                format!("invalid rootfs: {} is not a directory", source.display()),
            ),
            Err(problem) => ledger.refuse("root.path", format!("invalid rootfs: {problem}")),
        }
    }
    Share {
        name: ROOTFS.into(),
        source,
        recursive: true,
        sealed: root.is_some_and(|root| root.readonly() == Some(true)),
        ..Share::default()
    }
}

/// Whether there can be a cgroup of this name, or a scope of systemd for it.
fn check_cgroup(spec: &Spec, linux: &Linux, facts: &Facts<'_>, ledger: &mut Ledger) {
    let path = linux.cgroups_path().as_deref();
    if facts.systemd {
        // The container's id has been found to be fit for a name.
        let annotations = spec.annotations().iter().flatten();
        match Scope::parse(path, "id", annotations) {
            Ok(_) => {}
            Err(e @ systemd::Error::Annotation(_)) => {
                ledger.refuse("annotations", e.to_string());
            }
            Err(e) => ledger.refuse("linux.cgroupsPath", e.to_string()),
        }
    } else if path.is_some_and(|path| path.components().any(|c| c == Component::ParentDir)) {
        ledger.refuse("linux.cgroupsPath", "contains ..");
    }
}

/// The container's cgroup in the guest, as the path below the root of the hierarchy there. What stands for a scope of
/// systemd is one directory in another, whether or not systemd makes the cgroup on the host.
pub(crate) fn guest_cgroup(cgroups_path: Option<&Path>, id: &str) -> String {
    let path = cgroups_path.and_then(Path::to_str).unwrap_or_default();
    match path.split(':').collect::<Vec<_>>()[..] {
        [""] => id.to_owned(),
        [slice, prefix, name] if !path.contains('/') => format!("{slice}/{prefix}-{name}.scope"),
        _ => path.to_owned(),
    }
}

/// What the specification demands of hooks (config.md, POSIX-platform Hooks).
fn check_hooks(spec: &Spec, ledger: &mut Ledger) {
    for kind in HookKind::ALL {
        for (index, hook) in kind.of(spec).iter().enumerate() {
            let property = |name| format!("hooks.{kind}[{index}].{name}");
            if !hook.path().is_absolute() {
                ledger.refuse(property("path"), "must be an absolute path");
            }
            if hook.timeout().is_some_and(|timeout| timeout <= 0) {
                ledger.refuse(property("timeout"), "must be greater than zero");
            }
        }
    }
}

/// The filter, unless it is refused or there is none.
fn compile_seccomp(linux: &Linux, ledger: &mut Ledger) -> Option<Seccomp> {
    let profile = linux.seccomp().as_ref()?;
    let unsupported = seccomp::unsupported(profile);
    if unsupported.is_empty() {
        match seccomp::compile(profile) {
            Ok(filter) => return Some(filter),
            Err(seccomp::Error::Invalid { property, problem }) => ledger.refuse(property, problem),
            Err(e) => ledger.refuse("linux.seccomp", e.to_string()),
        }
    }
    for (property, problem) in unsupported {
        ledger.refuse(property, problem);
    }
    None
}

/// The rules of the specification and of runc.
fn check_rdt(rdt: &LinuxIntelRdt, value: &Value, facts: &Facts<'_>, ledger: &mut Ledger) {
    if !facts.resctrl {
        let problem = "needs resctrl, which is not mounted on this host";
        ledger.refuse("linux.intelRdt", problem);
    }
    let mut refuse = |name: &str, problem: &str| {
        ledger.refuse(format!("linux.intelRdt.{name}"), problem);
    };
    let class = rdt.clos_id().as_deref().unwrap_or_default();
    if matches!(class, "." | "..") || class.len() > 1 && class.contains('/') || class.contains('\0')
    {
        refuse("closID", "is not the name of a class of service");
    }
    let bandwidth = rdt.mem_bw_schema().as_deref().unwrap_or_default();
    if !bandwidth.is_empty() && !bandwidth.starts_with("MB:") {
        refuse("memBwSchema", "does not begin with MB:");
    }
    let schemas = [rdt.l3_cache_schema(), rdt.mem_bw_schema()];
    let lines = schemas
        .into_iter()
        .flatten()
        .chain(rdt.schemata().iter().flatten());
    if lines.into_iter().any(|line| line.contains('\n')) {
        refuse("schemata", "contains a newline");
    }
    // oci-spec does not know them by these names.
    for name in ["enableCMT", "enableMBM"] {
        if value["linux"]["intelRdt"][name] == true {
            refuse(
                name,
                "is what enableMonitoring is called since version 1.3 of the specification",
            );
        }
    }
}

/// What has no place of its own.
fn check_linux(linux: &Linux, value: &Value, facts: &Facts<'_>, ledger: &mut Ledger) {
    if let Some(personality) = linux.personality()
        && personality
            .flags()
            .as_ref()
            .is_some_and(|flags| !flags.is_empty())
    {
        // The specification has none yet either (config-linux.md, Personality).
        ledger.refuse("linux.personality.flags", "there are none");
    }
    if let Some(rdt) = linux.intel_rdt() {
        check_rdt(rdt, value, facts, ledger);
    }
    if let Some(propagation) = linux.rootfs_propagation().as_deref()
        && !propagation.is_empty()
        && !matches!(
            MountOption::of(propagation),
            Some(MountOption::Propagation(..))
        )
    {
        let problem = format!("{propagation:?} is not a type of propagation");
        ledger.refuse("linux.rootfsPropagation", problem);
    }
}
