//! Namespaces that are joined, and those of the host that no machine can have.

use super::*;
use crate::state::{Identity, Pinned, Pins, Seat};

/// Process 7 is the machine of the container `pod`, 8 its third member, 9 another machine. Below /run namespaces are
/// pinned: those of `new`, a pod without a machine, and of `made`, whose machine is process 6 and which has member 5.
pub(super) fn owner(path: &Path) -> Owner {
    let of = |sandbox: &str, pid, number| Seat {
        sandbox: sandbox.into(),
        machine: Identity {
            pid,
            start_time: 1,
            boot: "1f".to_owned().try_into().unwrap(),
        },
        number,
    };
    let pin = |inode, pod: Option<Pins>| {
        Owner::Pinned(Pin {
            inode,
            pod: pod.map(|pins| (of("ns:11", 6, 0).machine, pins)),
            maps: (inode == 4).then(id_maps),
        })
    };
    match path.to_str().unwrap() {
        "/run/utsns/new" => pin(1, None),
        "/run/ipcns/new" => pin(2, None),
        "/run/netns/new" => pin(3, None),
        "/run/userns/new" => pin(4, None),
        "/run/utsns/made" => pin(11, Some(MADE)),
        "/run/ipcns/made" => pin(12, None),
        "/run/netns/made" => pin(13, None),
        path => match path.split('/').nth(2) {
            Some("5") => Owner::Container(of("ns:11", 6, 1)),
            Some("7") => Owner::Container(of("pod", 7, 0)),
            Some("8") => Owner::Container(of("pod", 7, 3)),
            Some("9") => Owner::Container(of("other", 9, 0)),
            _ => Owner::Host,
        },
    }
}

/// The maps of the pinned user namespace.
fn id_maps() -> IdMaps {
    IdMaps {
        uids: "         0     100000      65536\n".into(),
        gids: "         0     200000      65536\n".into(),
    }
}

const MADE: Pins = Pins {
    uts: 11,
    ipc: 12,
    net: Some(13),
    user: None,
};

/// What `pod` says of its machine.
pub(super) fn annotations_of(sandbox: &str) -> BTreeMap<String, String> {
    let said = [(annotations::MEMORY.to_owned(), "1G".to_owned())];
    said.into_iter().filter(|_| sandbox == "pod").collect()
}

fn joining(paths: &[(&str, &str)]) -> Value {
    let paths = paths
        .iter()
        .map(|(kind, path)| json!({"type": kind, "path": path}));
    with(
        "linux.namespaces",
        &paths
            .collect::<Vec<_>>()
            .into_iter()
            .collect::<Value>()
            .to_string(),
    )
}

#[test]
fn who_joins_namespaces_of_a_container_is_a_member_of_its_machine() {
    let flag = specification::namespace::flag;
    let joined = |container, kinds: &[LinuxNamespaceType]| protocol::Joined {
        container,
        namespaces: kinds.iter().fold(0, |all, kind| all | flag(*kind)),
    };
    use LinuxNamespaceType::{Ipc, Network as Net, Pid};
    let config = joining(&[
        ("network", "/proc/7/ns/net"),
        ("ipc", "/proc/7/ns/ipc"),
        ("pid", "/proc/8/ns/pid"),
    ]);
    let plan = planned(&config).ok().unwrap();
    let member = plan.member.unwrap();
    let machine = member.machine.map(|machine| machine.pid);
    assert_eq!((member.sandbox.as_str(), machine), ("pod", Some(7)));
    assert_eq!(member.joins, [joined(0, &[Net, Ipc]), joined(3, &[Pid])]);
    assert!(!plan.own_pids);
    assert!(matches!(plan.network, Network::Guests));
    let own = joining(&[("ipc", "/proc/7/ns/ipc"), ("network", "")]);
    assert!(matches!(planned(&own).ok().unwrap().network, Network::New));
    assert!(
        planned(&joining(&[("uts", "")]))
            .ok()
            .unwrap()
            .member
            .is_none()
    );
}

#[test]
fn what_no_member_can_have_is_refused() {
    let refusal = |config: &Value| planned(config).err().unwrap().to_string();
    let two = joining(&[("network", "/proc/7/ns/net"), ("ipc", "/proc/9/ns/ipc")]);
    assert!(
        refusal(&two).starts_with("linux.namespaces[1].path: "),
        "{}",
        refusal(&two)
    );
    assert!(refusal(&two).contains("container other, and another one in that of pod"));
    let mounts = refusal(&joining(&[("mount", "/proc/7/ns/mnt")]));
    assert!(mounts.contains("each container of a machine has mounts of its own"));
    let member = joining(&[("ipc", "/proc/7/ns/ipc")]);
    for (property, value) in [
        (
            "linux.devices",
            r#"[{"path":"/dev/x","type":"b","major":8,"minor":0}]"#,
        ),
        ("linux.netDevices", r#"{"eth1":{}}"#),
        ("linux.sysctl", r#"{"vm.overcommit_memory":"1"}"#),
        ("linux.memoryPolicy", r#"{"mode":"MPOL_BIND","nodes":"0"}"#),
    ] {
        let mut config = member.clone();
        let name = property.strip_prefix("linux.").unwrap();
        config["linux"][name] = serde_json::from_str(value).unwrap();
        let text = refusal(&config);
        assert!(
            text.contains(property) && text.contains("belongs to the machine"),
            "{text}"
        );
    }
    for (text, refused) in [("1G", false), ("2G", true)] {
        let mut config = member.clone();
        config["annotations"][annotations::MEMORY] = text.into();
        let error = planned(&config).err().map(|e| e.to_string());
        assert_eq!(error.is_some(), refused, "{error:?}");
        let named = |error: String| error.contains("is not what container pod says");
        assert!(error.is_none_or(named));
    }
}

#[test]
fn whose_namespace_it_is_is_said() {
    let refusal = |path: &str| {
        let json = format!(r#"[{{"type":"ipc","path":"{path}"}}]"#);
        let error = planned(&with("linux.namespaces.path", &json))
            .err()
            .unwrap();
        error.to_string()
    };
    let start = "linux.namespaces[0].path: ";
    assert_eq!(
        refusal("/proc/1/ns/ipc"),
        format!(
            "{start}/proc/1/ns/ipc belongs to this host's kernel, and the container's processes run on another"
        )
    );
    assert_eq!(
        refusal("/missing"),
        format!("{start}open /missing: No such file")
    );
}

#[test]
fn the_network_and_the_processes_of_the_host_are_refused() {
    let refusals = |json: &str| {
        let value = with("linux.namespaces.type", json);
        let spec: Spec = serde_json::from_value(value.clone()).unwrap();
        let error = decide(&spec, &value, &facts()).plan.err();
        error.map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(refusals(r#"[{"type":"network"},{"type":"pid"}]"#), "");
    let named = |text: &str, kind: &str| text.contains(&format!("none has the type {kind}, so"));
    for (json, network, pid) in [
        (r#"[{"type":"pid"}]"#, true, false),
        (r#"[{"type":"network"}]"#, false, true),
        (r#"[{"type":"uts"}]"#, true, true),
    ] {
        let text = refusals(json);
        assert!(text.starts_with("linux.namespaces: "), "{text}");
        assert_eq!(
            (named(&text, "network"), named(&text, "pid")),
            (network, pid)
        );
    }
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

/// What becomes of a container that names the uts and ipc namespace of this name, and others.
fn pod(name: &str, others: &[(&str, &str)]) -> Result<Plan, String> {
    let paths = ["uts", "ipc"].map(|kind| format!("/run/{kind}ns/{name}"));
    let mut named = vec![("uts", paths[0].as_str()), ("ipc", &paths[1])];
    named.extend(others);
    planned(&joining(&named)).map_err(|e| e.to_string())
}

#[test]
fn pinned_namespaces_make_a_pod() {
    use LinuxNamespaceType::{Ipc, Network as Net, Pid, User, Uts};
    let flags = |kinds: &[LinuxNamespaceType]| {
        let flags = kinds
            .iter()
            .map(|kind| specification::namespace::flag(*kind));
        flags.fold(0, |all, flag| all | flag)
    };
    let plan = pod("new", &[("network", "/run/netns/new"), ("pid", "")]).unwrap();
    let member = plan.member.unwrap();
    assert_eq!((member.sandbox.as_str(), member.machine), ("ns:1", None));
    assert!(plan.own_pids && plan.network == Network::Guests);
    let joins = [protocol::Joined {
        container: 0,
        namespaces: flags(&[Uts, Ipc, Net]),
    }];
    assert_eq!(member.joins, joins);
    let pinned = Pinned {
        pins: Pins {
            uts: 1,
            ipc: 2,
            net: Some(3),
            user: None,
        },
        uts: "/run/utsns/new".into(),
        ipc: "/run/ipcns/new".into(),
        net: Some("/run/netns/new".into()),
        user: None,
    };
    assert_eq!(member.pinned, Some(pinned));
    // Without a network that is pinned it has its own.
    let plan = pod("new", &[("network", "")]).unwrap();
    assert_eq!(plan.network, Network::New);
    assert_eq!(plan.member.unwrap().joins[0].namespaces, flags(&[Uts, Ipc]));
    // One of users, whom the pod's own container has as well.
    let member = pod("new", &[("user", "/run/userns/new")])
        .unwrap()
        .member
        .unwrap();
    assert_eq!(member.joins[0].namespaces, flags(&[Uts, Ipc, User]));
    let pinned = member.pinned.unwrap();
    assert_eq!(pinned.pins.user, Some(4));
    assert_eq!(pinned.user, Some("/run/userns/new".into()));
    // A machine that there is, and the processes of a container in it.
    let made = [("network", "/run/netns/made"), ("pid", "/proc/5/ns/pid")];
    let member = pod("made", &made).unwrap().member.unwrap();
    assert_eq!(member.machine.map(|machine| machine.pid), Some(6));
    let joined = member.joins.iter();
    let joined: Vec<_> = joined
        .map(|joined| (joined.container, joined.namespaces))
        .collect();
    assert_eq!(joined, [(0, flags(&[Uts, Ipc, Net])), (1, flags(&[Pid]))]);
}

#[test]
fn what_is_not_pinned_for_one_pod_is_refused() {
    for (name, others, property, text) in [
        (
            "made",
            ("network", "/run/netns/new"),
            0,
            "a pod with other pinned namespaces",
        ),
        (
            "made",
            ("network", ""),
            0,
            "a pod with other pinned namespaces",
        ),
        (
            "made",
            ("pid", "/proc/7/ns/pid"),
            0,
            "a pod with other pinned namespaces",
        ),
        (
            "new",
            ("pid", "/proc/5/ns/pid"),
            2,
            "is in the machine of container ns:11",
        ),
        (
            "new",
            ("pid", "/run/pidns/new"),
            2,
            "name a container's by its process",
        ),
    ] {
        let error = pod(name, &[others]).err().unwrap();
        let start = format!("linux.namespaces[{property}].path: ");
        assert!(error.starts_with(&start) && error.contains(text), "{error}");
    }
}

#[test]
fn one_pinned_namespace_makes_no_pod() {
    for kind in ["uts", "ipc"] {
        let path = format!("/run/{kind}ns/new");
        let error = planned(&joining(&[(kind, &path)])).err().unwrap();
        let text = error.to_string();
        assert!(
            text.contains("both the ipc and the uts namespace"),
            "{text}"
        );
    }
    // That of a container in a pod's machine neither.
    let error = planned(&joining(&[("pid", "/proc/5/ns/pid")]))
        .err()
        .unwrap();
    let text = error.to_string();
    assert!(
        text.contains("name the ipc and uts namespace that are pinned"),
        "{text}"
    );
    let net = planned(&joining(&[("network", "/run/netns/made")]))
        .ok()
        .unwrap();
    assert!(net.member.is_none() && net.network == Network::Path("/run/netns/made".into()));
}

#[test]
fn a_pinned_user_namespace_is_its_maps() {
    let mut config = joining(&[("user", "/run/userns/new"), ("network", "/run/netns/new")]);
    // As Podman has it: what is said of a namespace that is joined means nothing.
    let said = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
    config["linux"]["uidMappings"] = said.clone();
    config["linux"]["gidMappings"] = said;
    config["mounts"] = json!([
        {"destination": "/srv", "type": "bind", "source": "/srv", "options": ["idmap"]}]);
    let plan = planned(&config).unwrap_or_else(|e| panic!("{e}"));
    assert!(plan.member.is_none() && plan.network == Network::Path("/run/netns/new".into()));
    assert_eq!(plan.overlay.id_maps, Some(id_maps()));
    let map = plan.shares[1].id_map.as_ref().unwrap();
    let seen = |ranges: &[crate::machine::IdRange]| ranges[0].seen;
    assert_eq!((seen(&map.uids), seen(&map.gids)), (100000, 200000));
    // With a namespace of its own the configuration's count.
    config["linux"]["namespaces"] = json!([{"type": "user"}]);
    assert_eq!(planned(&config).ok().unwrap().overlay.id_maps, None);
    // One that is this host's own, or that of one of its processes, is not a pinned one.
    let error = planned(&joining(&[("user", "/proc/1/ns/user")]));
    let error = error.err().unwrap().to_string();
    assert!(error.contains("belongs to this host's kernel"), "{error}");
}

#[test]
fn the_container_of_a_pods_own() {
    let mut value = joining(&[("uts", "/run/utsns/new"), ("ipc", "/run/ipcns/new")]);
    value["annotations"] =
        json!({annotations::VCPUS: "2", "other": "x", annotations::HOST_NAMESPACES: "guest"});
    value["process"]["oomScoreAdj"] = 900.into();
    let parameters = [("kernel/shmmax".to_owned(), "77".to_owned())].into();
    let made = |systemd, path: Option<&str>, net: Option<PathBuf>| {
        let mut value = value.clone();
        value["linux"]["cgroupsPath"] = path.into();
        let mut pins = MADE;
        if path.is_some() {
            pins.user = Some(4);
        }
        let spec: Spec = serde_json::from_value(value).unwrap();
        let pinned = Pinned {
            pins,
            uts: "/u".into(),
            ipc: "/i".into(),
            net,
            user: pins.user.map(|_| "/run/userns/new".into()),
        };
        let holder = Holder {
            spec: &spec,
            pinned: &pinned,
            systemd,
            names: ("name", ""),
            parameters: &parameters,
        };
        holder.configuration()
    };
    let config = made(false, Some("/a/b"), Some("/run/netns/made".into()));
    let parsed = crate::config::parse(&config.to_string()).unwrap();
    let Decision { ledger, plan } = decide(&parsed.spec, &parsed.value, &facts());
    let plan = plan.unwrap_or_else(|e| panic!("{e}"));
    assert!(ledger.warnings().is_empty(), "{:?}", ledger.warnings());
    assert_eq!((plan.vcpus, plan.oom_score_adj), (2, Some(900)));
    assert_eq!(plan.network, Network::Path("/run/netns/made".into()));
    assert_eq!(plan.rootfs(), Path::new("/b/rootfs"));
    assert!(plan.own_pids && plan.member.is_none());
    assert_eq!(config["linux"]["sysctl"], json!({"kernel/shmmax": "77"}));
    assert_eq!(config["hostname"], "name");
    assert_eq!(plan.overlay.id_maps, Some(id_maps()));
    let alone = made(false, None, None);
    assert_eq!(alone["linux"]["namespaces"][4], json!({"type": "network"}));
    assert_eq!(alone["linux"]["namespaces"].as_array().unwrap().len(), 5);
    for (systemd, path, expected) in [
        (false, None, "chiton-pod-11"),
        (false, Some("/pods/x/crio-1"), "/pods/x/chiton-pod-11"),
        (false, Some("x"), "chiton-pod-11"),
        (true, Some("pod.slice:crio:1"), "pod.slice:chiton:pod-11"),
        (true, None, ":chiton:pod-11"),
    ] {
        assert_eq!(made(systemd, path, None)["linux"]["cgroupsPath"], expected);
    }
}
