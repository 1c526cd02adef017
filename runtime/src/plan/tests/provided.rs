//! Sources that earlier mounts provide.

use serde_json::json;

use super::*;

/// `/b/rootfs` is the root, `/b/alias` a link to it, and in it `link` one to `/data`.
pub(super) fn real(root: Option<&Path>, path: &Path) -> PathBuf {
    let (from, to) = match root {
        None => ("/b/alias", "/b/rootfs"),
        Some(_) => ("/link", "/data"),
    };
    path.strip_prefix(from)
        .map_or_else(|_| path.to_owned(), |rest| Path::new(to).join(rest))
}

/// What a bind mount of `source` is, after a tmpfs at `destination`: where the guest finds it, or the refusal; else it is
/// the host's.
fn inner(
    destination: &str,
    source: &str,
    option: &str,
    read_only: bool,
) -> Result<Option<String>, String> {
    let mut config = minimal();
    config["root"]["readonly"] = read_only.into();
    config["mounts"] = json!([
        {"destination": "/before", "type": "bind", "source": source, "options": [option]},
        {"destination": destination, "type": "tmpfs"},
        {"destination": "/m", "type": "bind", "source": source, "options": [option]},
    ]);
    let plan = planned(&config).map_err(|refused| refused.to_string())?;
    let inner = plan.overlay.inner;
    assert!(plan.overlay.binds.len() + inner.len() == 2 && plan.overlay.binds[0].0 == 0);
    Ok(inner.into_iter().next().map(|(index, path)| {
        assert_eq!(index, 2);
        path
    }))
}

#[test]
fn what_an_earlier_mount_hides_is_not_the_hosts() {
    for (destination, source, expected) in [
        ("/data", "/b/rootfs/data/x", Some("/data/x")),
        ("/data", "/b/rootfs/data", Some("/data")),
        ("/data", "rootfs/data/x", Some("/data/x")),
        ("/data", "/b/alias/data/x", Some("/data/x")),
        ("/link/y", "/b/rootfs/data/y", Some("/data/y")),
        ("/data", "/b/rootfs/database", None),
        ("/data", "/b/rootfs", None),
        ("/data", "/data/x", None),
    ] {
        let found = inner(destination, source, "bind", true);
        assert_eq!(found, Ok(expected.map(str::to_owned)), "{source}");
    }
}

#[test]
fn earlier_mounts_below_come_along_with_a_recursive_one() {
    let found = inner("/a/data", "/b/rootfs/a", "rbind", false);
    assert_eq!(found, Ok(Some("/a".to_owned())));
    assert_eq!(inner("/a/data", "/b/rootfs/a", "bind", false), Ok(None));
    let refused = inner("/a/data", "/b/rootfs/a", "rbind", true).unwrap_err();
    assert!(
        refused.starts_with("mounts[2].source: /b/rootfs/a is of the read-only"),
        "{refused}"
    );
}

#[test]
fn ids_of_what_is_provided_are_not_mapped() {
    let mut config = minimal();
    let ids = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
    config["mounts"] = json!([{"destination": "/data", "type": "tmpfs"}, {"destination": "/m", "type": "bind",
        "source": "/b/rootfs/data", "uidMappings": ids, "gidMappings": ids}]);
    let refused = planned(&config).err().unwrap().to_string();
    assert!(refused.starts_with("mounts[1].uidMappings: "), "{refused}");
}
