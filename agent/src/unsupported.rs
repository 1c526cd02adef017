//! What the specification can ask for and the guest does not do. Asking for it is an error that
//! names the property; nothing is dropped in silence.

use oci_spec::runtime::{
    Linux, LinuxMemory, LinuxNamespaceType, LinuxResources, LinuxSeccomp, LinuxSeccompAction,
    Mount, Process, Spec,
};
use protocol::Overlay;

/// The properties of `spec` that are not supported, by their names in `config.json`. `overlay` is
/// the host's part of it.
pub(crate) fn unsupported(spec: &Spec, overlay: &Overlay) -> Vec<String> {
    let mut found = Vec::new();
    let mut note = |present: bool, name: &str| {
        if present {
            found.push(name.to_owned());
        }
    };
    note(spec.solaris().is_some(), "solaris");
    note(spec.windows().is_some(), "windows");
    note(spec.zos().is_some(), "zos");
    note(spec.vm().is_some(), "vm");
    if let Some(process) = spec.process() {
        of_process(process, &mut note);
    }
    if let Some(linux) = spec.linux() {
        of_linux(linux, &mut note);
        let seccomp = linux.seccomp().as_ref();
        let lost = overlay.seccomp.is_none() && seccomp.is_some_and(filters);
        note(lost, "linux.seccomp (not compiled)");
        if let Some(resources) = linux.resources() {
            of_resources(resources, &mut note);
        }
    }
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        of_mount(mount, index, &mut note);
    }
    found
}

/// The limits of `resources` that are not supported.
pub(crate) fn unsupported_resources(resources: &LinuxResources) -> Vec<String> {
    let mut found = Vec::new();
    of_resources(resources, &mut |present, name: &str| {
        if present {
            found.push(name.to_owned());
        }
    });
    found
}

/// The properties of the process of an exec that are not supported.
pub(crate) fn unsupported_process(process: &Process) -> Vec<String> {
    let mut found = Vec::new();
    of_process(process, &mut |present, name: &str| {
        if present {
            found.push(name.to_owned());
        }
    });
    found
}

fn of_process(process: &Process, note: &mut impl FnMut(bool, &str)) {
    let label = |label: &Option<String>| label.as_ref().is_some_and(|l| !l.is_empty());
    let profile = process.apparmor_profile();
    note(
        label(profile) && profile.as_deref() != Some("unconfined"),
        "process.apparmorProfile",
    );
    note(label(process.selinux_label()), "process.selinuxLabel");
    note(process.command_line().is_some(), "process.commandLine");
}

fn of_linux(linux: &Linux, note: &mut impl FnMut(bool, &str)) {
    // Network devices are not here: the host has moved them to where it finds all interfaces.
    note(
        linux.mount_label().as_ref().is_some_and(|l| !l.is_empty()),
        "linux.mountLabel",
    );
    // The host has joined the network namespace of a path; the guest's counterpart of it is a new one.
    let namespaces = linux.namespaces().iter().flatten();
    for namespace in namespaces.filter(|ns| ns.typ() != LinuxNamespaceType::Network) {
        let named = namespace
            .path()
            .as_ref()
            .is_some_and(|p| !p.as_os_str().is_empty());
        note(
            named,
            &format!("linux.namespaces[{}].path", name(namespace.typ())),
        );
    }
}

/// Whether a filter could ever do anything but allow.
fn filters(seccomp: &LinuxSeccomp) -> bool {
    let rules = seccomp.syscalls().iter().flatten();
    rules
        .map(|rule| rule.action())
        .chain([seccomp.default_action()])
        .any(|action| action != LinuxSeccompAction::ScmpActAllow)
}

/// A namespace's name in the configuration.
fn name(namespace: LinuxNamespaceType) -> &'static str {
    match namespace {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}

fn of_resources(resources: &LinuxResources, note: &mut impl FnMut(bool, &str)) {
    // Block I/O is not here: the host does the guest's.
    if let Some(network) = resources.network() {
        note(
            network.class_id().is_some_and(|id| id != 0),
            "linux.resources.network.classID",
        );
        let priorities = network.priorities().as_ref().is_some_and(|p| !p.is_empty());
        note(priorities, "linux.resources.network.priorities");
    }
    note(
        resources.rdma().as_ref().is_some_and(|r| !r.is_empty()),
        "linux.resources.rdma",
    );
    if let Some(cpu) = resources.cpu() {
        let runtime = cpu.realtime_runtime().is_some_and(|v| v != 0);
        note(runtime, "linux.resources.cpu.realtimeRuntime");
        let period = cpu.realtime_period().is_some_and(|v| v != 0);
        note(period, "linux.resources.cpu.realtimePeriod");
    }
    if let Some(memory) = resources.memory() {
        of_memory(memory, note);
    }
    for key in resources
        .unified()
        .iter()
        .flat_map(|unified| unified.keys())
    {
        let controller = key.split('.').next().unwrap_or_default();
        let known = ["memory", "cpu", "pids", "hugetlb", "io", "cpuset"].contains(&controller);
        note(!known, &format!("linux.resources.unified[{key}]"));
    }
}

/// Swappiness is not here: the guest has no swap, so any value of it holds.
fn of_memory(memory: &LinuxMemory, note: &mut impl FnMut(bool, &str)) {
    let set = |value: Option<i64>| value.is_some_and(|v| v > 0);
    note(set(memory.kernel()), "linux.resources.memory.kernel");
    note(set(memory.kernel_tcp()), "linux.resources.memory.kernelTCP");
    note(
        memory.disable_oom_killer() == Some(true),
        "linux.resources.memory.disableOOMKiller",
    );
    note(
        memory.use_hierarchy() == Some(false),
        "linux.resources.memory.useHierarchy",
    );
}

fn of_mount(mount: &Mount, index: usize, note: &mut impl FnMut(bool, &str)) {
    let options = mount.options().iter().flatten().map(String::as_str);
    if options
        .clone()
        .any(|option| matches!(option, "bind" | "rbind"))
    {
        for option in options.filter(|option| matches!(*option, "shared" | "rshared")) {
            // What the container mounts could never appear on the host.
            note(true, &format!("mounts[{index}].options {option}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Vec<String> {
        unsupported(&serde_json::from_str(json).unwrap(), &Overlay::default())
    }

    #[test]
    fn an_ordinary_configuration_passes() {
        let json = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},
            "process":{"user":{"uid":0,"gid":0},"cwd":"/","args":["sh"],
                "apparmorProfile":"unconfined","selinuxLabel":""},
            "hooks":{"poststart":[{"path":"/x"}],"startContainer":[{"path":"/x"}]},
            "mounts":[{"destination":"/m","type":"bind","source":"/x","options":["rbind","rslave"]},
                {"destination":"/t","type":"tmpfs","source":"t","options":["shared"]}],
            "linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/n"}],
                "resources":{"memory":{"limit":1,"swap":1,"swappiness":60},"blockIO":{"weight":10},
                    "cpu":{"shares":1,"realtimeRuntime":0},"unified":{"memory.high":"1","io.max":"1"}}}}"#;
        assert_eq!(of(json), Vec::<String>::new());
    }

    #[test]
    fn each_property_is_named() {
        let json = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},
            "process":{"user":{"uid":0,"gid":0},"cwd":"/","apparmorProfile":"p",
                "selinuxLabel":"l"},
            "mounts":[{"destination":"/m","options":["rbind","rshared","idmap"]}],
            "linux":{"namespaces":[{"type":"ipc","path":"/n"}],"mountLabel":"m",
                "seccomp":{"defaultAction":"SCMP_ACT_ERRNO"},
                "resources":{"memory":{"disableOOMKiller":true},
                    "network":{"classID":5},"rdma":{"a":{"hcaHandles":1}},
                    "cpu":{"realtimeRuntime":5},"unified":{"misc.max":"1"}}}}"#;
        let expected = [
            "process.apparmorProfile",
            "process.selinuxLabel",
            "linux.mountLabel",
            "linux.namespaces[ipc].path",
            "linux.seccomp (not compiled)",
            "linux.resources.network.classID",
            "linux.resources.rdma",
            "linux.resources.cpu.realtimeRuntime",
            "linux.resources.memory.disableOOMKiller",
            "linux.resources.unified[misc.max]",
            "mounts[0].options rshared",
        ];
        assert_eq!(of(json), expected);
    }

    #[test]
    fn a_filter_has_to_come_compiled_if_it_filters() {
        let lost = |seccomp: &str| {
            of(&format!(
                r#"{{"ociVersion":"1.0.2","linux":{{"seccomp":{seccomp}}}}}"#
            ))
        };
        let allow = r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#;
        assert_eq!(lost(allow), Vec::<String>::new());
        let rule = r#"{"defaultAction":"SCMP_ACT_ALLOW",
            "syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}"#;
        assert_eq!(lost(rule), ["linux.seccomp (not compiled)"]);
        let json = format!(r#"{{"ociVersion":"1.0.2","linux":{{"seccomp":{rule}}}}}"#);
        let compiled = Overlay {
            seccomp: Some(protocol::Seccomp::default()),
            ..Overlay::default()
        };
        let spec = serde_json::from_str(&json).unwrap();
        assert_eq!(unsupported(&spec, &compiled), Vec::<String>::new());
    }
}
