//! The names of properties, whatever their case: runc reads them as Go does (encoding/json, `Unmarshal`), to which
//! `pagesize` is `pageSize`.

use std::cmp::Ordering;

use serde_json::{Map, Value};

/// Every name of a property in the specification (runtime-spec 1.3, config.md, config-linux.md, config-vm.md); sorted
/// without regard to case. No two differ in case alone.
#[rustfmt::skip]
const NAMES: [&str; 160] = [
    "access", "action", "additionalGids", "allow", "ambient", "annotations", "apparmorProfile", "architectures",
    "args", "blockIO", "bounding", "burst", "capabilities", "cgroupsPath", "checkBeforeUpdate", "class", "classID",
    "closID", "commandLine", "consoleSize", "containerID", "cpu", "cpus", "createContainer", "createRuntime", "cwd",
    "deadline", "defaultAction", "defaultErrnoRet", "destination", "devices", "disableOOMKiller", "domain",
    "domainname", "effective", "enableCMT", "enableMBM", "enableMonitoring", "env", "errnoRet", "execCPUAffinity",
    "fileMode", "final", "flags", "freebsd", "gid", "gidMappings", "hard", "hcaHandles", "hcaObjects", "height",
    "hooks", "hostID", "hostname", "hugepageLimits", "hwConfig", "hypervisor", "idle", "image", "index",
    "inheritable", "initial", "intelRdt", "ioPriority", "kernel", "kernelTCP", "l3CacheSchema", "leafWeight", "limit",
    "linux", "listenerMetadata", "listenerPath", "major", "maskedPaths", "memBwSchema", "memory", "memoryPolicy",
    "mems", "minor", "mode", "mountLabel", "mounts", "name", "names", "namespaces", "nanosecs", "netDevices",
    "network", "nice", "nodes", "noNewPrivileges", "ociVersion", "oomScoreAdj", "op", "options", "pageSize", "path",
    "period", "permitted", "personality", "pids", "policy", "poststart", "poststop", "prestart", "priorities",
    "priority", "process", "quota", "rate", "rdma", "readonly", "readonlyPaths", "realtimePeriod", "realtimeRuntime",
    "reservation", "resources", "rlimits", "root", "rootfsPropagation", "runtime", "scheduler", "schemata", "seccomp",
    "secs", "selinuxLabel", "shares", "size", "soft", "solaris", "source", "startContainer", "swap", "swappiness",
    "syscalls", "sysctl", "terminal", "throttleReadBpsDevice", "throttleReadIOPSDevice", "throttleWriteBpsDevice",
    "throttleWriteIOPSDevice", "timeOffsets", "timeout", "type", "uid", "uidMappings", "umask", "unified",
    "useHierarchy", "user", "username", "value", "valueTwo", "vcpus", "vm", "weight", "weightDevice", "width",
    "windows", "zos",
];

/// The properties whose keys are the caller's own words.
const FREE: [&str; 6] = [
    "annotations",
    "netDevices",
    "rdma",
    "sysctl",
    "timeOffsets",
    "unified",
];

/// One property under two names. Go takes the one that comes last; what was meant is not known.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} and {1:?} are the same property")]
pub(crate) struct Twice(String, &'static str);

/// Gives every property of the specification its own name.
pub(crate) fn correct(value: &mut Value) -> Result<(), Twice> {
    match value {
        Value::Array(elements) => elements.iter_mut().try_for_each(correct),
        Value::Object(properties) => {
            rename(properties)?;
            properties.iter_mut().try_for_each(|(name, value)| {
                if !FREE.contains(&name.as_str()) {
                    return correct(value);
                }
                let values = value.as_object_mut().into_iter().flatten();
                values.map(|(_, value)| value).try_for_each(correct)
            })
        }
        _ => Ok(()),
    }
}

fn rename(properties: &mut Map<String, Value>) -> Result<(), Twice> {
    let names = properties.keys();
    let wrong = names.filter_map(|given| Some((given.clone(), own_name(given)?)));
    let wrong = wrong.collect::<Vec<_>>();
    for (given, own) in wrong {
        if let Some(value) = properties.remove(&given)
            && properties.insert(own.to_owned(), value).is_some()
        {
            return Err(Twice(given, own));
        }
    }
    Ok(())
}

/// The name of the property that is meant, unless it is this.
fn own_name(given: &str) -> Option<&'static str> {
    let found = NAMES.binary_search_by(|name| without_case(name, given));
    found
        .ok()
        .map(|index| NAMES[index])
        .filter(|own| *own != given)
}

fn without_case(a: &str, b: &str) -> Ordering {
    let a = a.bytes().map(|byte| byte.to_ascii_lowercase());
    a.cmp(b.bytes().map(|byte| byte.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn corrected(mut value: Value) -> Result<Value, Twice> {
        correct(&mut value).map(|()| value)
    }

    #[test]
    fn names_are_sorted_and_differ_in_more_than_case() {
        assert!(NAMES.is_sorted_by(|a, b| without_case(a, b) == Ordering::Less));
        assert!(FREE.iter().all(|name| NAMES.contains(name)));
    }

    #[test]
    fn properties_are_known_in_every_case() {
        let given = json!({"OCIVERSION": "1.0.0", "Linux": {"Resources": {
            "hugepagelimits": [{"pagesize": "2MB", "LIMIT": 1}], "BlockIO": {"Weight": 10}}}});
        let own = json!({"ociVersion": "1.0.0", "linux": {"resources": {
            "hugepageLimits": [{"pageSize": "2MB", "limit": 1}], "blockIO": {"weight": 10}}}});
        assert_eq!(corrected(given), Ok(own));
    }

    #[test]
    fn the_callers_own_words_are_left_alone() {
        let given = json!({"annotations": {"PATH": "a", "path": "b"}, "mine": {"x-Y": 1}, "linux": {
            "sysctl": {"Name": "1"}, "unified": {"Memory": "1"}, "netDevices": {"ETH": {"name": "eth0"}}}});
        assert_eq!(corrected(given.clone()), Ok(given));
        let given = json!({"netDevices": {"Name": {"NAME": "eth0"}}});
        let own = json!({"netDevices": {"Name": {"name": "eth0"}}});
        assert_eq!(corrected(given), Ok(own));
    }

    #[test]
    fn one_property_under_two_names_is_refused() {
        let twice = corrected(json!({"root": {"path": "a", "Path": "b"}})).unwrap_err();
        assert_eq!(
            twice.to_string(),
            "\"Path\" and \"path\" are the same property"
        );
        assert!(corrected(json!([{"CWD": "/", "Cwd": "/"}])).is_err());
    }
}
