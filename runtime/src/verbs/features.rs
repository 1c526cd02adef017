//! `features`: what this runtime supports, as the specification has it (features.md, features-linux.md).

use std::collections::BTreeMap;

use oci_spec::runtime::{
    Apparmor, Arch, Cgroup, Features, IDMap, IntelRdt, LinuxFeature, LinuxSeccompAction,
    MemoryPolicy, MountExtensions, NetDevices, Seccomp, Selinux,
};
use specification::{CAPABILITIES, HookKind, namespace};

use crate::config::SPEC_VERSION;
use crate::host::{apparmor, selinux};
use crate::plan::{ANNOTATIONS, mount_options, seccomp};

/// The lowest version of the specification whose configurations are accepted.
const SPEC_VERSION_MIN: &str = "1.0.0";

const SECCOMP_ACTIONS: [LinuxSeccompAction; 8] = [
    LinuxSeccompAction::ScmpActAllow,
    LinuxSeccompAction::ScmpActErrno,
    LinuxSeccompAction::ScmpActKill,
    LinuxSeccompAction::ScmpActKillProcess,
    LinuxSeccompAction::ScmpActKillThread,
    LinuxSeccompAction::ScmpActLog,
    LinuxSeccompAction::ScmpActTrace,
    LinuxSeccompAction::ScmpActTrap,
];

const SECCOMP_OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

/// The architectures that a profile can name; those that the linked libseccomp cannot combine with this one are not
/// reported.
const SECCOMP_ARCHITECTURES: [Arch; 24] = [
    Arch::ScmpArchNative,
    Arch::ScmpArchX86,
    Arch::ScmpArchX86_64,
    Arch::ScmpArchX32,
    Arch::ScmpArchArm,
    Arch::ScmpArchAarch64,
    Arch::ScmpArchMips,
    Arch::ScmpArchMips64,
    Arch::ScmpArchMips64n32,
    Arch::ScmpArchMipsel,
    Arch::ScmpArchMipsel64,
    Arch::ScmpArchMipsel64n32,
    Arch::ScmpArchPpc,
    Arch::ScmpArchPpc64,
    Arch::ScmpArchPpc64le,
    Arch::ScmpArchS390,
    Arch::ScmpArchS390x,
    Arch::ScmpArchParisc,
    Arch::ScmpArchParisc64,
    Arch::ScmpArchRiscv64,
    Arch::ScmpArchLoongarch64,
    Arch::ScmpArchM68k,
    Arch::ScmpArchSh,
    Arch::ScmpArchSheb,
];

/// Without a listener the last one means nothing, and listeners are refused.
const SECCOMP_FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];
const SECCOMP_FLAGS_SUPPORTED: usize = 3;

const MEMORY_POLICIES: [&str; 7] = [
    "MPOL_BIND",
    "MPOL_DEFAULT",
    "MPOL_INTERLEAVE",
    "MPOL_LOCAL",
    "MPOL_PREFERRED",
    "MPOL_PREFERRED_MANY",
    "MPOL_WEIGHTED_INTERLEAVE",
];

const MEMORY_POLICY_FLAGS: [&str; 3] = [
    "MPOL_F_NUMA_BALANCING",
    "MPOL_F_RELATIVE_NODES",
    "MPOL_F_STATIC_NODES",
];

/// Annotations that are another's and change what is done: all that begin so.
const SYSTEMD_PROPERTIES: &str = "org.systemd.property.";

/// What this runtime supports, as JSON.
pub(crate) fn features() -> String {
    // By way of a value: annotations come in the same order each time.
    serde_json::to_value(supported())
        .and_then(|value| serde_json::to_string_pretty(&value))
        .map(|text| text + "\n")
        .unwrap_or_default()
}

fn supported() -> Features {
    let annotations = BTreeMap::from([
        ("dev.chiton.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("dev.chiton.commit", env!("CHITON_COMMIT").to_owned()),
        ("io.github.seccomp.libseccomp.version", seccomp::version()),
    ]);
    let annotations = annotations
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value));
    let mut features = Features::default();
    features
        .set_oci_version_min(SPEC_VERSION_MIN.to_owned())
        .set_oci_version_max(SPEC_VERSION.to_owned())
        .set_hooks(texts(HookKind::ALL))
        .set_mount_options(Some(mount_options()))
        .set_linux(Some(linux()))
        .set_annotations(Some(annotations.collect()))
        .set_potentially_unsafe_config_annotations(names(
            &[&ANNOTATIONS[..], &[SYSTEMD_PROPERTIES]].concat(),
        ));
    features
}

fn linux() -> LinuxFeature {
    let mut cgroup = Cgroup::default();
    cgroup
        .set_v1(Some(false))
        .set_v2(Some(true))
        .set_systemd(Some(true))
        .set_systemd_user(Some(false))
        .set_rdma(Some(false));
    let mut apparmor = Apparmor::default();
    apparmor.set_enabled(Some(apparmor::is_enabled() && apparmor::check().is_ok()));
    let mut selinux = Selinux::default();
    selinux.set_enabled(Some(selinux::is_enabled()));
    let mut intel_rdt = IntelRdt::default();
    intel_rdt
        .set_enabled(Some(true))
        .set_schemata(Some(true))
        .set_monitoring(Some(true));
    let mut memory_policy = MemoryPolicy::default();
    memory_policy
        .set_modes(names(&MEMORY_POLICIES))
        .set_flags(names(&MEMORY_POLICY_FLAGS));
    let mut id_map = IDMap::default();
    id_map.set_enabled(Some(true));
    let mut mount_extensions = MountExtensions::default();
    mount_extensions.set_idmap(Some(id_map));
    let mut net_devices = NetDevices::default();
    net_devices.set_enabled(Some(true));
    let mut linux = LinuxFeature::default();
    linux
        .set_namespaces(Some(namespace::ALL.to_vec()))
        .set_capabilities(texts(CAPABILITIES.map(|name| format!("CAP_{name}"))))
        .set_cgroup(Some(cgroup))
        .set_seccomp(Some(seccomp_features()))
        .set_apparmor(Some(apparmor))
        .set_selinux(Some(selinux))
        .set_intel_rdt(Some(intel_rdt))
        .set_memory_policy(Some(memory_policy))
        .set_mount_extensions(Some(mount_extensions))
        .set_net_devices(Some(net_devices));
    linux
}

fn seccomp_features() -> Seccomp {
    let mut architectures = SECCOMP_ARCHITECTURES.to_vec();
    architectures.retain(|arch| seccomp::combines(*arch));
    let mut features = Seccomp::default();
    features
        .set_enabled(Some(true))
        .set_actions(Some(SECCOMP_ACTIONS.to_vec()))
        .set_operators(names(&SECCOMP_OPERATORS))
        .set_archs(Some(architectures))
        .set_known_flags(names(&SECCOMP_FLAGS))
        .set_supported_flags(names(&SECCOMP_FLAGS[..SECCOMP_FLAGS_SUPPORTED]));
    features
}

fn texts<T: ToString>(list: impl IntoIterator<Item = T>) -> Option<Vec<String>> {
    Some(
        list.into_iter()
            .map(|element| element.to_string())
            .collect(),
    )
}

fn names(names: &[&str]) -> Option<Vec<String>> {
    Some(names.iter().map(|name| (*name).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use oci_spec::runtime::{Capability, LinuxSeccomp};
    use serde::Deserialize;
    use serde_json::{Value, json};
    use specification::MountOption;

    use super::*;
    use crate::plan::{Facts, FileKind, Owner, decide};

    fn refuses(mount: Value) -> bool {
        let config = json!({"ociVersion": "1.0.0", "root": {"path": "rootfs"}, "mounts": [mount],
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sh"]},
            "linux": {"namespaces": [{"type": "user"}, {"type": "network"}, {"type": "pid"}],
                "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}],
                "gidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}});
        let facts = Facts {
            bundle: Path::new("/b"),
            memory: 8 << 30,
            room: 8 << 30,
            kind: &|_| Ok(FileKind::Directory),
            real: &|_, path| path.to_owned(),
            systemd: false,
            resctrl: false,
            policies: None,
            selinux: None,
            labels: &|_| None,
            namespace: &|_, _| Ok(Owner::Host),
            annotations: &|_| BTreeMap::new(),
        };
        let spec = serde_json::from_value(config.clone()).unwrap();
        decide(&spec, &config, &facts).plan.is_err()
    }

    #[test]
    fn mount_options_are_those_that_no_plan_refuses() {
        let accepted = MountOption::names().filter(|option| {
            // Ids are mapped for bind mounts alone.
            let kinds = match option.ends_with("idmap") {
                true => &["bind"][..],
                false => &["bind", "tmpfs"],
            };
            kinds.iter().all(|kind| {
                !refuses(
                    json!({"destination": "/m", "type": kind, "source": "s", "options": [option]}),
                )
            })
        });
        let accepted: BTreeSet<String> = accepted.collect();
        assert_eq!(accepted.len(), 62);
        assert!(accepted.iter().eq(&mount_options()));
    }

    fn compiles(profile: Value) -> bool {
        let Ok(profile) = serde_json::from_value::<LinuxSeccomp>(profile) else {
            return false;
        };
        seccomp::unsupported(&profile).is_empty() && seccomp::compile(&profile).is_ok()
    }

    #[test]
    fn seccomp_is_what_compiles() {
        let features = serde_json::to_value(seccomp_features()).unwrap();
        let list = |key: &str| features[key].as_array().unwrap().clone();
        let rule = |action: &Value, operator: &Value| {
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"],
                "action": action, "args": [{"index": 0, "value": 1, "op": operator}]}]})
        };
        let (errno, equal) = (json!("SCMP_ACT_ERRNO"), json!("SCMP_CMP_EQ"));
        let actions = list("actions");
        assert_eq!(actions.len(), 8);
        for action in actions.iter().filter(|action| **action != "SCMP_ACT_ALLOW") {
            assert!(compiles(rule(action, &equal)), "{action}");
        }
        assert!(!compiles(rule(&json!("SCMP_ACT_NOTIFY"), &equal)));
        assert_eq!(list("operators").len(), 7);
        for operator in list("operators") {
            assert!(compiles(rule(&errno, &operator)), "{operator}");
        }
        let with = |key: &str, value: &Value| {
            json!({"defaultAction": "SCMP_ACT_ERRNO", key: [value],
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]})
        };
        let architectures = list("archs");
        assert!(architectures.contains(&json!("SCMP_ARCH_X86_64")));
        for arch in SECCOMP_ARCHITECTURES {
            let arch = serde_json::to_value(arch).unwrap();
            let listed = architectures.contains(&arch);
            assert_eq!(compiles(with("architectures", &arch)), listed, "{arch}");
        }
        for flag in list("knownFlags") {
            let listed = list("supportedFlags").contains(&flag);
            assert_eq!(compiles(with("flags", &flag)), listed, "{flag}");
        }
    }

    #[test]
    fn memory_policies_are_those_of_the_specification() {
        for mode in MEMORY_POLICIES {
            let policy = json!({"mode": mode, "flags": MEMORY_POLICY_FLAGS});
            serde_json::from_value::<oci_spec::runtime::LinuxMemoryPolicy>(policy).unwrap();
        }
    }

    #[test]
    fn capabilities_have_the_names_of_the_specification() {
        let features = serde_json::to_value(linux()).unwrap();
        let names = features["capabilities"].as_array().unwrap().iter();
        let parsed: Vec<_> = names.map(|c| Capability::deserialize(c).unwrap()).collect();
        assert_eq!(parsed, CAPABILITIES);
    }

    #[test]
    fn nothing_is_unknown() {
        fn check(value: &Value, name: &str) {
            assert!(!value.is_null(), "{name}");
            for (key, value) in value.as_object().into_iter().flatten() {
                check(value, key);
            }
        }
        let text = features();
        let value: Value = serde_json::from_str(&text).unwrap();
        check(&value, "");
        assert_eq!(value["ociVersionMax"], "1.3.0");
        assert_eq!(value["linux"]["namespaces"][5], "time");
        assert_eq!(
            value["annotations"]["dev.chiton.version"],
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(text, features());
    }
}
