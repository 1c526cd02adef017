//! `audit` of processes that are no machines: every point must be seen to fail. Of machines see tests/e2e.
//!
//! Needs root, as the runtime does.

// All of this is a test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Output};
use std::time::Duration;

use serde_json::{Value, json};

mod words;

/// A process that ends with this value.
struct Ordinary(Child);

impl Ordinary {
    /// One that has the root directory open.
    fn new() -> Ordinary {
        let root = File::open("/").unwrap();
        let mut sleep = Command::new("sleep");
        Ordinary(sleep.arg("1000").stdin(root).spawn().unwrap())
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.0.id())).unwrap()
    }

    /// How a record names it.
    fn identity(&self) -> Value {
        let stat = self.read("stat");
        let start: u64 = stat.split(' ').nth(21).unwrap().parse().unwrap();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        json!({"pid": self.0.id(), "startTime": start, "boot": boot.trim()})
    }
}

impl Drop for Ordinary {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The state of a container whose machine process this is.
fn container(root: &Path, id: &str, machine: &Value) {
    let dir = root.join(id);
    fs::create_dir_all(&dir).unwrap();
    let state = json!({"version": 1, "id": id, "ociVersion": "1.0.2", "bundle": "/b", "rootfs": "/b/rootfs",
        "created": "2026-01-01T00:00:00.000000000Z", "owner": 0, "cgroup": null, "machine": machine});
    fs::write(dir.join("state.json"), state.to_string()).unwrap();
    fs::write(dir.join("config.json"), r#"{"ociVersion": "1.0.2"}"#).unwrap();
}

fn audit(root: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chiton"));
    let command = command.arg("--root").arg(root).arg("audit").args(args);
    command.output().unwrap()
}

#[test]
fn an_ordinary_process_fails_at_every_point() {
    let root = tempfile::tempdir().unwrap();
    let process = Ordinary::new();
    container(root.path(), "c", &process.identity());
    let done = audit(root.path(), &["--format", "json", "c"]);
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert!(done.stderr.is_empty(), "{done:?}");
    let findings: Vec<Value> = serde_json::from_slice(&done.stdout).unwrap();
    let points = |verdict: &str| -> BTreeSet<&str> {
        let findings = findings.iter();
        let those = findings.filter(|found| found["verdict"] == verdict);
        those
            .map(|found| found["point"].as_str().unwrap())
            .collect()
    };
    let mut expected = BTreeSet::from([
        "capabilities",
        "descriptors",
        "filters",
        "ids",
        "limits",
        "namespaces",
        "root",
    ]);
    // These may have been given to whoever runs the tests.
    let status = process.read("status");
    if status.contains("NoNewPrivs:\t0") {
        expected.insert("no_new_privs");
    }
    if status.contains("Seccomp:\t0") {
        expected.insert("seccomp");
    }
    assert_eq!(points("fail"), expected, "{findings:#?}");
    assert_eq!(
        points("note"),
        BTreeSet::from(["cgroup", "dumpable", "ids", "landlock", "namespaces"])
    );
    // It has been stopped for a moment, and let go: it may still be on its way back to sleep.
    let sleeps = || process.read("status").contains("State:\tS (sleeping)");
    assert!((0..500).any(|_| sleeps() || {
        std::thread::sleep(Duration::from_millis(10));
        false
    }));
    assert!(process.read("status").contains("TracerPid:\t0"));

    let done = audit(root.path(), &["c"]);
    let text = String::from_utf8(done.stdout).unwrap();
    assert_eq!(text.lines().count(), findings.len());
    let failure = "FAIL descriptors: 0 (/): `..` leads to the host's root\n";
    assert!(text.contains(failure), "{text}");
}

#[test]
fn what_does_not_run_is_one_error() {
    let root = tempfile::tempdir().unwrap();
    let machine = Ordinary::new().identity();
    container(root.path(), "stopped", &machine);
    container(root.path(), "creating", &Value::Null);
    for (id, text) in [
        ("stopped", "container not running\n"),
        ("creating", "container not running\n"),
        ("missing", "container does not exist\n"),
    ] {
        let done = audit(root.path(), &[id]);
        assert_eq!(done.status.code(), Some(1), "{id}");
        assert_eq!(words::plain(&String::from_utf8(done.stderr).unwrap()), text);
        assert!(done.stdout.is_empty(), "{id}");
    }
}
