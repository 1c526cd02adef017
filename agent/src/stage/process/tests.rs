//! Programs, environments and capabilities.

use super::*;
use specification::CAPABILITIES;
use std::os::unix::fs::PermissionsExt;

fn text(result: Result<PathBuf>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn executables_are_found_as_go_finds_them() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    for (directory, mode) in [(&a, 0o644), (&b, 0o755)] {
        fs::create_dir(directory).unwrap();
        fs::write(directory.join("prog"), "").unwrap();
        fs::set_permissions(directory.join("prog"), PermissionsExt::from_mode(mode)).unwrap();
    }
    fs::create_dir(a.join("dir")).unwrap();
    let path = format!("{}:{}", a.display(), b.display());
    assert_eq!(
        look_up("prog", &path).unwrap(),
        b.join("prog"),
        "past one without x bits"
    );
    let full = b.join("prog");
    assert_eq!(look_up(full.to_str().unwrap(), "").unwrap(), full);
    let missing = r#"exec: "nosuch": executable file not found in $PATH"#;
    assert_eq!(text(look_up("nosuch", &path)), missing);
    assert_eq!(text(look_up("nosuch", "")), missing);
    assert_eq!(
        text(look_up("dir", &path)),
        missing.replace("nosuch", "dir")
    );
    let empty = r#"exec: "": executable file not found in $PATH"#;
    assert_eq!(text(look_up("", &path)), empty);
    let absolute = r#"exec: "/nosuch": stat /nosuch: no such file or directory"#;
    assert_eq!(text(look_up("/nosuch", &path)), absolute);
    assert!(matches!(look_up("/nosuch", &path), Err(Error::NotFound(_))));
    let plain = a.join("prog");
    let result = look_up(plain.to_str().unwrap(), "");
    assert!(matches!(result, Err(Error::NotExecutable(_))));
    assert_eq!(
        text(result),
        format!("exec: {:?}: permission denied", plain)
    );
    let directory = r#"exec: "/tmp": is a directory: permission denied"#;
    assert_eq!(text(look_up("/tmp", "")), directory);
}

#[test]
fn the_environment_is_merged() {
    let env = |entries: &[&str]| -> Vec<String> {
        entries.iter().map(|entry| (*entry).to_owned()).collect()
    };
    let passwd = || b"root:x:0:0:root:/root:/bin/sh\nu:x:7:7::/home/u:\n".to_vec();
    let got = merge(&env(&["A=1", "B=2", "A=3", "HOME="]), 7, passwd).unwrap();
    assert_eq!(got, env(&["B=2", "A=3", "HOME=/home/u"]));
    let never = || -> Vec<u8> { panic!("HOME is set") };
    assert_eq!(
        merge(&env(&["HOME=/x"]), 7, never).unwrap(),
        env(&["HOME=/x"])
    );
    assert!(merge(&env(&["NOVALUE"]), 7, passwd).is_err());
    assert!(merge(&env(&["=x"]), 7, passwd).is_err());
    assert_eq!(
        merge(&env(&["A="]), 0, passwd).unwrap(),
        env(&["A=", "HOME=/root"])
    );
}

#[test]
fn homes() {
    let passwd = b"a:x:0:0::/root:\nbad\n\xff:x:5:5::/no:\nb:x:1:1:::\nc:x:1:1::/later:\n";
    assert_eq!(home(0, passwd), "/root");
    assert_eq!(home(1, passwd), "/", "the first entry counts");
    assert_eq!(home(5, passwd), "/");
    assert_eq!(home(99, passwd), "/");
    assert_eq!(home(99, b""), "/");
}

#[test]
fn every_capability_has_its_bit() {
    let of = |names: &str| mask(Some(&serde_json::from_str(names).unwrap())).unwrap();
    assert_eq!(of(r#"["CAP_CHOWN"]"#), 1);
    assert_eq!(
        of(r#"["CAP_SYS_ADMIN","CAP_CHECKPOINT_RESTORE"]"#),
        1 << 21 | 1 << 40
    );
    let all: Capabilities = CAPABILITIES.into_iter().collect();
    assert_eq!(mask(Some(&all)).unwrap(), (1 << 41) - 1);
    assert_eq!(mask(None).unwrap(), 0);
}

#[test]
fn a_process_inherits_the_limits_that_it_does_not_name() {
    for (number, kind) in (0..).zip(RESOURCES) {
        assert_eq!(resource(kind), number, "{kind}");
    }
    let inherited: Vec<(u64, u64)> = (0..16).map(|number| (number, u64::MAX)).collect();
    let json =
        r#"{"user": {}, "cwd": "/", "rlimits": [{"type": "RLIMIT_DATA", "soft": 70, "hard": 80}]}"#;
    let process: Process = serde_json::from_str(json).unwrap();
    let found = limits(&process, &inherited);
    assert_eq!(found.len(), 16);
    for Limit { kind, soft, hard } in found {
        let expected = match kind {
            PosixRlimitType::RlimitData => (70, 80),
            _ => (u64::from(resource(kind)), u64::MAX),
        };
        assert_eq!((soft, hard), expected, "{kind}");
    }
    // As for an exec, which names all.
    assert_eq!(limits(&process, &[]).len(), 1);
}
