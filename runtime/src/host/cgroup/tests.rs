//! Cgroups, real ones and their files.

use std::process::{Command, Stdio};

use super::*;

#[test]
fn paths_are_runcs() {
    let root = Path::new("/sys/fs/cgroup");
    for (own, cgroups_path, expected) in [
        ("/", None, Some("/sys/fs/cgroup/c")),
        ("/user.slice/s", None, Some("/sys/fs/cgroup/user.slice/c")),
        (
            "/user.slice/s",
            Some(""),
            Some("/sys/fs/cgroup/user.slice/c"),
        ),
        ("/user.slice/s", Some("/a/b"), Some("/sys/fs/cgroup/a/b")),
        (
            "/user.slice/s",
            Some("a/b"),
            Some("/sys/fs/cgroup/user.slice/a/b"),
        ),
        ("/", Some("/a/../../b"), None),
        ("/", Some("../b"), None),
    ] {
        let found = locate(root, own, cgroups_path.map(Path::new), "c").ok();
        assert_eq!(found, expected.map(PathBuf::from), "{own} {cgroups_path:?}");
    }
}

#[test]
fn own_cgroup_is_the_v2_line() {
    assert_eq!(own_in("12:pids:/a\n0::/b/c\n"), "/b/c");
    assert_eq!(own_in("12:pids:/a\n"), "/");
}

/// Needs root and a mounted cgroup v2 hierarchy, as the runtime does.
#[test]
fn nothing_is_made_in_a_frozen_cgroup() {
    let (root, _) = hierarchy().expect("a cgroup v2 hierarchy");
    let parent = root.join(format!("chiton-frozen-{}", std::process::id()));
    let path = parent.join("a/b");
    let create = || Cgroup::create(&root, path.clone(), &[]);
    fs::create_dir(&parent).unwrap();
    let freeze = |dir: &Path, frozen| write(&dir.join("cgroup.freeze"), frozen).unwrap();
    freeze(&parent, "1");
    assert!(matches!(create(), Err(Error::Frozen)));
    assert!(!parent.join("a").exists());
    freeze(&parent, "0");
    create().unwrap();
    freeze(&path, "1");
    assert!(matches!(create(), Err(Error::Frozen)));
    freeze(&path, "0");
    create().unwrap().remove().unwrap();
    remove_tree(&parent).unwrap();
}

/// Needs root and a mounted cgroup v2 hierarchy, as the runtime does.
#[test]
fn a_cgroup_ends_with_what_runs_in_it() {
    let (root, _) = hierarchy().expect("a cgroup v2 hierarchy");
    let parent = root.join(format!("chiton-unit-{}", std::process::id()));
    let path = parent.join("c");
    let cgroup = Cgroup::create(&root, path.clone(), &[]).unwrap();
    let mut child = Command::new("sleep")
        .arg("1000")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    assert!(cgroup.processes().unwrap().is_empty());
    fs::create_dir(path.join("below")).unwrap();
    fs::write(path.join("below/cgroup.procs"), child.id().to_string()).unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    assert_eq!(cgroup.processes().unwrap(), [pid]);
    assert!(matches!(
        Cgroup::create(&root, path.clone(), &[]),
        Err(Error::NotEmpty(1))
    ));
    cgroup.remove().unwrap();
    assert!(!path.exists());
    assert!(cgroup.processes().unwrap().is_empty());
    child.wait().unwrap();
    cgroup.remove().unwrap();
    cgroup.kill().unwrap();
    fs::remove_dir(&parent).unwrap();
}

/// The files of a cgroup as plain files.
#[test]
fn limits_change_all_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let get = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    put("cpu.max", "max 100000\n");
    put("cpu.weight", "100\n");
    put("memory.max", "4096\n");
    let limit = |file: &'static str, value: &str, property: Option<&'static str>| Limit {
        property: property.map(Cow::from),
        ..Limit::unasked(file, value)
    };
    let cgroup = Cgroup::existing(dir.path().to_owned());
    let mut limits = vec![
        limit("cpu.max", "50000 100000", Some("q")),
        limit("memory.max", "4096", None),
        limit("cpu.weight", "7", Some("s")),
        limit("not.there", "1", None),
    ];
    let former = cgroup.update(&limits).unwrap();
    let names: Vec<_> = former.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["cpu.max", "cpu.weight"]);
    // The kernel replaces what is written; a plain file is overwritten from its beginning.
    assert!(get("cpu.max").starts_with("50000 100000"));
    assert!(get("cpu.weight").starts_with('7'));
    cgroup.restore(&former).unwrap();
    assert!(get("cpu.max").starts_with("max 100000\n"));
    assert!(get("cpu.weight").starts_with("100\n"));

    limits.push(limit("not.there.either", "1", Some("linux.x")));
    let error = cgroup.update(&limits).unwrap_err();
    assert!(error.to_string().starts_with("linux.x cannot be applied"));
    assert!(get("cpu.max").starts_with("max 100000\n"));
    assert!(get("cpu.weight").starts_with("100\n"));
}

#[test]
fn limits_of_devices_are_lines() {
    let max = "8:0 rbps=max wbps=5 riops=max wiops=max\n8:16 rbps=7\n";
    let weight = "default 100\n8:0 50\n";
    for (file, text, value, former) in [
        ("io.max", max, "8:0 wbps=1", "8:0 wbps=5"),
        ("io.max", max, "8:16 wbps=1", "8:16 wbps=max"),
        ("io.max", max, "8:1 rbps=1", "8:1 rbps=max"),
        ("io.weight", weight, "70", "default 100"),
        ("io.weight", weight, "8:0 70", "8:0 50"),
        ("io.weight", weight, "8:16 70", "8:16 default"),
        ("cpu.max", "max 5\n", "1 2", "max 5\n"),
    ] {
        let limit = Limit::asked(file, value, "linux.x");
        assert_eq!(limit.former(text), former, "{file} {value}");
    }
}

#[test]
fn a_cgroup_that_cannot_be_limited_is_not_left() {
    let (root, _) = hierarchy().expect("a cgroup v2 hierarchy");
    let parent = root.join(format!("chiton-unit-limit-{}", std::process::id()));
    let asked = Limit::asked("no.such", "1", "linux.x");
    let result = Cgroup::create(&root, parent.join("c"), std::slice::from_ref(&asked));
    assert!(matches!(result, Err(Error::NoController { .. })));
    assert!(!parent.exists());
    let unasked = Limit {
        property: None,
        ..asked
    };
    Cgroup::create(&root, parent.clone(), &[unasked])
        .unwrap()
        .remove()
        .unwrap();
    assert!(!parent.exists());
}
