//! The plan as a table: one line for each property of the specification.

use super::ledger::Place::{self, Both, ByValue, Guest, Host, Refused as R, RefusedUnless};
use super::*;

const PROCESS: &str = r#""user":{"uid":0,"gid":0},"cwd":"/","args":["sh"]"#;
const NAMESPACES: &str = r#"{"type":"uts"}"#;

/// What a property must be in the table: its place in the ledger, and whether the given value is refused.
struct Line(&'static str, Place, &'static str, bool);

const OK: bool = false;
const NO: bool = true;

/// Property, place, value of the property (of the whole array for what is inside one), refused. One line each.
#[rustfmt::skip]
const TABLE: &[Line] = &[
    Line("annotations", Host, r#"{"a":"b"}"#, OK),
    Line("domainname", Guest, r#""d""#, OK),
    Line("freebsd", R, r#"{"devices":[1]}"#, NO),
    Line("hooks.createContainer", Host, r#"[{"path":"/x","args":["x"],"env":["A=B"],"timeout":1}]"#, OK),
    Line("hooks.createRuntime", Host, r#"[{"path":"x"}]"#, NO),
    Line("hooks.poststart", Host, r#"[{"path":"/x","timeout":0}]"#, NO),
    Line("hooks.poststop", Host, "[]", OK),
    Line("hooks.prestart", Host, r#"[{"path":"/x"}]"#, OK),
    Line("hooks.startContainer", Guest, r#"[{"path":"/x"}]"#, OK),
    Line("hostname", Guest, r#""h""#, OK),
    Line("linux.cgroupsPath", Both, r#""/a/b""#, OK),
    Line("linux.devices", ByValue, r#"[{"path":"/dev/x","type":"c","major":1,"minor":3}]"#, OK),
    Line("linux.devices", ByValue, r#"[{"path":"/dev/x","type":"p"}]"#, OK),
    Line("linux.devices", ByValue, r#"[{"path":"/dev/x","type":"b","major":8,"minor":0}]"#, NO),
    Line("linux.gidMappings", Guest, r#"[{"containerID":0,"hostID":1,"size":1}]"#, OK),
    Line("linux.intelRdt", R, r#"{"closID":"x"}"#, NO),
    Line("linux.maskedPaths", Guest, r#"["/proc/kcore"]"#, OK),
    Line("linux.memoryPolicy", R, r#"{"mode":"MPOL_BIND","nodes":"0"}"#, NO),
    Line("linux.mountLabel", R, r#""system_u:object_r:container_file_t:s0""#, NO),
    Line("linux.mountLabel", R, r#""""#, OK),
    Line("linux.namespaces.type", Both, r#"[{"type":"pid"},{"type":"network"},{"type":"mount"}]"#, OK),
    Line("linux.namespaces.type", Both, r#"[{"type":"ipc"},{"type":"uts"},{"type":"cgroup"}]"#, OK),
    Line("linux.namespaces.type", Both, r#"[{"type":"user"},{"type":"time"}]"#, OK),
    Line("linux.namespaces.path", ByValue, r#"[{"type":"network","path":"/run/netns/x"}]"#, OK),
    Line("linux.namespaces.path", ByValue, r#"[{"type":"pid","path":""}]"#, OK),
    Line("linux.namespaces.path", ByValue, r#"[{"type":"pid","path":"/proc/1/ns/pid"}]"#, NO),
    Line("linux.namespaces.path", ByValue, r#"[{"type":"ipc","path":"/proc/1/ns/ipc"}]"#, NO),
    Line("linux.namespaces.path", ByValue, r#"[{"type":"uts","path":"/proc/1/ns/uts"}]"#, NO),
    Line("linux.namespaces.path", ByValue, r#"[{"type":"mount","path":"/proc/1/ns/mnt"}]"#, NO),
    Line("linux.namespaces.path", ByValue, r#"[{"type":"user","path":"/proc/1/ns/user"}]"#, NO),
    Line("linux.namespaces.path", ByValue, r#"[{"type":"time","path":"/proc/1/ns/time"}]"#, NO),
    Line("linux.namespaces.path", ByValue, r#"[{"type":"cgroup","path":"/proc/1/ns/cgroup"}]"#, NO),
    Line("linux.netDevices", R, r#"{"eth0":{"name":"e"}}"#, NO),
    Line("linux.personality", Guest, r#"{"domain":"LINUX"}"#, OK),
    Line("linux.readonlyPaths", Guest, r#"["/proc/sys"]"#, OK),
    Line("linux.resources.blockIO", R, r#"{"weight":10}"#, NO),
    Line("linux.resources.blockIO", R, r#"{"weight":0,"throttleReadBpsDevice":[]}"#, OK),
    Line("linux.resources.cpu.burst", Guest, "1000", OK),
    Line("linux.resources.cpu.cpus", Host, r#""0-1""#, OK),
    Line("linux.resources.cpu.idle", Guest, "1", OK),
    Line("linux.resources.cpu.mems", Host, r#""0""#, OK),
    Line("linux.resources.cpu.period", Both, "100000", OK),
    Line("linux.resources.cpu.quota", Both, "100000", OK),
    Line("linux.resources.cpu.realtimePeriod", R, "1000", NO),
    Line("linux.resources.cpu.realtimeRuntime", R, "1000", NO),
    Line("linux.resources.cpu.realtimeRuntime", R, "0", OK),
    Line("linux.resources.cpu.shares", Both, "1024", OK),
    Line("linux.resources.devices", Guest, r#"[{"allow":false,"access":"rwm"}]"#, OK),
    Line("linux.resources.hugepageLimits", Guest, r#"[{"pageSize":"2MB","limit":0}]"#, OK),
    Line("linux.resources.memory.checkBeforeUpdate", Guest, "true", OK),
    Line("linux.resources.memory.disableOOMKiller", R, "true", NO),
    Line("linux.resources.memory.disableOOMKiller", R, "false", OK),
    Line("linux.resources.memory.kernel", R, "1000", NO),
    Line("linux.resources.memory.kernelTCP", R, "1000", NO),
    Line("linux.resources.memory.kernelTCP", R, "-1", OK),
    Line("linux.resources.memory.limit", Both, "134217728", OK),
    Line("linux.resources.memory.limit", Both, "1048576", NO),
    Line("linux.resources.memory.reservation", Guest, "134217728", OK),
    Line("linux.resources.memory.swap", Guest, "134217728", OK),
    Line("linux.resources.memory.swappiness", Guest, "60", OK),
    Line("linux.resources.memory.useHierarchy", RefusedUnless("true"), "true", OK),
    Line("linux.resources.memory.useHierarchy", RefusedUnless("true"), "false", NO),
    Line("linux.resources.network.classID", R, "5", NO),
    Line("linux.resources.network.priorities", R, r#"[{"name":"eth0","priority":1}]"#, NO),
    Line("linux.resources.pids.limit", Guest, "10", OK),
    Line("linux.resources.rdma", R, r#"{"mlx5":{"hcaHandles":1}}"#, NO),
    Line("linux.resources.unified", ByValue, r#"{"memory.high":"1","pids.max":"5","cpu.weight":"5"}"#, OK),
    Line("linux.resources.unified", ByValue, r#"{"hugetlb.2MB.max":"0"}"#, OK),
    Line("linux.resources.unified", ByValue, r#"{"io.max":"1"}"#, NO),
    Line("linux.resources.unified", ByValue, r#"{"cgroup.freeze":"1"}"#, NO),
    Line("linux.rootfsPropagation", Guest, r#""rprivate""#, OK),
    Line("linux.seccomp", ByValue, r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#, OK),
    Line("linux.seccomp", ByValue, r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":[""],"action":"SCMP_ACT_ALLOW"}]}"#, NO),
    Line("linux.seccomp", ByValue, r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, NO),
    Line("linux.seccomp", ByValue, r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/s"}"#, NO),
    Line("linux.sysctl", Guest, r#"{"net.ipv4.ip_forward":"1"}"#, OK),
    Line("linux.timeOffsets", Guest, r#"{"monotonic":{"secs":1,"nanosecs":0}}"#, OK),
    Line("linux.uidMappings", Guest, r#"[{"containerID":0,"hostID":1,"size":1}]"#, OK),
    Line("mounts.destination", Guest, r#"[{"destination":"/proc","type":"proc"}]"#, OK),
    Line("mounts.destination", Guest, r#"[{"destination":"proc","type":"proc"}]"#, NO),
    Line("mounts.type", ByValue, r#"[{"destination":"/s","type":"sysfs"},{"destination":"/t","type":"tmpfs"}]"#, OK),
    Line("mounts.type", ByValue, r#"[{"destination":"/d","type":"devpts"},{"destination":"/q","type":"mqueue"}]"#, OK),
    Line("mounts.type", ByValue, r#"[{"destination":"/c","type":"cgroup"},{"destination":"/2","type":"cgroup2"}]"#, OK),
    Line("mounts.type", ByValue, r#"[{"destination":"/n","type":"nfs"}]"#, NO),
    Line("mounts.type", ByValue, r#"[{"destination":"/n"}]"#, NO),
    Line("mounts.source", Both, r#"[{"destination":"/m","type":"bind","source":"/dir"}]"#, OK),
    Line("mounts.source", Both, r#"[{"destination":"/m","source":"/file","options":["bind"]}]"#, OK),
    Line("mounts.source", Both, r#"[{"destination":"/m","type":"bind","source":"/socket"}]"#, NO),
    Line("mounts.source", Both, r#"[{"destination":"/m","type":"bind","source":"/missing"}]"#, NO),
    Line("mounts.source", Both, r#"[{"destination":"/m","type":"bind"}]"#, NO),
    Line("mounts.options", ByValue, r#"[{"destination":"/m","source":"/dir","options":["rbind","rro","nosuid"]}]"#, OK),
    Line("mounts.options", ByValue, r#"[{"destination":"/m","source":"/dir","options":["rbind","rprivate"]}]"#, OK),
    Line("mounts.options", ByValue, r#"[{"destination":"/m","source":"/dir","options":["rbind","rslave"]}]"#, NO),
    Line("mounts.options", ByValue, r#"[{"destination":"/m","source":"/dir","options":["rbind","rshared"]}]"#, NO),
    Line("mounts.options", ByValue, r#"[{"destination":"/m","source":"/dir","options":["bind","idmap"]}]"#, NO),
    Line("mounts.options", ByValue, r#"[{"destination":"/m","type":"tmpfs","options":["shared","size=1m"]}]"#, OK),
    Line("mounts.uidMappings", R, r#"[{"destination":"/m","type":"proc","uidMappings":[{"size":1}]}]"#, NO),
    Line("mounts.gidMappings", R, r#"[{"destination":"/m","type":"proc","gidMappings":[{"size":1}]}]"#, NO),
    Line("ociVersion", Host, r#""1.0.2""#, OK),
    Line("process.apparmorProfile", RefusedUnless("unconfined"), r#""docker-default""#, NO),
    Line("process.apparmorProfile", RefusedUnless("unconfined"), r#""unconfined""#, OK),
    Line("process.apparmorProfile", RefusedUnless("unconfined"), r#""""#, OK),
    Line("process.args", Guest, r#"["sh","-c","x"]"#, OK),
    Line("process.args", Guest, "[]", NO),
    Line("process.capabilities", Guest, r#"{"bounding":["CAP_KILL"]}"#, OK),
    Line("process.commandLine", R, r#""sh""#, NO),
    Line("process.consoleSize", Both, r#"{"height":1,"width":1}"#, OK),
    Line("process.cwd", Guest, r#""/tmp""#, OK),
    Line("process.cwd", Guest, r#""tmp""#, NO),
    Line("process.env", Guest, r#"["A=B"]"#, OK),
    Line("process.execCPUAffinity", R, r#"{"initial":"0"}"#, NO),
    Line("process.ioPriority", Guest, r#"{"class":"IOPRIO_CLASS_BE","priority":4}"#, OK),
    Line("process.noNewPrivileges", Guest, "true", OK),
    Line("process.oomScoreAdj", Both, "100", OK),
    Line("process.rlimits", Guest, r#"[{"type":"RLIMIT_NOFILE","soft":1,"hard":1}]"#, OK),
    Line("process.scheduler", Guest, r#"{"policy":"SCHED_OTHER"}"#, OK),
    Line("process.selinuxLabel", R, r#""system_u:system_r:container_t:s0""#, NO),
    Line("process.terminal", Both, "true", OK),
    Line("process.user.uid", Guest, "7", OK),
    Line("process.user.gid", Guest, "7", OK),
    Line("process.user.umask", Guest, "18", OK),
    Line("process.user.additionalGids", Guest, "[5]", OK),
    Line("process.user.username", R, r#""me""#, NO),
    Line("root.path", Host, r#""elsewhere""#, OK),
    Line("root.path", Host, r#""""#, NO),
    Line("root.readonly", Both, "true", OK),
    Line("solaris", R, r#"{"milestone":"x"}"#, NO),
    Line("vm", R, r#"{"kernel":{"path":"/vmlinux"}}"#, NO),
    Line("windows", R, r#"{"layerFolders":["a"]}"#, NO),
    Line("zos", R, r#"{"namespaces":[{"type":"pid"}]}"#, NO),
];

fn kind(path: &Path) -> Result<FileKind, String> {
    match path.to_str() {
        Some("/file") => Ok(FileKind::File),
        Some("/socket") => Ok(FileKind::Special),
        Some("/missing") => Err("stat /missing: No such file or directory".into()),
        _ => Ok(FileKind::Directory),
    }
}

fn planned(value: &Value) -> Result<Plan, Refused> {
    let spec: Spec =
        serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{value}: {e}"));
    let facts = Facts {
        bundle: Path::new("/b"),
        memory: 1 << 34,
        kind: &kind,
    };
    plan(&spec, value, &facts)
}

fn minimal() -> Value {
    let json = format!(
        r#"{{"ociVersion":"1.3.0","root":{{"path":"rootfs"}},"process":{{{PROCESS}}},
            "linux":{{"namespaces":[{NAMESPACES}]}}}}"#
    );
    serde_json::from_str(&json).unwrap()
}

/// A minimal configuration with one property set. What is inside an array is given with the array.
fn with(property: &str, value: &str) -> Value {
    let mut config = minimal();
    let path = property
        .replace("linux.namespaces.path", "linux.namespaces")
        .replace("linux.namespaces.type", "linux.namespaces");
    let path = if path.starts_with("mounts.") {
        "mounts"
    } else {
        &path
    };
    let mut at = &mut config;
    for key in path.split('.') {
        at = &mut at[key];
    }
    *at = serde_json::from_str(value).unwrap_or_else(|e| panic!("{property} {value}: {e}"));
    config
}

#[test]
fn every_property_ends_where_the_table_says() {
    for Line(property, place, value, refused) in TABLE {
        assert_eq!(ledger::place(property), Some(*place), "{property}");
        let plan = planned(&with(property, value));
        assert_eq!(
            plan.is_err(),
            *refused,
            "{property} {value}: {:?}",
            plan.err()
        );
        if let Err(e) = plan {
            let (area, _) = property.split_once('.').unwrap_or((property, ""));
            let text = e.to_string();
            assert!(text.starts_with(area), "{property} {value}: {text}");
        }
    }
}

#[test]
fn the_table_has_every_property_of_the_ledger() {
    for (property, place) in ledger::entries() {
        let listed = TABLE.iter().any(|line| line.0 == property);
        assert_eq!(listed, place != Place::Inner, "{property}");
    }
}

#[test]
fn all_that_is_refused_is_named() {
    let mut config = with("vm", r#"{"kernel":{"path":"/vmlinux"}}"#);
    config["linux"]["seccomp"] = serde_json::json!({"defaultAction": "SCMP_ACT_NOTIFY"});
    config["linux"]["devices"] =
        serde_json::json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]);
    let error = planned(&config).err().unwrap().to_string();
    assert_eq!(
        error,
        "vm, linux.devices[0] (block device), linux.seccomp.defaultAction SCMP_ACT_NOTIFY are not supported yet"
    );
}

#[test]
fn the_minimal_plan() {
    let plan = planned(&minimal()).ok().unwrap();
    assert_eq!((plan.memory, plan.vcpus), (512 << 20, 1));
    assert_eq!(
        plan.overlay,
        Overlay {
            rootfs: "rootfs".into(),
            binds: vec![],
            seccomp: None
        }
    );
    assert!(matches!(plan.network, Network::New));
    let [rootfs] = &plan.shares[..] else {
        panic!("one share")
    };
    assert_eq!(
        (rootfs.name.as_str(), rootfs.source.as_path()),
        ("rootfs", Path::new("/b/rootfs"))
    );
    assert!(rootfs.recursive && !rootfs.readonly);
    assert!(plan.warnings.is_empty());
}

#[test]
fn nothing_said_of_linux_asks_for_nothing() {
    let mut config = minimal();
    config.as_object_mut().unwrap().remove("linux");
    let plan = planned(&config).ok().unwrap();
    assert_eq!(plan.limits.len(), 1);
    assert!(matches!(plan.network, Network::New));
}

#[test]
fn bind_mounts_become_shares() {
    let config = with(
        "mounts",
        r#"[{"destination":"/proc","type":"proc"},
            {"destination":"/a","type":"bind","source":"data","options":["rbind","ro"]},
            {"destination":"/b","source":"/file","options":["bind"]}]"#,
    );
    let plan = planned(&config).ok().unwrap();
    assert_eq!(
        plan.overlay.binds,
        [(1, "mnt/0".to_owned()), (2, "mnt/1".to_owned())]
    );
    let shares: Vec<_> = plan.shares[1..]
        .iter()
        .map(|s| {
            (
                s.name.as_str(),
                s.source.to_str().unwrap(),
                s.recursive,
                s.readonly,
            )
        })
        .collect();
    assert_eq!(
        shares,
        [
            ("mnt/0", "/b/data", true, true),
            ("mnt/1", "/file", false, false)
        ]
    );
}

#[test]
fn the_network_namespace_of_a_path_is_joined() {
    let config = with(
        "linux.namespaces",
        r#"[{"type":"network","path":"/run/netns/x"}]"#,
    );
    let plan = planned(&config).ok().unwrap();
    assert!(matches!(plan.network, Network::Path(path) if path == Path::new("/run/netns/x")));
}

#[test]
fn a_hostname_needs_a_uts_namespace() {
    let mut config = with("hostname", r#""h""#);
    config["linux"]["namespaces"] = serde_json::json!([]);
    let error = planned(&config).err().unwrap().to_string();
    assert_eq!(
        error,
        "hostname: cannot be set without a private UTS namespace"
    );
}

#[test]
fn unknown_properties_are_warnings() {
    let plan = planned(&with("linux.galaxy", "1")).ok().unwrap();
    assert_eq!(plan.warnings, ["ignoring unknown property linux.galaxy"]);
}

#[test]
fn a_process_and_a_root_are_needed() {
    for property in ["process", "root"] {
        let mut config = minimal();
        config.as_object_mut().unwrap().remove(property);
        assert!(
            planned(&config)
                .err()
                .unwrap()
                .to_string()
                .starts_with(property)
        );
    }
}
