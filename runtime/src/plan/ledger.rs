//! The ledger: every property of the specification (runtime-spec 1.3, config.md and config-linux.md), and where it is applied.

use serde_json::Value;

/// Where a property is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// By the agent inside the machine.
    Guest,
    /// By the verbs or the machine process.
    Host,
    /// On both sides.
    Both,
    /// Applied or refused depending on its value, which [`super::plan`] looks at.
    ByValue,
    /// Holds properties with entries of their own.
    Inner,
    /// Not applied: an error unless it is empty or asks for nothing.
    Refused,
    /// Not applied: an error unless it is empty or has this value, which already holds.
    RefusedUnless(&'static str),
}

use Place::{Both, ByValue, Guest, Host, Inner, Refused, RefusedUnless};

/// By name, sorted. Elements of an array share the array's entry.
const LEDGER: [(&str, Place); 98] = [
    ("annotations", Host),
    ("domainname", Guest),
    ("freebsd", Refused),
    ("hooks", Inner),
    ("hooks.createContainer", Host),
    ("hooks.createRuntime", Host),
    ("hooks.poststart", Host),
    ("hooks.poststop", Host),
    ("hooks.prestart", Host),
    ("hooks.startContainer", Guest),
    ("hostname", Guest),
    ("linux", Inner),
    ("linux.cgroupsPath", Both),
    ("linux.devices", ByValue),
    ("linux.gidMappings", Guest),
    ("linux.intelRdt", Refused),
    ("linux.maskedPaths", Guest),
    ("linux.memoryPolicy", Refused),
    ("linux.mountLabel", Refused),
    ("linux.namespaces", Inner),
    ("linux.namespaces.path", ByValue),
    ("linux.namespaces.type", Both),
    ("linux.netDevices", Refused),
    ("linux.personality", Guest),
    ("linux.readonlyPaths", Guest),
    ("linux.resources", Inner),
    ("linux.resources.blockIO", Refused),
    ("linux.resources.cpu", Inner),
    ("linux.resources.cpu.burst", Guest),
    ("linux.resources.cpu.cpus", Host),
    ("linux.resources.cpu.idle", Guest),
    ("linux.resources.cpu.mems", Host),
    ("linux.resources.cpu.period", Both),
    ("linux.resources.cpu.quota", Both),
    ("linux.resources.cpu.realtimePeriod", Refused),
    ("linux.resources.cpu.realtimeRuntime", Refused),
    ("linux.resources.cpu.shares", Both),
    ("linux.resources.devices", Guest),
    ("linux.resources.hugepageLimits", Guest),
    ("linux.resources.memory", Inner),
    ("linux.resources.memory.checkBeforeUpdate", Guest),
    ("linux.resources.memory.disableOOMKiller", Refused),
    ("linux.resources.memory.kernel", Refused),
    ("linux.resources.memory.kernelTCP", Refused),
    ("linux.resources.memory.limit", Both),
    ("linux.resources.memory.reservation", Guest),
    ("linux.resources.memory.swap", Guest),
    ("linux.resources.memory.swappiness", Guest),
    ("linux.resources.memory.useHierarchy", RefusedUnless("true")),
    ("linux.resources.network", Inner),
    ("linux.resources.network.classID", Refused),
    ("linux.resources.network.priorities", Refused),
    ("linux.resources.pids", Inner),
    ("linux.resources.pids.limit", Guest),
    ("linux.resources.rdma", Refused),
    ("linux.resources.unified", ByValue),
    ("linux.rootfsPropagation", Guest),
    ("linux.seccomp", ByValue),
    ("linux.sysctl", Guest),
    ("linux.timeOffsets", Guest),
    ("linux.uidMappings", Guest),
    ("mounts", Inner),
    ("mounts.destination", Guest),
    ("mounts.gidMappings", Refused),
    ("mounts.options", ByValue),
    ("mounts.source", Both),
    ("mounts.type", ByValue),
    ("mounts.uidMappings", Refused),
    ("ociVersion", Host),
    ("process", Inner),
    ("process.apparmorProfile", RefusedUnless("unconfined")),
    ("process.args", Guest),
    ("process.capabilities", Guest),
    ("process.commandLine", Refused),
    ("process.consoleSize", Both),
    ("process.cwd", Guest),
    ("process.env", Guest),
    ("process.execCPUAffinity", Refused),
    ("process.ioPriority", Guest),
    ("process.noNewPrivileges", Guest),
    ("process.oomScoreAdj", Both),
    ("process.rlimits", Guest),
    ("process.scheduler", Guest),
    ("process.selinuxLabel", Refused),
    ("process.terminal", Both),
    ("process.user", Inner),
    ("process.user.additionalGids", Guest),
    ("process.user.gid", Guest),
    ("process.user.uid", Guest),
    ("process.user.umask", Guest),
    ("process.user.username", Refused),
    ("root", Inner),
    ("root.path", Host),
    ("root.readonly", Both),
    ("solaris", Refused),
    ("vm", Refused),
    ("windows", Refused),
    ("zos", Refused),
];

/// What the ledger says about a configuration.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Audit {
    /// Properties that are refused.
    pub(super) refused: Vec<String>,
    /// Properties that the specification does not have; it demands that they are ignored (config.md, Extensibility).
    pub(super) unknown: Vec<String>,
}

/// Looks every property up.
pub(super) fn audit(config: &Value) -> Audit {
    let mut audit = Audit::default();
    descend(config, "", "", &mut audit);
    audit
}

/// The place of the property with this name.
pub(super) fn place(name: &str) -> Option<Place> {
    let found = LEDGER.binary_search_by_key(&name, |(name, _)| name);
    found.ok().map(|index| LEDGER[index].1)
}

/// Every entry.
#[cfg(test)]
pub(super) fn entries() -> impl Iterator<Item = (&'static str, Place)> {
    LEDGER.into_iter()
}

/// `name` is the ledger's name of `value`, `shown` the one in messages, with indexes.
fn descend(value: &Value, name: &str, shown: &str, audit: &mut Audit) {
    let join = |prefix: &str, key: &str| {
        if prefix.is_empty() {
            key.to_owned()
        } else {
            format!("{prefix}.{key}")
        }
    };
    match value {
        Value::Object(properties) => {
            for (key, value) in properties {
                let (name, shown) = (join(name, key), join(shown, key));
                match place(&name) {
                    None => audit.unknown.push(shown),
                    Some(Inner) => descend(value, &name, &shown, audit),
                    Some(Refused) if !asks_for_nothing(value) => audit.refused.push(shown),
                    Some(RefusedUnless(held)) if !holds(value, held) => audit.refused.push(shown),
                    Some(_) => {}
                }
            }
        }
        Value::Array(elements) => {
            for (index, element) in elements.iter().enumerate() {
                descend(element, name, &format!("{shown}[{index}]"), audit);
            }
        }
        // Of the wrong type for its property; parsing it as a specification has said so.
        _ => {}
    }
}

/// Whether a value of a refused property leaves everything as it is. Limits of 0 and below are none.
fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_i64().is_some_and(|number| number <= 0),
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(properties) => properties.values().all(asks_for_nothing),
    }
}

fn holds(value: &Value, held: &str) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty() || text == held,
        Value::Bool(set) => (if *set { "true" } else { "false" }) == held,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_is_sorted_and_has_a_parent_for_each_entry() {
        assert!(LEDGER.is_sorted_by(|a, b| a.0 < b.0));
        for (name, _) in LEDGER {
            if let Some((parent, _)) = name.rsplit_once('.') {
                assert_eq!(place(parent), Some(Inner), "{name}");
            }
        }
    }

    #[test]
    fn elements_are_named_by_index() {
        let json =
            r#"{"mounts":[{"destination":"/"},{"uidMappings":[{"size":1}],"colour":1}],"x":{}}"#;
        let audit = audit(&serde_json::from_str(json).unwrap());
        assert_eq!(audit.refused, ["mounts[1].uidMappings"]);
        assert_eq!(audit.unknown, ["mounts[1].colour", "x"]);
    }
}
