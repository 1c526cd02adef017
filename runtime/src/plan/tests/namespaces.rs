//! Namespaces that are joined, and those of the host that no machine can have.

use super::*;

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
        refusal("/proc/7/ns/ipc"),
        format!("{start}pods are not supported yet: /proc/7/ns/ipc belongs to container pod")
    );
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
