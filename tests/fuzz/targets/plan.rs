//! A configuration, through the plan, to the mount options of the guest's agent: text of any kind, or one of an engine's
//! configurations in which values are replaced, removed and added.
//!
//! What must hold: no panic; the same configuration is decided the same twice; what is accepted can be read by the
//! guest from the text that it gets, with a size and a filter as the host has decided; and the agent finds no option of
//! a bind mount that it does not know, which it would refuse when the machine is up already.

#![no_main]

use std::sync::LazyLock;

use chiton_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::Spec;
use options::MountOptions;
use serde_json::Value;
use specification::mount;

#[allow(dead_code, reason = "the agent's own")]
#[path = "../../../agent/src/stage/options.rs"]
mod options;

const BASES: [&str; 4] = [
    r#"{"ociVersion":"1.3.0","root":{"path":"rootfs"},"process":{"user":{"uid":0,"gid":0},"cwd":"/","args":["sh"]},
        "mounts":[{"destination":"/m","source":"/s","options":["bind"]}],"linux":{"namespaces":[{"type":"pid"},{"type":"network"}]}}"#,
    include_str!("../../../runtime/src/verbs/spec.json"),
    include_str!("../../../runtime/src/plan/tests/podman.json"),
    include_str!("../../../runtime/src/plan/tests/containerd.json"),
];

/// The names of all properties: what is quoted in the plan's table of them.
static NAMES: LazyLock<Vec<&str>> = LazyLock::new(|| {
    let table = include_str!("../../../runtime/src/plan/properties.rs");
    let quoted = table.split('"').skip(1).step_by(2);
    let names = quoted.map(|name| name.rsplit('.').next().unwrap_or_default());
    names
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        .collect()
});

const WORDS: [&str; 40] = [
    "",
    "bind",
    "rbind",
    "ro",
    "rro",
    "tmpfs",
    "proc",
    "cgroup",
    "overlay",
    "size=1m",
    "idmap",
    "remount",
    "rshared",
    "tmpcopyup",
    "0-3",
    "0",
    "max",
    "128M",
    "/",
    "/a/../b",
    "..",
    "a.slice:b:c",
    "/dev/null",
    "/dev/sda",
    "/missing",
    "/dev/fuse",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_ALLOW",
    "SCMP_CMP_EQ",
    "SCMP_ARCH_X86_64",
    "openat",
    "CAP_KILL",
    "SCHED_FIFO",
    "MPOL_BIND",
    "RLIMIT_NOFILE",
    "2MB",
    "network",
    "/proc/7/ns/ipc",
    "\u{e4}\n",
    "L3:0=f",
];

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let systemd = input.flag();
    let text = match input.below(6) {
        0 => String::from_utf8_lossy(input.rest()).into_owned(),
        base => {
            let base = BASES[base % BASES.len()];
            let mut config: Value = serde_json::from_str(base).unwrap();
            // Compiling the filter takes longer than all else.
            if input.byte() < 240 {
                config["linux"]["seccomp"].take();
            }
            for _ in 0..12 {
                if !input.is_empty() {
                    change(&mut config, &mut input);
                }
            }
            config.to_string()
        }
    };
    let Some(planned) = runtime::fuzz::plan(&text, systemd) else {
        return;
    };
    let again = runtime::fuzz::plan(&text, systemd).unwrap();
    assert_eq!(
        planned.description, again.description,
        "decided in two ways"
    );
    if planned.refused {
        return;
    }
    assert!(
        planned.memory >= 64 << 20 && planned.memory % (2 << 20) == 0,
        "{}",
        planned.memory
    );
    assert!((1..=32).contains(&planned.vcpus), "{}", planned.vcpus);
    let spec: Spec = serde_json::from_str(&planned.text).expect("the guest can read it");
    let filter = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.seccomp().as_ref());
    assert_eq!(filter.is_some(), planned.seccomp);
    for mounted in spec.mounts().iter().flatten() {
        let options = MountOptions::parse(mount::options(mounted));
        let bind = options.bind || mount::is_bind(mounted);
        assert!(
            !bind || options.remount || options.data.is_empty(),
            "the agent refuses {:?} of {:?}",
            options.data,
            mounted
        );
        let _ = options.mount_flags();
    }
});

/// How many values are in one, itself included.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Object(members) => members.values().map(count).sum::<usize>(),
        Value::Array(elements) => elements.iter().map(count).sum(),
        _ => 0,
    }
}

/// One of the values in a value.
fn choose(value: &mut Value, mut which: usize) -> &mut Value {
    if which == 0 || !(value.is_object() || value.is_array()) {
        return value;
    }
    which -= 1;
    let below: Vec<&mut Value> = match value {
        Value::Object(members) => members.values_mut().collect(),
        Value::Array(elements) => elements.iter_mut().collect(),
        _ => Vec::new(),
    };
    for one in below {
        let inside = count(one);
        if which < inside {
            return choose(one, which);
        }
        which -= inside;
    }
    unreachable!("there are so many");
}

fn change(config: &mut Value, input: &mut Input<'_>) {
    let which = (usize::from(input.byte()) << 8 | usize::from(input.byte())) % count(config);
    let place = choose(config, which);
    match (input.below(4), place) {
        (0, Value::Object(members)) => {
            let name = NAMES[(input.word() as u16) as usize % NAMES.len()];
            members.insert(name.into(), value(input, 3));
        }
        (1, Value::Object(members)) => {
            let key = members
                .keys()
                .nth(input.below(members.len().max(1)))
                .cloned();
            key.map(|key| members.remove(&key));
        }
        (0, Value::Array(elements)) => elements.push(value(input, 3)),
        (1, Value::Array(elements)) => drop(elements.pop()),
        (2, Value::Array(elements)) => elements.extend(elements.last().cloned()),
        (_, place) => *place = value(input, 3),
    }
}

fn value(input: &mut Input<'_>, depth: u8) -> Value {
    match input.below(if depth > 0 { 9 } else { 6 }) {
        0 => Value::Null,
        1 => input.flag().into(),
        2 => input.number().into(),
        3 => (input.number() as i64).into(),
        4 | 5 => input.pick(&WORDS).into(),
        6 => (0..input.byte() & 3)
            .map(|_| value(input, depth - 1))
            .collect(),
        _ => {
            let mut members = serde_json::Map::new();
            for _ in 0..input.byte() & 3 {
                let name = NAMES[(input.word() as u16) as usize % NAMES.len()];
                members.insert(name.into(), value(input, depth - 1));
            }
            members.into()
        }
    }
}
