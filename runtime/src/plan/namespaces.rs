//! Namespaces, and what belongs to one: names, id mappings, clock offsets, kernel parameters.

use std::path::Path;

use oci_spec::runtime::{
    Linux, LinuxDeviceType, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace,
    LinuxNamespaceType as Kind, LinuxTimeOffset, Spec,
};
use protocol::{ContainerId, IdMaps, Joined};
use specification::{Place, namespace, sysctl};

use super::Facts;
use super::annotations::HOST_NAMESPACES;
use super::ledger::Ledger;
use super::pins::{self, Pin};
use crate::host::network::{self, NetDevice};
use crate::machine::{IdRange, parse_ids};
use crate::state::{Identity, Network, Pinned, Seat};

/// Maximum number of lines of an id map (user_namespaces(7)).
const MAPPINGS_MAX: usize = 340;

const NANOSECONDS: u32 = 1_000_000_000;

/// Whose namespace a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A container, which has this place.
    Container(Seat),
    /// Whoever has pinned it: it is not this host's own, and no process is named.
    Pinned(Pin),
    /// This host, or something that runs on it.
    Host,
}

/// What makes a container a member of a machine that is not its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// The id of the container that the machine was made for, or the name of the pod.
    pub(crate) sandbox: String,
    /// The machine process. `None` while a pod has none.
    pub(crate) machine: Option<Identity>,
    /// The namespaces that it joins.
    pub(crate) joins: Vec<Joined>,
    /// What is pinned for its pod, if the machine is a pod's.
    pub(crate) pinned: Option<Pinned>,
}

impl Member {
    /// Whether it joins a namespace of a type.
    fn joins(&self, kind: Kind) -> bool {
        let flag = namespace::flag(kind);
        let mut joins = self.joins.iter();
        joins.any(|joined| joined.namespaces & flag != 0)
    }

    /// It joins one more namespace, of the container of this number.
    pub(super) fn join(&mut self, container: ContainerId, kind: Kind) {
        let namespaces = namespace::flag(kind);
        let mut known = self.joins.iter_mut();
        match known.find(|joined| joined.container == container) {
            Some(joined) => joined.namespaces |= namespaces,
            None => self.joins.push(Joined {
                container,
                namespaces,
            }),
        }
    }
}

/// A namespace that a configuration names by a path.
pub(super) struct Named<'a> {
    pub(super) property: String,
    pub(super) path: &'a Path,
    pub(super) kind: Kind,
    pub(super) owner: Result<Owner, String>,
}

/// The machine that the container becomes a member of, because a namespace of its configuration is that of a container
/// in there or pinned for a pod, and the maps of a user namespace that is pinned; and refuses namespaces that it cannot
/// have.
pub(super) fn member(
    linux: &Linux,
    facts: &Facts<'_>,
    ledger: &mut Ledger,
) -> (Option<Member>, Option<IdMaps>) {
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let named = namespaces.iter().enumerate();
    let named = named.filter_map(|(index, namespace)| {
        let (path, kind) = (path(namespace)?, namespace.typ());
        Some(Named {
            property: format!("linux.namespaces[{index}].path"),
            path,
            kind,
            owner: (facts.namespace)(path, kind),
        })
    });
    let named: Vec<_> = named.collect();
    let mut found = match pins::member(&named) {
        Ok(found) => found,
        Err((property, problem)) => {
            ledger.refuse(property, problem);
            return (None, None);
        }
    };
    let mut id_maps = None;
    for each in named {
        if let Some(problem) = problem(&each, found.as_ref()) {
            ledger.refuse(each.property, problem);
            continue;
        }
        match each.owner {
            Ok(Owner::Container(seat)) => {
                ledger.place(&each.property, Place::Guest);
                let member = found.get_or_insert_with(|| Member {
                    sandbox: seat.sandbox,
                    machine: Some(seat.machine),
                    joins: Vec::new(),
                    pinned: None,
                });
                member.join(seat.number, each.kind);
            }
            Ok(Owner::Pinned(pin)) => {
                if found.as_ref().is_some_and(|member| member.joins(each.kind)) {
                    ledger.place(&each.property, Place::Both);
                } else if each.kind == Kind::User {
                    ledger.place(&each.property, Place::Guest);
                }
                id_maps = id_maps.or(pin.maps);
            }
            _ => {}
        }
    }
    (found, id_maps)
}

/// Gives the configuration the maps of the user namespace that it names in place of its own, as the guest does.
pub(super) fn set_maps(linux: &mut Linux, maps: &IdMaps) {
    let mapping = |range: IdRange| {
        let mapping = LinuxIdMappingBuilder::default().container_id(range.file);
        mapping.host_id(range.seen).size(range.count).build().ok()
    };
    let parse = |text: &str| Some(parse_ids(text)?.into_iter().filter_map(mapping).collect());
    linux.set_uid_mappings(parse(&maps.uids));
    linux.set_gid_mappings(parse(&maps.gids));
}

/// Why a member of a machine, or of none so far, cannot have a namespace.
fn problem(named: &Named<'_>, found: Option<&Member>) -> Option<String> {
    let (shown, kind) = (named.path.display(), named.kind);
    match &named.owner {
        Ok(Owner::Container(seat)) if kind == Kind::Mount => Some(format!(
            "{shown} belongs to container {}, and each container of a machine has mounts of its own",
            seat.sandbox
        )),
        Ok(Owner::Container(seat)) => match found {
            None if seat.is_of_pod() => Some(format!(
                "{shown} is in the machine of a pod: name the ipc and uts namespace that are pinned for it, too"
            )),
            Some(other) if other.machine != Some(seat.machine) => Some(format!(
                "{shown} is in the machine of container {}, and another one in that of {}: a container lives in one",
                seat.sandbox, other.sandbox
            )),
            _ => None,
        },
        Ok(Owner::Pinned(_)) if found.is_some_and(|member| member.joins(kind)) => None,
        // The guest has one with the same maps.
        Ok(Owner::Pinned(_)) if kind == Kind::User => None,
        // It is joined, whosever it is.
        Ok(Owner::Host | Owner::Pinned(_)) if kind == Kind::Network => None,
        Ok(Owner::Pinned(_)) => Some(format!(
            "{shown} is a namespace of this host, and the container's processes run on another kernel: pinned ones are \
             served where both the ipc and the uts namespace of a pod are"
        )),
        Ok(Owner::Host) => {
            // CRI-O's pins, of a container whose processes another one is to see.
            let instead = if kind == Kind::Pid && !named.path.starts_with("/proc") {
                ": name a container's by its process, /proc/PID/ns/pid"
            } else {
                ""
            };
            Some(format!(
                "{shown} belongs to this host's kernel, and the container's processes run on another{instead}"
            ))
        }
        Err(problem) => Some(problem.clone()),
    }
}

/// Refuses what belongs to the machine as a whole, and so to the container that it was made for.
pub(super) fn check_member(linux: &Linux, ledger: &mut Ledger) {
    let why = "belongs to the machine, which was made for another container";
    let devices = linux.devices().as_deref().unwrap_or_default();
    for (index, device) in devices.iter().enumerate() {
        if device.typ() == LinuxDeviceType::B {
            ledger.refuse(
                format!("linux.devices[{index}]"),
                format!("a block device {why}"),
            );
        }
    }
    for (property, is_there) in [
        (
            "linux.netDevices",
            linux
                .net_devices()
                .as_ref()
                .is_some_and(|all| !all.is_empty()),
        ),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
    ] {
        if is_there {
            ledger.refuse(property, why);
        }
    }
    for name in linux.sysctl().iter().flatten().map(|(name, _)| name) {
        let path = sysctl::path(name);
        if path.is_some_and(|path| sysctl::namespace(&path).is_none()) {
            ledger.refuse(format!("linux.sysctl[{name}]"), why);
        }
    }
}

/// Refuses what cannot be, or belongs to a namespace that is not there.
pub(super) fn check(spec: &Spec, linux: &Linux, ledger: &mut Ledger) {
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    for (index, namespace) in namespaces.iter().enumerate() {
        let (kind, property) = (namespace.typ(), format!("linux.namespaces[{index}]"));
        if namespaces[..index].iter().any(|other| other.typ() == kind) {
            let problem = format!("another namespace has the type {}", namespace::name(kind));
            ledger.refuse(format!("{property}.type"), problem);
        }
        if kind == Kind::Network {
            ledger.place(&format!("{property}.type"), Place::Both);
        }
    }
    let has = |kind| namespaces.iter().any(|namespace| namespace.typ() == kind);
    names(spec, has(Kind::Uts), ledger);
    for (property, paths) in [
        ("linux.maskedPaths", linux.masked_paths()),
        ("linux.readonlyPaths", linux.readonly_paths()),
    ] {
        if paths.as_ref().is_some_and(|paths| !paths.is_empty()) && !has(Kind::Mount) {
            ledger.refuse(property, "needs a private mount namespace");
        }
    }
    let user = namespaces
        .iter()
        .find(|namespace| namespace.typ() == Kind::User);
    mappings(linux, user, ledger);
    offsets(linux, has(Kind::Time), ledger);
    for (name, value) in linux.sysctl().iter().flatten() {
        if let Err(problem) = sysctl(name, value, &has) {
            ledger.refuse(format!("linux.sysctl[{name}]"), problem);
        }
    }
}

/// Refuses what is the host's because no namespace is named: its network and its processes.
pub(super) fn check_host(linux: &Linux, ledger: &mut Ledger) {
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    for (kind, whose, instead) in [
        (
            Kind::Network,
            "network",
            "use a network of its own, and publish ports",
        ),
        (Kind::Pid, "processes", "use a pid namespace of its own"),
    ] {
        if !namespaces.iter().any(|namespace| namespace.typ() == kind) {
            let problem = format!(
                "none has the type {}, so the container would have this host's {whose}, which a machine cannot have: \
                 {instead} (or have the guest's by annotations[{HOST_NAMESPACES}] = guest)",
                namespace::name(kind)
            );
            ledger.refuse("linux.namespaces", problem);
        }
    }
}

/// Whether the container has a pid namespace of its own.
pub(super) fn own_pids(linux: &Linux) -> bool {
    let mut namespaces = linux.namespaces().iter().flatten();
    namespaces.any(|namespace| namespace.typ() == Kind::Pid && path(namespace).is_none())
}

/// The machine process never lives in the host's own network namespace. Without a network namespace in the
/// configuration the container shares that of the guest, where there is nothing but a loopback interface
/// ([`HOST_NAMESPACES`]).
///
/// A member that joins the network of another container of the machine has none of its own on this host.
pub(super) fn network(linux: &Linux, member: Option<&Member>) -> Network {
    if member.is_some_and(|member| member.joins(Kind::Network)) {
        return Network::Guests;
    }
    let mut namespaces = linux.namespaces().iter().flatten();
    let network = namespaces.find(|namespace| namespace.typ() == Kind::Network);
    match network.map(path) {
        Some(Some(path)) => Network::Path(path.to_owned()),
        Some(None) => Network::New,
        None => Network::Guests,
    }
}

/// The interfaces that move into the container's network namespace, in the order of their names (config-linux.md,
/// Network Devices).
pub(super) fn net_devices(linux: &Linux, ledger: &mut Ledger) -> Vec<NetDevice> {
    let given = linux.net_devices().iter().flatten();
    let mut devices: Vec<NetDevice> = given
        .map(|(name, device)| {
            let inside = device.name().as_ref().filter(|inside| !inside.is_empty());
            NetDevice {
                name: name.clone(),
                inside: inside.unwrap_or(name).clone(),
            }
        })
        .collect();
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    let slots = network(linux, None).slots();
    if slots == 0 && !devices.is_empty() {
        ledger.refuse("linux.netDevices", "needs a network namespace");
    } else if devices.len() > slots {
        let problem = format!("a machine has at most {slots} network interfaces");
        ledger.refuse("linux.netDevices", problem);
    }
    for (index, device) in devices.iter().enumerate() {
        let property = format!("linux.netDevices[{}]", device.name);
        if !is_interface_name(&device.name) {
            ledger.refuse(property, "is not the name of a network interface");
        } else if !is_interface_name(&device.inside) || network::is_ours(&device.inside) {
            let problem = format!("{:?} cannot be a network interface's name", device.inside);
            ledger.refuse(format!("{property}.name"), problem);
        } else if devices[..index]
            .iter()
            .any(|other| other.inside == device.inside)
        {
            let problem = format!("another interface has the name {}", device.inside);
            ledger.refuse(format!("{property}.name"), problem);
        }
    }
    devices
}

/// Whether the kernel takes it as the name of an interface (net/core/dev.c, `dev_valid_name`), and not as a pattern for
/// one.
fn is_interface_name(name: &str) -> bool {
    const IFNAMSIZ: usize = 16;
    let forbidden = |c: char| c.is_whitespace() || matches!(c, '/' | ':' | '%' | '\0');
    !matches!(name, "" | "." | "..") && name.len() < IFNAMSIZ && !name.contains(forbidden)
}

fn path(namespace: &LinuxNamespace) -> Option<&Path> {
    let path = namespace.path().as_deref();
    path.filter(|path| !path.as_os_str().is_empty())
}

/// A name belongs to a UTS namespace.
fn names(spec: &Spec, uts: bool, ledger: &mut Ledger) {
    for (property, name) in [
        ("hostname", spec.hostname()),
        ("domainname", spec.domainname()),
    ] {
        let Some(name) = name.as_deref().filter(|name| !name.is_empty()) else {
            continue;
        };
        if !uts {
            ledger.refuse(property, "cannot be set without a private UTS namespace");
        }
        // __NEW_UTS_LEN of linux/utsname.h.
        if name.len() > 64 {
            ledger.refuse(property, "is longer than 64 bytes");
        }
    }
}

/// A user namespace that is joined has its mappings already, and what is said of them is not looked at, as with runc.
fn mappings(linux: &Linux, user: Option<&LinuxNamespace>, ledger: &mut Ledger) {
    let joins = user.is_some_and(|namespace| path(namespace).is_some());
    for (property, mappings) in [
        ("linux.uidMappings", linux.uid_mappings()),
        ("linux.gidMappings", linux.gid_mappings()),
    ] {
        let mappings = mappings.as_deref().unwrap_or_default();
        if user.is_some() && !joins && mappings.is_empty() {
            ledger.refuse(property, "must not be empty with a user namespace");
        } else if user.is_none() && !mappings.is_empty() {
            ledger.refuse(property, "needs a user namespace");
        }
        if mappings.len() > MAPPINGS_MAX {
            ledger.refuse(property, format!("has more than {MAPPINGS_MAX} mappings"));
        }
        for (index, mapping) in mappings.iter().enumerate() {
            if !is_range(*mapping) {
                let problem = "is not a range of ids (size 0, or beyond the greatest id)";
                ledger.refuse(format!("{property}[{index}]"), problem);
            }
        }
    }
}

fn is_range(mapping: LinuxIdMapping) -> bool {
    let fits = |first: u32| first.checked_add(mapping.size()).is_some();
    mapping.size() > 0 && fits(mapping.container_id()) && fits(mapping.host_id())
}

fn offsets(linux: &Linux, time: bool, ledger: &mut Ledger) {
    let Some(offsets) = linux.time_offsets() else {
        return;
    };
    if !time {
        ledger.refuse("linux.timeOffsets", "needs a time namespace");
    }
    let mut offsets: Vec<(&String, &LinuxTimeOffset)> = offsets.iter().collect();
    offsets.sort_by_key(|(clock, _)| *clock);
    for (clock, offset) in offsets {
        let property = format!("linux.timeOffsets.{clock}");
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            // time_namespaces(7).
            ledger.refuse(property.as_str(), "is neither monotonic nor boottime");
        }
        if offset.nanosecs().unwrap_or(0) >= NANOSECONDS {
            ledger.refuse(property, "nanosecs is a second or more");
        }
    }
}

/// Parameters of a namespace need that namespace, so that a configuration means the same with runc. All others are
/// those of the guest's own kernel, which serves this container alone: there is nobody else whom they could harm.
fn sysctl(name: &str, value: &str, has: &impl Fn(Kind) -> bool) -> Result<(), String> {
    let path = sysctl::path(name).ok_or("is not the name of a kernel parameter")?;
    if value.contains('\0') || name.contains('\0') {
        return Err("contains a NUL".into());
    }
    if path == "kernel/hostname" {
        return Err("is set by the property hostname".into());
    }
    match sysctl::namespace(&path) {
        Some(kind) if !has(kind) => Err(format!(
            "needs a private {} namespace",
            namespace::name(kind)
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_parameters() {
        let all = |_| true;
        let none = |_| false;
        for name in ["net.ipv4.ip_forward", "net/ipv4/conf/eno2.100/rp_filter"] {
            assert_eq!(sysctl(name, "1", &all), Ok(()), "{name}");
            assert!(sysctl(name, "1", &none).unwrap_err().contains("network"));
        }
        for (name, kind) in [
            ("kernel.sem", "ipc"),
            ("kernel/sem_next_id", "ipc"),
            ("fs.mqueue.msg_max", "ipc"),
            ("user.max_user_namespaces", "user"),
            ("kernel.domainname", "uts"),
        ] {
            assert_eq!(sysctl(name, "1", &all), Ok(()), "{name}");
            assert!(sysctl(name, "1", &none).unwrap_err().contains(kind));
        }
        for name in ["vm.overcommit_memory", "kernel.pid_max", "fs/nr_open"] {
            assert_eq!(sysctl(name, "1", &none), Ok(()), "{name}");
        }
        for name in [
            "kernel.hostname",
            "kernel",
            "",
            "/",
            ".",
            "..",
            "net..x",
            "/etc/passwd",
            "kernel.",
            "a./.b",
            "net.\0",
            "../../x",
        ] {
            assert!(sysctl(name, "1", &all).is_err(), "{name:?}");
        }
        assert!(sysctl("vm.x", "\0", &all).is_err());
    }
}
