//! Every property of the specification (runtime-spec 1.3, config.md, config-linux.md, config-vm.md), and where it is
//! applied.

use specification::{Place, UNCONFINED};

/// What the ledger says of a property before its value is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// Applied there, unless [`super::decide`] finds that this value is applied elsewhere or not at all.
    At(Place),
    /// The same, but for this value, which asks for nothing.
    But(Place, &'static str),
    /// Applied there: an object whose keys are not properties; each key has a line of its own.
    Keys(Place),
    /// Holds properties with entries of their own.
    Inner,
    /// Not applied, and why: refused unless it is empty or asks for nothing.
    Refused(&'static str),
    /// Not applied, and why: refused unless it is empty or has this value, which holds anyway.
    Unless(&'static str, &'static str),
}

use Rule::{At, But, Inner, Keys, Refused, Unless};

const GUEST: Rule = At(Place::Guest);
const HOST: Rule = At(Place::Host);
const BOTH: Rule = At(Place::Both);

const PLATFORM: Rule = Refused("is for another platform");
const NO_RT: &str = "cgroup v2 has no limits of real-time scheduling";
const KERNEL_MEMORY: &str = "cgroup v2 has no limit of the kernel's memory alone";
const NET_CGROUP: &str = "cgroup v2 has no classes and priorities of network packets";
const VM_FIXED: &str = "the kernel and all else that runs the machine are Chiton's own";

/// By name, sorted. Elements of an array share the array's entry.
#[rustfmt::skip]
const PROPERTIES: [(&str, Rule); 104] = [
    ("annotations", HOST),
    ("domainname", GUEST),
    ("freebsd", PLATFORM),
    ("hooks", Inner),
    ("hooks.createContainer", HOST),
    ("hooks.createRuntime", HOST),
    ("hooks.poststart", HOST),
    ("hooks.poststop", HOST),
    ("hooks.prestart", HOST),
    ("hooks.startContainer", GUEST),
    ("hostname", GUEST),
    ("linux", Inner),
    ("linux.cgroupsPath", BOTH),
    ("linux.devices", GUEST),
    ("linux.gidMappings", GUEST),
    ("linux.intelRdt", HOST),
    ("linux.maskedPaths", GUEST),
    ("linux.memoryPolicy", HOST),
    ("linux.mountLabel", HOST),
    ("linux.namespaces", Inner),
    ("linux.namespaces.path", HOST),
    ("linux.namespaces.type", GUEST),
    ("linux.netDevices", Keys(Place::Both)),
    ("linux.personality", GUEST),
    ("linux.readonlyPaths", GUEST),
    ("linux.resources", Inner),
    ("linux.resources.blockIO", HOST),
    ("linux.resources.cpu", Inner),
    ("linux.resources.cpu.burst", BOTH),
    ("linux.resources.cpu.cpus", HOST),
    ("linux.resources.cpu.idle", BOTH),
    ("linux.resources.cpu.mems", HOST),
    ("linux.resources.cpu.period", BOTH),
    ("linux.resources.cpu.quota", BOTH),
    ("linux.resources.cpu.realtimePeriod", Refused(NO_RT)),
    ("linux.resources.cpu.realtimeRuntime", Refused(NO_RT)),
    ("linux.resources.cpu.shares", BOTH),
    ("linux.resources.devices", GUEST),
    ("linux.resources.hugepageLimits", GUEST),
    ("linux.resources.memory", Inner),
    ("linux.resources.memory.checkBeforeUpdate", GUEST),
    ("linux.resources.memory.disableOOMKiller", Refused("cgroup v2 cannot suspend processes when memory runs out")),
    ("linux.resources.memory.kernel", Refused(KERNEL_MEMORY)),
    ("linux.resources.memory.kernelTCP", Refused(KERNEL_MEMORY)),
    ("linux.resources.memory.limit", BOTH),
    ("linux.resources.memory.reservation", GUEST),
    ("linux.resources.memory.swap", BOTH),
    ("linux.resources.memory.swappiness", GUEST),
    ("linux.resources.memory.useHierarchy", Unless("true", "cgroup v2 is always hierarchical")),
    ("linux.resources.network", Inner),
    ("linux.resources.network.classID", Refused(NET_CGROUP)),
    ("linux.resources.network.priorities", Refused(NET_CGROUP)),
    ("linux.resources.pids", Inner),
    ("linux.resources.pids.limit", GUEST),
    ("linux.resources.rdma", Refused("the guest has no RDMA devices")),
    ("linux.resources.unified", Keys(Place::Guest)),
    ("linux.rootfsPropagation", GUEST),
    ("linux.seccomp", BOTH),
    ("linux.sysctl", Keys(Place::Guest)),
    ("linux.timeOffsets", GUEST),
    ("linux.uidMappings", GUEST),
    ("mounts", Inner),
    ("mounts.destination", GUEST),
    ("mounts.gidMappings", HOST),
    ("mounts.options", GUEST),
    ("mounts.source", GUEST),
    ("mounts.type", GUEST),
    ("mounts.uidMappings", HOST),
    ("ociVersion", HOST),
    ("process", Inner),
    ("process.apparmorProfile", But(Place::Guest, UNCONFINED)),
    ("process.args", GUEST),
    ("process.capabilities", GUEST),
    ("process.commandLine", PLATFORM),
    ("process.consoleSize", BOTH),
    ("process.cwd", GUEST),
    ("process.env", GUEST),
    ("process.execCPUAffinity", GUEST),
    ("process.ioPriority", GUEST),
    ("process.noNewPrivileges", GUEST),
    ("process.oomScoreAdj", BOTH),
    ("process.rlimits", GUEST),
    ("process.scheduler", GUEST),
    ("process.selinuxLabel", HOST),
    ("process.terminal", BOTH),
    ("process.user", Inner),
    ("process.user.additionalGids", GUEST),
    ("process.user.gid", GUEST),
    ("process.user.uid", GUEST),
    ("process.user.umask", GUEST),
    ("process.user.username", PLATFORM),
    ("root", Inner),
    ("root.path", HOST),
    ("root.readonly", BOTH),
    ("solaris", PLATFORM),
    ("vm", Inner),
    ("vm.hwConfig", Inner),
    ("vm.hwConfig.memory", HOST),
    ("vm.hwConfig.vcpus", HOST),
    ("vm.hypervisor", Refused(VM_FIXED)),
    ("vm.image", Refused(VM_FIXED)),
    ("vm.kernel", Refused(VM_FIXED)),
    ("windows", PLATFORM),
    ("zos", PLATFORM),
];

/// What is said of the property with this name.
pub(super) fn rule(name: &str) -> Option<Rule> {
    let found = PROPERTIES.binary_search_by_key(&name, |(name, _)| name);
    found.ok().map(|index| PROPERTIES[index].1)
}

/// Every property that is applied or refused as such.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    PROPERTIES
        .iter()
        .filter(|(_, rule)| *rule != Inner)
        .map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_properties_are_sorted_and_have_a_parent_each() {
        assert!(PROPERTIES.is_sorted_by(|a, b| a.0 < b.0));
        for (name, _) in PROPERTIES {
            if let Some((parent, _)) = name.rsplit_once('.') {
                assert_eq!(rule(parent), Some(Inner), "{name}");
            }
        }
    }
}
