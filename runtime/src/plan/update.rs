//! What `update` changes: limits among the container's processes in the guest, and of the machine on the host. The
//! machine keeps its address space and its vCPUs, which bound them.

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::ledger::{Ledger, Refusal};
use super::{RESOURCES, Refused, Spec, resources, size};
use crate::host::cgroup::Limit;

/// Properties for which 0 and "" say something. For the others it means not to change them, as with runc.
const SAYING_ZERO: [&str; 3] = [
    "linux.resources.cpu.burst",
    "linux.resources.cpu.idle",
    "linux.resources.unified",
];

/// The size of a machine, from its boot to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MachineSize {
    /// Guest RAM in bytes.
    pub(crate) memory: u64,
    /// Number of vCPUs.
    pub(crate) vcpus: u8,
    /// Memory of its host in bytes.
    pub(crate) host: u64,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) struct Update {
    /// The configuration that is in force then.
    pub(crate) config: Value,
    /// What changes, as a `linux.resources` object for the guest. Empty: nothing does.
    pub(crate) guest: Map<String, Value>,
    /// All limits of the machine process's cgroup then.
    pub(crate) limits: Vec<Limit>,
    /// What the caller should know.
    pub(crate) warnings: Vec<String>,
}

/// Decides what an update does. `config` is the configuration in force, `request` a `linux.resources` object.
pub(crate) fn update(
    config: &Value,
    request: &Value,
    machine: MachineSize,
) -> Result<Update, Refused> {
    let Value::Object(request) = request else {
        return Err(invalid("is not a JSON object"));
    };
    let mut ledger = Ledger::of(&json!({"linux": {"resources": request}}));
    let mut changed = request.clone();
    let current = config.pointer("/linux/resources").unwrap_or(&Value::Null);
    // They cannot be changed while processes have devices open, so runc does not either.
    if let Some(devices) = changed.remove("devices")
        && is_said(&devices)
        && Some(&devices) != current.get("devices")
    {
        ledger.refuse(
            format!("{RESOURCES}.devices"),
            "cannot be changed while the container runs",
        );
    }
    let mut changed = said(Value::Object(changed), RESOURCES);
    let known = json!({"linux": {"resources": parse(&changed)?}});
    ledger.note_unknown(&json!({"linux": {"resources": changed}}), &known);

    let mut config = config.clone();
    let old = of_config(&config)?;
    merge(&mut config, json!({"linux": {"resources": changed}}));
    lift_swap(&mut config, &changed);
    let new = of_config(&config)?;
    if let Some(new) = &new {
        resources::check(new, &mut ledger);
    }
    let mut warnings = ledger.warnings();
    let limits = size::resize(
        old.as_ref(),
        new.as_ref(),
        machine,
        &mut warnings,
        &mut ledger,
    );
    if let Some(refused) = ledger.refused() {
        return Err(refused);
    }
    Ok(Update {
        config,
        guest: changed
            .as_object_mut()
            .map(std::mem::take)
            .unwrap_or_default(),
        limits,
        warnings,
    })
}

fn invalid(problem: impl Into<String>) -> Refused {
    Refused(vec![Refusal {
        property: RESOURCES.to_owned(),
        reason: problem.into(),
    }])
}

fn parse(resources: &Value) -> Result<LinuxResources, Refused> {
    serde_json::from_value(resources.clone()).map_err(|e| invalid(e.to_string()))
}

/// `linux.resources` of a configuration.
fn of_config(config: &Value) -> Result<Option<LinuxResources>, Refused> {
    let spec: Spec = serde_json::from_value(config.clone()).map_err(|e| invalid(e.to_string()))?;
    Ok(spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().clone()))
}

/// Whether a value asks for a change.
fn is_said(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(elements) => !elements.is_empty(),
        Value::Object(properties) => !properties.is_empty(),
    }
}

/// The properties of an object that ask for a change; `name` is the object's.
fn said(value: Value, name: &str) -> Value {
    let Value::Object(properties) = value else {
        return value;
    };
    let of = |(key, value): (String, Value)| {
        let name = format!("{name}.{key}");
        if SAYING_ZERO.contains(&name.as_str()) {
            return (!value.is_null()).then_some((key, value));
        }
        let value = said(value, &name);
        is_said(&value).then_some((key, value))
    };
    properties.into_iter().filter_map(of).collect()
}

/// Puts what is changed in the place of what was. Limits of huge pages go by their size.
fn merge(into: &mut Value, changed: Value) {
    match (into, changed) {
        (Value::Object(into), Value::Object(changed)) => {
            for (key, changed) in changed {
                match into.get_mut(&key) {
                    Some(Value::Array(into)) if key == "hugepageLimits" => {
                        let Value::Array(changed) = changed else {
                            continue;
                        };
                        let has = |old: &Value| {
                            changed.iter().any(|new| new["pageSize"] == old["pageSize"])
                        };
                        into.retain(|old| !has(old));
                        into.extend(changed);
                    }
                    Some(into) => merge(into, changed),
                    None => drop(into.insert(key, changed)),
                }
            }
        }
        (into, changed) => *into = changed,
    }
}

/// Without a limit of memory there is none of memory and swap together, unless it is asked for at once.
fn lift_swap(config: &mut Value, changed: &Value) {
    let lifted = changed
        .pointer("/memory/limit")
        .is_some_and(|limit| limit.as_i64() < Some(0));
    let memory = config.pointer_mut("/linux/resources/memory");
    if let Some(Value::Object(memory)) = memory
        && lifted
        && changed.pointer("/memory/swap").is_none()
    {
        memory.remove("swap");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    const MACHINE: MachineSize = MachineSize {
        memory: 180 * MIB,
        vcpus: 1,
        host: 1 << 34,
    };

    /// One that has all memory of its host.
    const LARGE: MachineSize = MachineSize {
        memory: 1 << 34,
        ..MACHINE
    };

    /// With these resources before, updates by `request`.
    fn updated(before: &str, request: &str) -> Result<Update, String> {
        updated_on(MACHINE, before, request)
    }

    fn updated_on(machine: MachineSize, before: &str, request: &str) -> Result<Update, String> {
        let before: Value = serde_json::from_str(before).unwrap();
        let config = json!({"ociVersion": "1.0.2", "linux": {"resources": before}, "mine": 1});
        let request = serde_json::from_str(request).unwrap();
        update(&config, &request, machine).map_err(|e| e.to_string())
    }

    fn refusal(before: &str, request: &str) -> String {
        updated(before, request).unwrap_err()
    }

    fn limit<'a>(update: &'a Update, file: &str) -> Option<&'a str> {
        let mut limits = update.limits.iter();
        Some(limits.find(|limit| limit.file == file)?.value.as_str())
    }

    #[test]
    fn what_is_asked_for_is_merged_and_told() {
        let before = r#"{"memory":{"limit":134217728,"swap":134217728},"pids":{"limit":5},
            "devices":[{"allow":false}],"hugepageLimits":[{"pageSize":"2MB","limit":1},{"pageSize":"1GB","limit":2}],
            "unified":{"memory.high":"7"}}"#;
        let request = r#"{"memory":{"limit":67108864,"swap":0,"checkBeforeUpdate":false},"pids":{"limit":9},"cpu":{"idle":0,"cpus":""},
            "devices":[{"allow":false}],"hugepageLimits":[{"pageSize":"2MB","limit":0}],"blockIO":{"weight":0},
            "unified":{"cpu.weight":"3"},"network":null}"#;
        let update = updated(before, request).unwrap();
        let guest = json!({"memory": {"limit": 67_108_864}, "pids": {"limit": 9}, "cpu": {"idle": 0},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}], "unified": {"cpu.weight": "3"}});
        assert_eq!(Value::Object(update.guest), guest);
        let merged = json!({"memory": {"limit": 67_108_864, "swap": 134_217_728}, "pids": {"limit": 9},
            "cpu": {"idle": 0}, "devices": [{"allow": false}],
            "hugepageLimits": [{"pageSize": "1GB", "limit": 2}, {"pageSize": "2MB", "limit": 0}],
            "unified": {"memory.high": "7", "cpu.weight": "3"}});
        assert_eq!(update.config["linux"]["resources"], merged);
        assert_eq!(update.config["mine"], 1);
        assert_eq!(update.warnings, Vec::<String>::new());
    }

    #[test]
    fn nothing_asked_for_changes_nothing() {
        for request in [
            "{}",
            r#"{"memory":{},"cpu":{"quota":0},"pids":{"limit":0}}"#,
        ] {
            let update = updated("null", request).unwrap();
            assert_eq!(update.guest, Map::new(), "{request}");
        }
    }

    #[test]
    fn the_hosts_limits_follow() {
        let before = r#"{"cpu":{"quota":50000,"period":100000,"shares":1024}}"#;
        let of = |request: &str| updated(before, request).unwrap();
        let update = of(r#"{"cpu":{"quota":20000}}"#);
        assert_eq!(limit(&update, "cpu.max"), Some("20000 100000"));
        let update = of(r#"{"cpu":{"period":200000}}"#);
        assert_eq!(limit(&update, "cpu.max"), Some("50000 200000"));
        let update = of(r#"{"cpu":{"quota":-1}}"#);
        assert_eq!(limit(&update, "cpu.max"), Some("max 100000"));
        let update = of(r#"{"cpu":{"shares":2,"cpus":"0-1","mems":"0"}}"#);
        assert_eq!(limit(&update, "cpu.weight"), Some("1"));
        assert_eq!(limit(&update, "cpuset.cpus"), Some("0-1"));
        assert_eq!(limit(&update, "cpuset.mems"), Some("0"));
        // Memory: down and up, and as much as the machine has.
        for mib in [32, 1 << 10, 1 << 20] {
            let used = (mib + 48) * MIB;
            let ram = (used + used.div_ceil(63)).next_multiple_of(2 * MIB);
            let ram = LARGE.memory.min(ram);
            let request = format!(r#"{{"memory":{{"limit":{}}}}}"#, mib * MIB);
            let update = updated_on(LARGE, before, &request).unwrap();
            let host = ram + ram / 256 + (ram / 1024 * 768).min(1 << 30) + 64 * MIB;
            let host = host.to_string();
            assert_eq!(limit(&update, "memory.max"), Some(host.as_str()), "{mib}");
        }
        let none = updated_on(LARGE, before, r#"{"memory":{"limit":-1}}"#).unwrap();
        let more: u64 = limit(&none, "memory.max").unwrap().parse().unwrap();
        assert!(more > LARGE.memory);
    }

    #[test]
    fn no_limit_of_memory_is_none_of_swap() {
        let before = r#"{"memory":{"limit":67108864,"swap":134217728}}"#;
        let memory = |request| {
            let update = updated(before, request).unwrap();
            update.config["linux"]["resources"]["memory"].clone()
        };
        assert_eq!(memory(r#"{"memory":{"limit":-1}}"#), json!({"limit": -1}));
        assert_eq!(
            memory(r#"{"memory":{"limit":-1,"swap":-1}}"#),
            json!({"limit": -1, "swap": -1})
        );
    }

    #[test]
    fn the_machine_has_no_more_memory_than_at_its_boot() {
        let before = r#"{"memory":{"limit":134217728}}"#;
        updated(before, r#"{"memory":{"limit":134217728}}"#).unwrap();
        let expected = "the machine was given 188743680 bytes of memory, which allow a limit of 135462912 bytes at most";
        assert_eq!(
            refusal(before, r#"{"memory":{"limit":135462913}}"#),
            format!("linux.resources.memory.limit: {expected}")
        );
        assert_eq!(
            refusal(before, r#"{"unified":{"memory.max":"135462913"}}"#),
            format!("linux.resources.unified[memory.max]: {expected}")
        );
        let least = refusal(before, r#"{"memory":{"limit":1048576}}"#);
        assert!(least.contains("are less than"), "{least}");
        // One that is greater than this host has been in force from the beginning.
        let great = r#"{"memory":{"limit":9223372036854775807}}"#;
        updated(great, r#"{"pids":{"limit":1}}"#).unwrap();
        updated_on(LARGE, before, great).unwrap();
    }

    #[test]
    fn more_cpus_than_the_machine_has_are_a_warning() {
        let warnings = |request| updated("{}", request).unwrap().warnings;
        assert_eq!(
            warnings(r#"{"cpu":{"quota":100000}}"#),
            Vec::<String>::new()
        );
        let found = warnings(r#"{"cpu":{"quota":100001}}"#);
        assert!(found[0].contains("1 vCPU"), "{found:?}");
    }

    #[test]
    fn what_is_not_applied_is_refused_by_name() {
        for (request, name) in [
            (
                r#"{"blockIO":{"leafWeight":10}}"#,
                "linux.resources.blockIO.leafWeight: cgroup v2 has no weight of the processes of a cgroup against those below it",
            ),
            (
                r#"{"cpu":{"realtimeRuntime":5},"memory":{"kernel":5}}"#,
                "linux.resources.cpu.realtimeRuntime: cgroup v2 has no limits of real-time scheduling; linux.resources.memory.kernel: cgroup v2 has no limit of the kernel's memory alone",
            ),
            (
                r#"{"rdma":{"a":{"hcaHandles":1}},"memory":{"useHierarchy":false}}"#,
                "linux.resources.memory.useHierarchy: cgroup v2 is always hierarchical; linux.resources.rdma: the guest has no RDMA devices",
            ),
            (
                r#"{"unified":{"misc.max":"1"}}"#,
                "linux.resources.unified[misc.max]: belongs to no controller that can be limited",
            ),
            (
                r#"{"devices":[{"allow":true}]}"#,
                "linux.resources.devices: cannot be changed while the container runs",
            ),
        ] {
            assert_eq!(refusal(r#"{"devices":[{"allow":false}]}"#, request), name);
        }
        for bad in ["[]", "5", r#"{"pids":{"limit":"many"}}"#, r#"{"cpu":5}"#] {
            let refusal = refusal("{}", bad);
            assert!(refusal.starts_with("linux.resources: "), "{refusal}");
        }
        let request = r#"{"hugepageLimits":[{"pageSize":"2MB","limit":1,"colour":"red"}]}"#;
        let warnings = updated("{}", request).unwrap().warnings;
        assert_eq!(
            warnings,
            ["ignoring unknown property linux.resources.hugepageLimits[0].colour"]
        );
        let warnings = updated("{}", r#"{"pids":{"limt":5}}"#).unwrap().warnings;
        assert_eq!(
            warnings,
            ["ignoring unknown property linux.resources.pids.limt"]
        );
    }
}
