use clap::Parser;

use super::*;
use crate::cli::{Cli, Verb};
use crate::host::selinux::Use;

/// The process of a container as engines write it.
fn own() -> Value {
    json!({
        "terminal": true, "consoleSize": {"height": 24, "width": 80},
        "user": {"uid": 5, "gid": 6, "umask": 18, "additionalGids": [7]},
        "args": ["sleep", "1"], "env": ["PATH=/bin"], "cwd": "/home",
        "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"],
            "ambient": ["CAP_KILL"]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 9, "soft": 8}],
        "noNewPrivileges": false, "oomScoreAdj": 100,
    })
}

fn args(flags: &[&str]) -> cli::Exec {
    let words = ["chiton", "exec"].iter().chain(flags);
    match Cli::try_parse_from(words).unwrap().verb.unwrap() {
        Verb::Exec(args) => args,
        other => panic!("{other:?}"),
    }
}

/// The host has the profile of the container and one other.
fn policy(profile: &str) -> Result<Vec<u8>, String> {
    match profile {
        "own" | "other" => Ok(profile.into()),
        _ => Err(format!("no profile {profile:?}")),
    }
}

/// The container has a label, and the host knows all that begin as it does.
fn label(_: Use, label: &str) -> Result<String, String> {
    let known = label.starts_with("u:r:").then(|| label.to_owned());
    known.ok_or_else(|| format!("{label:?} is not known"))
}

fn room(own: &Value) -> Room<'_> {
    Room {
        vcpus: 1,
        profile: own["apparmorProfile"].as_str(),
        policies: Some(&policy),
        label: Some("u:r:machine_t:s0:c1,c2"),
        selinux: Some(&label),
    }
}

/// What comes of the flags, or the error in one line.
fn from(flags: &[&str], own: &Value) -> Result<Value, String> {
    wanted(&args(flags), None, own, Path::new("/c"), &room(own), None)
        .map(|wanted| serde_json::from_str(&wanted.json).unwrap())
        .map_err(|e| format!("{:#}", anyhow::Error::from(e)))
}

/// The same for a file.
fn from_file(file: Value) -> Result<Wanted, String> {
    wanted(
        &args(&["-p", "f", "c"]),
        Some(file),
        &own(),
        Path::new("/f"),
        &room(&own()),
        None,
    )
    .map_err(|e| format!("{:#}", anyhow::Error::from(e)))
}

/// Flags, the property they are about, and its value (runc 1.2, exec.go, getProcess).
#[test]
fn flags_change_the_containers_own_process() {
    let both = json!(["CAP_KILL", "CAP_CHOWN"]);
    let table: &[(&[&str], &str, Value)] = &[
        (&[], "/args", json!(["id", "-u"])),
        (&[], "/cwd", json!("/home")),
        (&[], "/terminal", json!(false)),
        (&[], "/noNewPrivileges", json!(false)),
        (&[], "/oomScoreAdj", json!(100)),
        (&["-t"], "/terminal", json!(true)),
        (&["-t"], "/consoleSize/height", json!(24)),
        (&["--cwd", "/tmp"], "/cwd", json!("/tmp")),
        (&["--cwd", ""], "/cwd", json!("/home")),
        (
            &["-e", "A=1", "--env", "PATH=/x"],
            "/env",
            json!(["PATH=/bin", "A=1", "PATH=/x"]),
        ),
        (&["-u", "0"], "/user/uid", json!(0)),
        (&["-u", "0"], "/user/gid", json!(6)),
        (&["-u", "1:2"], "/user/uid", json!(1)),
        (&["--user", "1:2"], "/user/gid", json!(2)),
        (&["-u", "1:2"], "/user/umask", json!(18)),
        (
            &["-g", "8", "--additional-gids", "9"],
            "/user/additionalGids",
            json!([7, 8, 9]),
        ),
        (&["--no-new-privs"], "/noNewPrivileges", json!(true)),
        (&["-c", "CAP_CHOWN"], "/capabilities/bounding", both.clone()),
        (
            &["--cap", "CAP_CHOWN"],
            "/capabilities/effective",
            both.clone(),
        ),
        (&["--cap", "CAP_CHOWN"], "/capabilities/permitted", both),
        (
            &["--cap", "CAP_CHOWN"],
            "/capabilities/ambient",
            json!(["CAP_KILL"]),
        ),
        (
            &["--cap", "CAP_CHOWN"],
            "/capabilities/inheritable",
            Value::Null,
        ),
        (
            &["--apparmor", "unconfined"],
            "/apparmorProfile",
            json!("unconfined"),
        ),
    ];
    for (flags, property, value) in table {
        let words = [flags, &["c", "id", "-u"][..]].concat();
        let process = from(&words, &own()).unwrap();
        let found = process.pointer(property).unwrap_or(&Value::Null);
        assert_eq!(found, value, "{flags:?} {property}");
    }
}

#[test]
fn sparse_configurations_are_added_to() {
    let own = json!({"cwd": "/", "user": {}});
    let flags = ["-c", "CAP_KILL", "-e", "A=1", "-g", "3", "c", "id"];
    let process = from(&flags, &own).unwrap();
    assert_eq!(process["capabilities"]["effective"], json!(["CAP_KILL"]));
    assert_eq!(process["env"], json!(["A=1"]));
    assert_eq!(process["user"]["additionalGids"], json!([3]));
}

#[test]
fn bad_flags_are_refused() {
    let table: &[(&[&str], &str)] = &[
        (&["c"], "process args cannot be empty"),
        (&["--cwd", "tmp", "c", "id"], "Cwd must be an absolute path"),
        (
            &["-u", "root", "c", "id"],
            "bad uid: strconv.Atoi: parsing \"root\": invalid syntax",
        ),
        (
            &["--user=-1", "c", "id"],
            "bad uid: strconv.Atoi: parsing \"-1\": value out of range",
        ),
        (
            &["-u", "0:wheel", "c", "id"],
            "bad gid: strconv.Atoi: parsing \"wheel\": invalid syntax",
        ),
        (
            &["-u", ":1", "c", "id"],
            "bad uid: strconv.Atoi: parsing \"\": invalid syntax",
        ),
        (
            &["-g=-1", "c", "id"],
            "additional-gids must be a positive number -1",
        ),
        (
            &["--apparmor", "p", "c", "id"],
            "process.apparmorProfile: no profile \"p\"",
        ),
        (
            &["--process-label", "l", "c", "id"],
            "process.selinuxLabel: \"l\" is not known",
        ),
        (
            &["--process-label", "u:r:t:s0:c3,c4", "c", "id"],
            "process.selinuxLabel: \"u:r:t:s0:c3,c4\": the machine has another SELinux level",
        ),
    ];
    for (flags, text) in table {
        let error = from(flags, &own()).unwrap_err();
        assert!(
            error.contains(text),
            "{flags:?}: {text:?} is not in {error:?}"
        );
    }
}

#[test]
fn what_stands_for_a_process_has_a_label_of_its_own_or_the_containers() {
    let of = |process: Value| from_file(process).unwrap().label.unwrap();
    let process = json!({"args": ["id"], "cwd": "/"});
    assert_eq!(of(process.clone()), "u:r:machine_t:s0:c1,c2");
    let mut own = process;
    own["selinuxLabel"] = "u:r:t:s0:c1,c2".into();
    assert_eq!(of(own), "u:r:t:s0:c1,c2");
}

#[test]
fn a_file_is_taken_as_it_is_but_for_what_it_does_not_say() {
    let file =
        json!({"args": ["id"], "cwd": "/", "env": ["A=1"], "rlimits": [], "user": {"uid": 1}});
    let wanted = from_file(file).unwrap();
    let process: Value = serde_json::from_str(&wanted.json).unwrap();
    assert_eq!(process["env"], json!(["A=1"]));
    assert_eq!(process["user"], json!({"uid": 1}));
    for name in ["capabilities", "rlimits", "oomScoreAdj"] {
        assert_eq!(process[name], own()[name], "{name}");
    }
    for name in ["terminal", "consoleSize", "noNewPrivileges"] {
        assert_eq!(process[name], Value::Null, "{name}");
    }
    assert_eq!(wanted.process.oom_score_adj(), Some(100));
    let file = json!({"args": ["id"], "cwd": "/", "oomScoreAdj": 7, "capabilities": {}});
    let process: Value = serde_json::from_str(&from_file(file).unwrap().json).unwrap();
    assert_eq!(process["oomScoreAdj"], json!(7));
    assert_eq!(process["capabilities"], json!({}));
}

#[test]
fn bad_files_are_refused() {
    for (file, text) in [
        (Value::Null, "process property must not be empty"),
        (json!([]), "process property must not be empty"),
        (json!({"args": ["id"]}), "Cwd property must not be empty"),
        (
            json!({"args": ["id"], "cwd": ""}),
            "Cwd property must not be empty",
        ),
        (
            json!({"args": ["id"], "cwd": "x"}),
            "Cwd must be an absolute path",
        ),
        (json!({"cwd": "/"}), "args must not be empty"),
        (json!({"cwd": "/", "args": []}), "args must not be empty"),
        (
            json!({"cwd": "/", "args": [1]}),
            "/f: invalid type: integer `1`",
        ),
        (
            json!({"cwd": "/", "args": ["id"], "apparmorProfile": "p"}),
            "process.apparmorProfile",
        ),
        (
            json!({"cwd": "/", "args": ["id"], "user": {"username": "u"}}),
            "process.user.username",
        ),
    ] {
        let error = from_file(file.clone()).unwrap_err();
        assert!(error.contains(text), "{file}: {text:?} is not in {error:?}");
    }
}

#[test]
fn a_policy_goes_along_unless_the_guest_has_it() {
    let mut own = own();
    own["apparmorProfile"] = json!("own");
    let policy = |flags: &[&str], own: &Value| {
        let words = [flags, &["c", "id"][..]].concat();
        let wanted = wanted(&args(&words), None, own, Path::new("/c"), &room(own), None).unwrap();
        let process: Value = serde_json::from_str(&wanted.json).unwrap();
        (process["apparmorProfile"].clone(), wanted.policy)
    };
    for (flags, profile, sent) in [
        (&[][..], "own", ""),
        (&["--apparmor", "own"], "own", ""),
        (&["--apparmor", "other"], "other", "other"),
        (&["--apparmor", "unconfined"], "unconfined", ""),
    ] {
        assert_eq!(
            policy(flags, &own),
            (json!(profile), sent.into()),
            "{flags:?}"
        );
    }
    assert_eq!(
        policy(&["--apparmor", "own"], &json!({"cwd": "/"})).1,
        b"own"
    );
    // What a file does not say is as for the container's own.
    for (said, profile) in [
        (None, "own"),
        (Some(""), "own"),
        (Some("unconfined"), "unconfined"),
    ] {
        let mut file = json!({"args": ["id"], "cwd": "/"});
        if let Some(said) = said {
            file["apparmorProfile"] = json!(said);
        }
        let args = args(&["-p", "f", "c"]);
        let room = Room {
            policies: None,
            ..room(&own)
        };
        let wanted = wanted(&args, Some(file), &own, Path::new("/f"), &room, None).unwrap();
        assert_eq!(
            wanted.process.apparmor_profile().as_deref(),
            Some(profile),
            "{said:?}"
        );
    }
}

#[test]
fn what_is_not_known_is_a_warning() {
    let file = json!({"cwd": "/", "args": ["id"], "colour": 1,
        "capabilities": {"bounding": ["CAP_WARP", "CAP_KILL"]}});
    let wanted = from_file(file).unwrap();
    let capabilities = "ignoring unknown or unavailable capabilities: [CAP_WARP]";
    assert_eq!(
        wanted.warnings,
        [capabilities, "ignoring unknown property process.colour"]
    );
    assert!(!wanted.json.contains("CAP_WARP"));
}

#[test]
fn cgroups_are_runcs() {
    for (args, answer) in [
        (&[][..], Ok("")),
        (&["/"], Ok("")),
        (&["a/b"], Ok("a/b")),
        (&["/a//b/"], Ok("a/b")),
        (
            &["../x"],
            Err("unable to create new parent process: ../x is not a sub cgroup path"),
        ),
        (
            &["a/../b"],
            Err("unable to create new parent process: a/../b is not a sub cgroup path"),
        ),
        (
            &[":a"],
            Err("invalid --cgroup argument: :a (empty <controller> prefix)"),
        ),
        (
            &["cpu:a", "io,cpu:b"],
            Err("invalid --cgroup argument(s): controller cpu specified multiple times"),
        ),
        (&["a:b:c"], Err("invalid --cgroup argument: a:b:c")),
        (
            &["a", "b"],
            Err("invalid --cgroup argument: a (missing <controller>: prefix)"),
        ),
        (
            &["cpu,memory:a"],
            Err("unable to create new parent process: unknown controller cpu in SubCgroupPaths"),
        ),
    ] {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let found = sub_cgroup(&args).map_err(|e| e.to_string());
        assert_eq!(found.as_deref().map_err(String::as_str), answer, "{args:?}");
    }
}
