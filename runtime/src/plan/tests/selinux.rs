//! `process.selinuxLabel` and `linux.mountLabel`: what the host is told.

use super::*;
use crate::host::selinux::Use;

/// The policy knows these types; processes of machines have one of their own.
pub(super) fn label(what: Use, label: &str) -> Result<String, String> {
    match what {
        Use::Process if label.contains(":container_t:") => {
            Ok(label.replace("container_t", "machine_t"))
        }
        Use::Process if label.contains(":machine_t:") => Ok(label.to_owned()),
        Use::Files if label.contains(":file_t:") => Ok(label.to_owned()),
        _ => Err(format!("{label:?} is not known")),
    }
}

/// The machine of `pod` has labels.
pub(super) fn labels_of(sandbox: &str) -> Option<Labels> {
    let has = |label: &str| (sandbox == "pod").then(|| label.to_owned());
    let labels = Labels {
        process: has("u:r:machine_t:s0:c1,c2"),
        files: has("u:object_r:file_t:s0:c1,c2"),
    };
    (!sandbox.starts_with("ns:")).then_some(labels)
}

fn labelled(process: &str, mount: &str) -> Value {
    let mut config = with("process.selinuxLabel", &format!("{process:?}"));
    config["linux"]["mountLabel"] = mount.into();
    config
}

fn member(container: i32, process: &str, mount: &str) -> Value {
    let mut config = labelled(process, mount);
    let path = format!("/proc/{container}/ns/ipc");
    config["linux"]["namespaces"] = json!([{"type": "ipc", "path": path}]);
    config
}

#[test]
fn a_machine_has_the_label_with_its_own_type() {
    let config = labelled("u:r:container_t:s0:c1,c2", "u:object_r:file_t:s0:c1,c2");
    let plan = planned(&config).ok().unwrap();
    assert_eq!(Some(plan.labels), labels_of("pod"));
    let plan = planned(&labelled("", "")).ok().unwrap();
    assert_eq!(plan.labels, Labels::default());
    let strange = planned(&labelled("u:r:x_t:s0", "x")).err().unwrap();
    let text = "process.selinuxLabel: \"u:r:x_t:s0\" is not known";
    assert!(strange.to_string().contains(text), "{strange}");
    assert!(
        strange.to_string().contains("linux.mountLabel: \"x\""),
        "{strange}"
    );
}

#[test]
fn the_first_container_of_a_pod_of_pinned_namespaces_says_what_the_machine_has() {
    let mut config = labelled("u:r:container_t:s0:c1,c2", "u:object_r:file_t:s0:c1,c2");
    let path = |kind: &str| json!({"type": kind, "path": format!("/run/{kind}ns/new")});
    config["linux"]["namespaces"] =
        json!([path("uts"), path("ipc"), {"type": "pid"}, {"type": "mount"}]);
    let plan = planned(&config).ok().unwrap();
    assert_eq!(plan.member.unwrap().sandbox, "ns:1");
    assert_eq!(Some(plan.labels), labels_of("pod"));
}

#[test]
fn a_member_has_the_level_of_its_machine() {
    let of = |config: &Value| {
        planned(config)
            .map(|plan| plan.labels)
            .map_err(|e| e.to_string())
    };
    let its = "u:r:container_t:s0:c1,c2";
    assert_eq!(of(&member(7, its, "")), Ok(labels_of("pod").unwrap()));
    assert_eq!(of(&member(7, "", "")), Ok(labels_of("pod").unwrap()));
    assert_eq!(of(&member(9, "", "")), Ok(Labels::default()));
    for (process, mount, text) in [
        (
            "u:r:container_t:s0:c3,c4",
            "",
            "process.selinuxLabel: \"u:r:machine_t:s0:c3,c4\": the machine has another SELinux level: \
             \"u:r:machine_t:s0:c1,c2\"",
        ),
        (
            its,
            "u:object_r:file_t:s0",
            "linux.mountLabel: \"u:object_r:file_t:s0\": the machine has another SELinux level: \
             \"u:object_r:file_t:s0:c1,c2\"",
        ),
    ] {
        assert_eq!(of(&member(7, process, mount)), Err(text.to_owned()));
    }
    let none = of(&member(9, its, "")).unwrap_err();
    assert!(none.ends_with("the machine has no label"), "{none}");
}

#[test]
fn without_selinux_labels_are_refused_in_the_words_of_runc() {
    let facts = Facts {
        selinux: None,
        ..facts()
    };
    let of = |process, mount| decided_on(&labelled(process, mount), &facts).plan;
    let words = "selinux label is specified in config, but selinux is disabled or not supported";
    for (process, mount, property) in [
        ("u:r:container_t:s0", "", "process.selinuxLabel"),
        ("", "u:object_r:file_t:s0", "linux.mountLabel"),
    ] {
        let error = of(process, mount).err().unwrap().to_string();
        assert_eq!(error, format!("{property}: {words}"));
    }
    assert!(of("", "").is_ok());
}
