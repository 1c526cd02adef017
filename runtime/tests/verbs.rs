//! The verbs as a caller sees them, as far as they need no machine: what bad input gets, and that nothing is left
//! behind.
//!
//! Needs root, as the runtime does.

// All of this is a test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

mod words;

/// A place for bundles and state.
struct Place {
    dir: TempDir,
}

struct Done {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new() -> Place {
        let place = Place {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir_all(place.bundle().join("rootfs")).unwrap();
        place.write(&config());
        place
    }

    fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn write(&self, config: &Value) {
        fs::write(self.bundle().join("config.json"), config.to_string()).unwrap();
    }

    /// The state directory of a container that was never finished or whose machine has ended.
    fn remains(&self, id: &str, state: Option<Value>) {
        let dir = self.root().join(id);
        fs::create_dir_all(&dir).unwrap();
        if let Some(state) = state {
            fs::write(dir.join("state.json"), state.to_string()).unwrap();
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chiton"));
        command.arg("--root").arg(self.root()).args(args);
        command
            .stdin(Stdio::null())
            .current_dir(self.bundle())
            .env_remove("NOTIFY_SOCKET");
        command
    }

    fn run(&self, args: &[&str]) -> Done {
        done(&mut self.command(args))
    }

    /// The verb must fail with one line that contains `text`, and leave no state.
    fn refused(&self, args: &[&str], text: &str) {
        let done = self.run(args);
        assert_eq!(done.code, Some(1), "{args:?}: {}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{args:?}: {}", done.stderr);
        assert!(
            done.stderr.contains(text),
            "{args:?}: {:?} is not in {:?}",
            text,
            done.stderr
        );
        assert_eq!(done.stdout, "", "{args:?}");
        let left = fs::read_dir(self.root()).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{args:?} left state behind");
    }
}

fn done(command: &mut Command) -> Done {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: words::plain(&text(output.stderr)),
    }
}

fn config() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["true"]},
        "linux": {"namespaces": [{"type": "pid"}, {"type": "network"}]},
    })
}

/// A record of a container whose machine has ended: no process of pid 1 started that late.
fn stopped(id: &str) -> Value {
    json!({
        "version": 1, "id": id, "ociVersion": "1.0.2", "bundle": "/b", "rootfs": "/b/rootfs",
        "created": "2026-01-01T00:00:00.000000000Z", "annotations": {"k": "v"}, "owner": 0,
        "cgroup": null, "machine": {"pid": 1, "startTime": u64::MAX, "boot": "1"},
    })
}

#[test]
fn bad_configurations_are_refused() {
    type Change = fn(&mut Value);
    let table: &[(Change, &str)] = &[
        (
            |c| c["ociVersion"] = json!("2.0.0"),
            "ociVersion \"2.0.0\" is not supported",
        ),
        (
            |c| c["root"]["path"] = json!("none"),
            "bundle/none: no such file or directory",
        ),
        (
            |c| c["root"]["path"] = json!("config.json"),
            "config.json is not a directory",
        ),
        (|c| c["root"] = Value::Null, "root: must be specified"),
        (|c| c["process"] = Value::Null, "process: must not be empty"),
        (
            |c| c["process"]["args"] = json!([]),
            "process.args: must not be empty",
        ),
        (
            |c| c["linux"]["namespaces"] = json!([{"type": "galaxy"}]),
            "`galaxy`",
        ),
        (
            |c| c["linux"]["cgroupsPath"] = json!("../../x"),
            "linux.cgroupsPath: contains ..",
        ),
        (
            |c| c["hooks"] = json!({"prestart": [{"path": "/x"}]}),
            "error running prestart hook #0: /x: no such file or directory",
        ),
        (
            |c| c["mounts"] = json!([{"destination": "/m", "type": "bind", "source": "none"}]),
            "mounts[0].source: stat ",
        ),
        (
            |c| c["mounts"] = json!([{"destination": "/m", "type": "bind", "source": "socket"}]),
            "bundle/socket is a socket: its other end is on the host",
        ),
        (
            |c| c["linux"]["resources"] = json!({"memory": {"limit": 4096}}),
            "linux.resources.memory.limit: 4096 bytes",
        ),
    ];
    let place = Place::new();
    let _socket = UnixListener::bind(place.bundle().join("socket")).unwrap();
    for (change, text) in table {
        let mut config = config();
        change(&mut config);
        place.write(&config);
        place.refused(&["create", "x"], text);
        place.refused(&["run", "x"], text);
    }
}

#[test]
fn files_that_are_no_configurations_are_refused() {
    let place = Place::new();
    let path = place.bundle().join("config.json");
    fs::write(&path, "{\n  \"ociVersion\": \"1.0.0\",\n  \"process\": }").unwrap();
    place.refused(
        &["create", "x"],
        "config.json: expected value at line 3 column 14",
    );
    fs::write(&path, [0xff, 0xfe]).unwrap();
    place.refused(&["create", "x"], "config.json is not UTF-8 text");
    fs::write(&path, vec![b' '; 4 << 20]).unwrap();
    place.refused(&["create", "x"], "config.json is larger than");
    fs::remove_file(&path).unwrap();
    place.refused(&["create", "x"], "config.json: no such file or directory");
    place.refused(
        &["create", "--bundle", "none", "x"],
        "chdir none: no such file or directory",
    );
}

#[test]
fn bad_ids_are_refused() {
    let place = Place::new();
    let long = "x".repeat(2000);
    for verb in ["create", "run", "start", "state", "kill", "delete"] {
        for id in [".", "..", "a/b", "sp ace", "ä", &long] {
            place.refused(&[verb, id], "invalid container ID format");
        }
        place.refused(&[verb, ""], "container id cannot be empty");
    }
}

#[test]
fn a_terminal_needs_somebody_who_shows_it() {
    let place = Place::new();
    let mut config = config();
    config["process"]["terminal"] = json!(true);
    place.write(&config);
    let alone = "cannot allocate tty if chiton will detach without setting console socket";
    place.refused(&["create", "x"], alone);
    place.refused(&["run", "-d", "x"], alone);
    let vain = "cannot use console socket if chiton will not detach or allocate tty";
    place.refused(&["run", "--console-socket", "s", "x"], vain);
    let missing = "connect to s: no such file or directory";
    place.refused(&["create", "--console-socket", "s", "x"], missing);
    config["process"]["consoleSize"] = json!({"height": 65536, "width": 1});
    place.write(&config);
    let _socket = UnixListener::bind(place.bundle().join("s")).unwrap();
    place.refused(
        &["create", "--console-socket", "s", "x"],
        "process.consoleSize",
    );
}

#[test]
fn what_a_flag_asks_for_and_is_not_there_is_refused() {
    let place = Place::new();
    for (args, text) in [
        (
            &["create", "--preserve-fds", "17", "x"][..],
            "17 descriptors to preserve exceed the maximum of 16",
        ),
        (
            &["create", "--pidfd-socket", "s", "x"],
            "connect to s: no such file or directory",
        ),
        (
            &["create", "--console-socket", "s", "x"],
            "cannot use console socket if chiton will not detach or allocate tty",
        ),
        (
            &["run", "--console-socket", "s", "x"],
            "cannot use console socket if chiton will not detach or allocate tty",
        ),
        (
            &["--rootless", "true", "create", "x"],
            "--rootless is not supported yet",
        ),
        (&["spec", "--rootless"], "--rootless is not supported yet"),
        (&["--cgroup-manager", "frob", "create", "x"], "frob"),
        (
            &["create"],
            "chiton: \"create\" requires exactly 1 argument(s)",
        ),
        (
            &["create", "--frob", "x"],
            "flag provided but not defined: -frob",
        ),
        (&["kill", "x", "FROB"], "container does not exist"),
    ] {
        place.refused(args, text);
    }
    let done = done(Command::new(env!("CARGO_BIN_EXE_chiton")).args(["--root", "/", "list"]));
    assert_eq!((done.code, done.stdout.as_str()), (Some(1), ""));
}

#[test]
fn what_needs_a_cgroup_is_refused_without_one() {
    let place = Place::new();
    let mut config = config();
    config["linux"]["resources"] = json!({"cpu": {"cpus": "0"}});
    place.write(&config);
    place.refused(
        &["--cgroup-manager=disabled", "create", "x"],
        "linux.resources.cpu.cpus cannot be applied: --cgroup-manager=disabled",
    );
}

/// The hook that fails is run after all of that and before the guest's first instruction.
#[test]
fn the_steps_of_create_are_logged_on_demand() {
    let place = Place::new();
    let mut config = config();
    config["hooks"] = json!({"prestart": [{"path": "/x"}]});
    place.write(&config);
    let log = place.dir.path().join("log");
    let arguments = ["--log", log.to_str().unwrap(), "--log-format", "json"];
    let messages = |flags: &[&str]| -> Vec<(String, String)> {
        let _ = fs::remove_file(&log);
        place.refused(
            &[&arguments, flags, &["create", "x"]].concat(),
            "prestart hook",
        );
        let text = fs::read_to_string(&log).unwrap();
        let lines = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        lines
            .map(|line| (text(&line["level"]), text(&line["msg"])))
            .collect()
    };
    let with_cgroup = messages(&["--debug"]);
    let levels: Vec<_> = with_cgroup
        .iter()
        .map(|(level, _)| level.as_str())
        .collect();
    assert_eq!(levels, ["debug", "debug", "debug", "error"]);
    for ((_, message), (start, end)) in with_cgroup.iter().zip([
        ("configuration of ", "/bundle loaded"),
        ("cgroup /sys/fs/cgroup/", "/x made"),
        ("machine process ", " is in its namespaces"),
    ]) {
        assert!(
            message.starts_with(start) && message.ends_with(end),
            "{message}"
        );
    }
    let without = messages(&["--debug", "--cgroup-manager=disabled"]);
    assert!(
        !without
            .iter()
            .any(|(_, message)| message.starts_with("cgroup ")),
        "{without:?}"
    );
    assert_eq!(without.len(), 3);
    assert_eq!(messages(&[]).len(), 1);
}

/// The first hook is waited for; the second one is not there.
#[test]
fn a_caller_may_ignore_that_children_end() {
    let place = Place::new();
    let mut config = config();
    config["hooks"] = json!({"prestart": [{"path": "/bin/true"}, {"path": "/x"}]});
    place.write(&config);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' CHLD && exec \"$0\" --root \"$1\" create x"]);
    shell
        .arg(env!("CARGO_BIN_EXE_chiton"))
        .arg(place.root())
        .current_dir(place.bundle());
    let done = done(&mut shell);
    assert!(done.stderr.contains("hook #1: /x"), "{}", done.stderr);
    assert_eq!(done.code, Some(1));
}

#[test]
fn a_container_that_is_not_there() {
    let place = Place::new();
    for args in [
        &["state", "x"][..],
        &["start", "x"],
        &["kill", "x"],
        &["delete", "x"],
    ] {
        place.refused(args, "container does not exist\n");
    }
    assert_eq!(place.run(&["delete", "--force", "x"]).code, Some(0));
    let header = "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n";
    place.refused(&["list"], "no such file or directory");
    fs::create_dir(place.root()).unwrap();
    assert_eq!(place.run(&["list"]).stdout, header);
    assert_eq!(place.run(&["list", "--format", "json"]).stdout, "[]\n");
}

#[test]
fn a_container_that_has_stopped() {
    let place = Place::new();
    place.remains("c", Some(stopped("c")));
    let state: Value = serde_json::from_str(&place.run(&["state", "c"]).stdout).unwrap();
    let expected = json!({
        "ociVersion": "1.0.2", "id": "c", "pid": 0, "status": "stopped", "bundle": "/b",
        "rootfs": "/b/rootfs", "created": "2026-01-01T00:00:00.000000000Z",
        "annotations": {"k": "v"}, "owner": "root",
    });
    assert_eq!(state, expected);
    assert_eq!(place.run(&["list", "-q"]).stdout, "c\n");
    assert_eq!(place.run(&["ps", "--format", "json", "c"]).stdout, "[]\n");
    let header = "UID        PID  PPID  C STIME TTY          TIME CMD\n";
    assert_eq!(place.run(&["ps", "c"]).stdout, header);
    for (args, text) in [
        (
            &["ps", "c", "-e", "--forest"][..],
            "ps option \"--forest\" is not supported\n",
        ),
        (
            &["start", "c"][..],
            "cannot start a container that has stopped\n",
        ),
        (&["kill", "c"], "container not running\n"),
        (&["kill", "c", "0"], "container not running\n"),
        (
            &["create", "c"],
            "chiton create failed: container with given ID already exists\n",
        ),
        (
            &["run", "c"],
            "chiton run failed: container with given ID already exists\n",
        ),
    ] {
        let done = place.run(args);
        assert_eq!((done.code, done.stderr.as_str()), (Some(1), text));
    }
    assert_eq!(place.run(&["kill", "--all", "c", "9"]).code, Some(0));
    assert_eq!(place.run(&["delete", "c"]).code, Some(0));
    place.refused(&["delete", "c"], "container does not exist");
}

#[test]
fn what_a_killed_create_leaves_can_be_deleted() {
    let place = Place::new();
    let mut creating = stopped("c");
    creating["machine"] = Value::Null;
    for state in [None, Some(creating)] {
        place.remains("c", state.clone());
        assert_eq!(place.run(&["start", "c"]).code, Some(1));
        assert_eq!(place.run(&["delete", "c"]).code, Some(0));
        assert!(!place.root().join("c").exists());
        place.remains("c", state);
        assert_eq!(place.run(&["delete", "--force", "c"]).code, Some(0));
        assert!(!place.root().join("c").exists());
    }
}

#[test]
fn a_damaged_record_is_named_and_yields_to_force() {
    let place = Place::new();
    place.remains("c", Some(json!({"version": 7})));
    for verb in ["state", "start", "delete"] {
        let done = place.run(&[verb, "c"]);
        assert_eq!(done.code, Some(1));
        assert!(
            done.stderr.contains("state of container c is damaged"),
            "{}",
            done.stderr
        );
    }
    let done = place.run(&["list"]);
    assert_eq!(done.code, Some(0));
    assert!(done.stderr.contains("load container c"), "{}", done.stderr);
    assert_eq!(place.run(&["delete", "--force", "c"]).code, Some(0));
    assert!(!place.root().join("c").exists());
}

#[test]
fn errors_go_to_the_log_as_well() {
    let place = Place::new();
    let log = place.dir.path().join("log");
    let log_flag = log.to_str().unwrap();
    let done = place.run(&["--log", log_flag, "--log-format", "json", "state", "x"]);
    assert_eq!(done.stderr, "container does not exist\n");
    let line: Value = serde_json::from_str(&fs::read_to_string(&log).unwrap()).unwrap();
    assert_eq!(
        (&line["level"], &line["msg"]),
        (&json!("error"), &json!("container does not exist"))
    );
    let output = place.command(&["state", "x"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let rest = stderr.trim_start_matches(|c: char| c != ' ');
    assert_eq!(rest, " level=error msg=\"container does not exist\"\n");
    let output = place.command(&["--log-format", "json", "state", "x"]);
    let line = { output }.output().unwrap().stderr;
    let line: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(line["msg"], "container does not exist");
    let bad = Path::new(log_flag).join("below");
    let done = place.run(&["--log", bad.to_str().unwrap(), "state", "x"]);
    assert_eq!((done.code, done.stderr.lines().count()), (Some(1), 1));
}

#[test]
fn spec_writes_once_what_create_would_accept() {
    let place = Place::new();
    place.refused(&["spec"], "File config.json exists. Remove it first");
    fs::remove_file(place.bundle().join("config.json")).unwrap();
    assert_eq!(place.run(&["spec"]).code, Some(0));
    let written = fs::read_to_string(place.bundle().join("config.json")).unwrap();
    let written: Value = serde_json::from_str(&written).unwrap();
    let namespaces = written["linux"]["namespaces"].as_array().unwrap();
    let kinds: Vec<_> = namespaces.iter().map(|each| &each["type"]).collect();
    let runcs = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
    assert_eq!(kinds, runcs);
    // Everything in it is accepted: what is refused is that the root filesystem is missing.
    fs::remove_dir(place.bundle().join("rootfs")).unwrap();
    place.refused(&["create", "x"], "invalid rootfs");
}

/// What is refused here is known by its own name only.
#[test]
fn properties_are_known_in_every_case_as_go_reads_them() {
    let place = Place::new();
    let mut other = config();
    other["Linux"] = other["linux"].take();
    other.as_object_mut().unwrap().remove("linux");
    other["Linux"]["RESOURCES"] = json!({"Memory": {"disableOomKiller": true}});
    place.write(&other);
    place.refused(
        &["create", "x"],
        "linux.resources.memory.disableOOMKiller: cgroup v2",
    );
    let mut twice = config();
    twice["Hostname"] = "a".into();
    twice["hostname"] = "b".into();
    place.write(&twice);
    let words = "\"Hostname\" and \"hostname\" are the same property";
    place.refused(&["create", "x"], words);
}

#[test]
fn the_version_has_three_lines() {
    let place = Place::new();
    for flag in ["-v", "--version"] {
        let done = place.run(&[flag]);
        let lines: Vec<_> = done.stdout.lines().collect();
        let [version, commit, spec] = lines[..] else {
            panic!("{lines:?}")
        };
        assert!(version.starts_with("chiton version 0."), "{version}");
        assert!(commit.starts_with("commit: "), "{commit}");
        assert_eq!(spec, "spec: 1.3.0");
    }
}
