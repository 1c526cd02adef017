//! The container's cgroup inside of the guest (cgroup v2, Documentation/admin-guide/cgroup-v2.rst).

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources, Spec};
use specification::{CPU_PERIOD, Place, cpu_weight, swap_max, usable_kbytes};

use super::device_filter;
use super::devices::Disks;
use crate::error::{During, Error, Result};
use crate::hierarchy::{self, ROOT};
use crate::sys;

/// How much memory the kernel may use, in KiB (guest-kernel/patches/52-address-space.patch).
const USABLE: &str = "/proc/sys/vm/usable_kbytes";

/// The limit of memory of a cgroup.
const MEMORY_MAX: &str = "memory.max";

/// One file of a cgroup and what to write to it.
type Setting = (String, String);

/// The limits of speed, which are for the container's program and not for what sets it up: their files,
/// open, and what to write to them.
pub(crate) struct Speed(Vec<(fs::File, Setting)>);

impl Speed {
    /// Opens the files of those among `settings`, which have been set, and lifts them.
    fn lift(directory: &Path, settings: &[Setting]) -> Result<Speed> {
        let of_speed = settings.iter().filter(|(file, _)| lifted(file).is_some());
        let mut speed = Vec::new();
        for (file, value) in of_speed {
            let opened = fs::OpenOptions::new()
                .write(true)
                .open(directory.join(file));
            let opened = opened.during(|| format!("open {file} of the cgroup"))?;
            speed.push((opened, (file.clone(), value.clone())));
        }
        // The burst may never be more than the quota.
        for (_, (file, _)) in speed.iter().rev() {
            write(directory, file, lifted(file).unwrap_or_default())?;
        }
        Ok(Speed(speed))
    }

    /// Sets them, by the descriptors alone.
    pub(super) fn set(self) -> Result<()> {
        for (mut opened, (file, value)) in self.0 {
            let written = opened.write_all(value.as_bytes());
            written.during(|| format!("write {value:?} to {file} of the cgroup"))?;
        }
        Ok(())
    }
}

/// What a limit of speed says where there is none; None for any other limit.
fn lifted(file: &str) -> Option<&'static str> {
    match file {
        "cpu.max" => Some("max"),
        "cpu.max.burst" => Some("0"),
        _ => None,
    }
}

/// Creates the cgroup, applies the limits and the device rules, and returns it as a descriptor. The
/// limits of speed are tried, and left to whoever executes the program.
pub(crate) fn create(spec: &Spec, directory: &Path, disks: &Disks) -> Result<(OwnedFd, Speed)> {
    let mut parent = PathBuf::from(ROOT);
    let names = directory.strip_prefix(ROOT).unwrap_or(directory);
    for (depth, name) in names.iter().enumerate() {
        if depth > 0 {
            hierarchy::delegate(&parent)?;
        }
        parent.push(name);
        match fs::create_dir(&parent) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result.during(|| format!("create cgroup {}", parent.display()))?,
        }
    }
    let resources = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    let mut speed = Speed(Vec::new());
    if let Some(resources) = resources {
        let settings = settings(resources)?;
        for (file, value) in &settings {
            write(directory, file, value)?;
        }
        speed = Speed::lift(directory, &settings)?;
        if settings.iter().any(|(file, _)| file == MEMORY_MAX) {
            limit_kernel(directory)?;
        }
    }
    let rules = resources
        .and_then(|resources| resources.devices().as_deref())
        .unwrap_or_default();
    let program = sys::load_device_program(&device_filter::compile(rules, disks)?)
        .during(|| "load the device filter")?;
    let cgroup: OwnedFd = fs::File::open(directory)
        .during(|| format!("open {}", directory.display()))?
        .into();
    sys::attach_device_program(&cgroup, program).during(|| "attach the device filter")?;
    Ok((cgroup, speed))
}

/// Changes the limits that `resources` has, and no others: all of them or, as far as the kernel
/// takes back what it said before, none. Whether that of memory is among them.
pub(crate) fn update(resources: LinuxResources, directory: &Path) -> Result<bool> {
    let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
    let checked = resources.memory().as_ref();
    let checked = checked.filter(|memory| memory.check_before_update() == Some(true));
    if let Some(memory) = checked {
        let used: i64 = read("memory.current").trim().parse().unwrap_or(0);
        // The guest does not swap. The texts are runc's.
        for (what, limit) in [("memory+swap", memory.swap()), ("memory", memory.limit())] {
            if let Some(limit) = limit.filter(|limit| *limit > 0 && *limit <= used) {
                let text = format!("rejecting {what} limit {limit} <= usage {used}");
                return Err(Error::Config(text));
            }
        }
    }
    let mut settings = settings(&complete(resources, read))?;
    // The burst may never be more than the quota (cgroup-v2.rst, cpu.max.burst): of the two, what
    // is lowered goes the other way round.
    let index = |file: &str| settings.iter().position(|(name, _)| name == file);
    if let (Some(quota), Some(burst)) = (index("cpu.max"), index("cpu.max.burst")) {
        let old: u64 = read("cpu.max.burst").trim().parse().unwrap_or(0);
        if settings[burst].1.parse().is_ok_and(|new: u64| new < old) {
            settings.swap(quota, burst);
        }
    }
    let of_memory = settings.iter().any(|(file, _)| file == MEMORY_MAX);
    let mut former = Vec::new();
    for (file, value) in settings {
        // Some can only be written to: they are orders and not limits.
        let old = fs::read_to_string(directory.join(&file)).ok();
        if let Err(error) = write(directory, &file, &value) {
            return Err(put_back(directory, former, error));
        }
        former.extend(old.map(|old| (file, old)));
    }
    Ok(of_memory)
}

/// Puts back what has been changed; the error that is the reason, and what could not be put back.
fn put_back(directory: &Path, former: Vec<Setting>, error: Error) -> Error {
    let mut lost = Vec::new();
    for (file, old) in former.into_iter().rev() {
        if write(directory, &file, old.trim_end()).is_err() {
            lost.push(file);
        }
    }
    if lost.is_empty() {
        return error;
    }
    let (error, lost) = (error.failure(), lost.join(", "));
    Error::Config(format!("{error}; not put back: {lost}"))
}

/// Adds to what is asked for what its files say together with it: a quota has a period, and the
/// limit of memory and swap together a limit of memory. `read` gives a file of the cgroup.
fn complete(mut resources: LinuxResources, read: impl Fn(&str) -> String) -> LinuxResources {
    // "max" is None.
    let number = |text: &str| text.trim().parse::<i64>().ok();
    if let Some(cpu) = resources.cpu_mut() {
        let given = |value: Option<i64>| value.is_some_and(|value| value != 0);
        let (quota, period) = (given(cpu.quota()), cpu.period().is_some_and(|p| p != 0));
        let text = read("cpu.max");
        let (old_quota, old_period) = text.trim().split_once(' ').unwrap_or_default();
        if quota && !period {
            cpu.set_period(old_period.parse().ok());
        } else if period && !quota {
            cpu.set_quota(number(old_quota));
        }
    }
    if let Some(memory) = resources.memory_mut() {
        let given = |value: Option<i64>| value.is_some_and(|value| value != 0);
        let (limit, swap) = (given(memory.limit()), given(memory.swap()));
        let old_limit = number(&read(MEMORY_MAX));
        if swap && !limit {
            memory.set_limit(old_limit);
        } else if limit && !swap && memory.limit().is_some_and(|limit| limit > 0) {
            // What was the limit of both stays it.
            let old_swap = number(&read("memory.swap.max"));
            let both = old_limit
                .zip(old_swap)
                .map(|(limit, swap)| limit.saturating_add(swap));
            memory.set_swap(both);
        }
    }
    resources
}

fn write(directory: &Path, file: &str, value: &str) -> Result<()> {
    match hierarchy::write(directory, file, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && file.starts_with("hugetlb.") => {
            let size = file.split('.').nth(1).unwrap_or_default();
            Err(Error::Config(format!(
                "linux.resources.hugepageLimits: the guest has no pages of {size}"
            )))
        }
        // A guest kernel without swap never swaps: every limit on it holds.
        Err(error) if error.kind() == io::ErrorKind::NotFound && file == "memory.swap.max" => {
            Ok(())
        }
        result => result.during(|| format!("write {value:?} to {file} of the cgroup")),
    }
}

/// Limits what the guest's kernel itself may use of the machine's RAM, which may be as much as the host
/// has, by the limit of the container's cgroup: so it runs short of memory, and reclaims, before the
/// machine has more than the host's cgroup allows.
pub(super) fn limit_kernel(directory: &Path) -> Result<()> {
    let path = directory.join(MEMORY_MAX);
    let limit = fs::read_to_string(&path).during(|| format!("read {}", path.display()))?;
    // 0 is no limit, and so is "max".
    let usable = limit.trim().parse().map_or(0, usable_kbytes);
    fs::write(USABLE, usable.to_string()).during(|| format!("write {usable} to {USABLE}"))
}

/// -1 stands for no limit.
fn limit(value: i64) -> String {
    if value < 0 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

/// What to write for the limits, in an order that the kernel accepts.
fn settings(resources: &LinuxResources) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    let mut add = |file: &str, value: String| settings.push((file.to_owned(), value));
    if let Some(memory) = resources.memory() {
        of_memory(memory, &mut add)?;
    }
    if let Some(cpu) = resources.cpu() {
        of_cpu(cpu, &mut add);
    }
    // 0 stands for "not set", as for runc.
    if let Some(pids) = resources.pids().as_ref().filter(|pids| pids.limit() != 0) {
        add("pids.max", limit(pids.limit()));
    }
    for huge in resources.hugepage_limits().iter().flatten() {
        let size = huge.page_size();
        if size.is_empty() || !size.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(Error::Config(format!(
                "linux.resources.hugepageLimits: bad size {size:?}"
            )));
        }
        add(&format!("hugetlb.{size}.max"), limit(huge.limit()));
        add(&format!("hugetlb.{size}.rsvd.max"), limit(huge.limit()));
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        match Place::of_file(file).filter(|_| !file.contains('/')) {
            Some(Place::Host) => {}
            Some(Place::Guest | Place::Both) => add(file, value.clone()),
            None => {
                return Err(Error::Config(format!(
                    "linux.resources.unified: bad name {file:?}"
                )));
            }
        }
    }
    Ok(settings)
}

fn of_memory(memory: &LinuxMemory, add: &mut impl FnMut(&str, String)) -> Result<()> {
    let swap = swap_max(memory.limit(), memory.swap())
        .map_err(|problem| Error::Config(format!("linux.resources.memory.swap {problem}")))?;
    if let Some(swap) = swap {
        add("memory.swap.max", limit(swap));
    }
    let max = memory.limit().filter(|limit| *limit != 0);
    if let Some(max) = max {
        add(MEMORY_MAX, limit(max));
    }
    if let Some(low) = memory.reservation().filter(|low| *low != 0) {
        add("memory.low", limit(low));
    }
    Ok(())
}

fn of_cpu(cpu: &LinuxCpu, add: &mut impl FnMut(&str, String)) {
    if let Some(idle) = cpu.idle() {
        add("cpu.idle", idle.to_string());
    }
    // An idle cgroup has no weight to set (kernel/sched/core.c, cpu_weight_write_u64).
    if let Some(shares) = cpu.shares().filter(|s| *s != 0 && cpu.idle() != Some(1)) {
        add("cpu.weight", cpu_weight(shares).to_string());
    }
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        let quota = quota.map_or_else(|| "max".to_owned(), limit);
        add(
            "cpu.max",
            format!("{quota} {}", period.unwrap_or(CPU_PERIOD)),
        );
    }
    if let Some(burst) = cpu.burst() {
        add("cpu.max.burst", burst.to_string());
    }
    // cpus and mems number the host's processors and memory nodes: the host applies them to the machine.
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Result<Vec<Setting>> {
        settings(&serde_json::from_str(json).unwrap())
    }

    fn check(json: &str, expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(f, v)| ((*f).to_owned(), (*v).to_owned()))
            .collect();
        assert_eq!(of(json).unwrap(), expected, "{json}");
    }

    #[test]
    fn memory() {
        check(
            r#"{"memory":{"limit":1000,"swap":1500}}"#,
            &[("memory.swap.max", "500"), ("memory.max", "1000")],
        );
        check(
            r#"{"memory":{"limit":1000,"swap":1000,"reservation":10}}"#,
            &[
                ("memory.swap.max", "0"),
                ("memory.max", "1000"),
                ("memory.low", "10"),
            ],
        );
        check(
            r#"{"memory":{"limit":-1,"swap":-1}}"#,
            &[("memory.swap.max", "max"), ("memory.max", "max")],
        );
        check(r#"{"memory":{"limit":0,"swap":0}}"#, &[]);
        assert!(of(r#"{"memory":{"limit":1000,"swap":999}}"#).is_err());
        assert!(of(r#"{"memory":{"swap":999}}"#).is_err());
        check(
            r#"{"memory":{"limit":-1,"swap":999}}"#,
            &[("memory.swap.max", "999"), ("memory.max", "max")],
        );
        check(
            r#"{"memory":{"limit":-1}}"#,
            &[("memory.swap.max", "max"), ("memory.max", "max")],
        );
    }

    #[test]
    fn cpu() {
        check(
            r#"{"cpu":{"shares":1024,"quota":50000,"period":200000,"burst":7}}"#,
            &[
                ("cpu.weight", "100"),
                ("cpu.max", "50000 200000"),
                ("cpu.max.burst", "7"),
            ],
        );
        check(r#"{"cpu":{"quota":50000}}"#, &[("cpu.max", "50000 100000")]);
        check(
            r#"{"cpu":{"quota":-1,"period":5000}}"#,
            &[("cpu.max", "max 5000")],
        );
        check(r#"{"cpu":{"idle":1,"shares":5}}"#, &[("cpu.idle", "1")]);
        check(r#"{"cpu":{"cpus":"6-7","mems":"1"}}"#, &[]);
    }

    #[test]
    fn the_rest() {
        check(r#"{"pids":{"limit":5}}"#, &[("pids.max", "5")]);
        check(r#"{"pids":{"limit":-1}}"#, &[("pids.max", "max")]);
        check(r#"{"pids":{"limit":0}}"#, &[]);
        check(
            r#"{"hugepageLimits":[{"pageSize":"2MB","limit":9}]}"#,
            &[("hugetlb.2MB.max", "9"), ("hugetlb.2MB.rsvd.max", "9")],
        );
        check(
            r#"{"unified":{"memory.high":"5","cpu.weight":"7","io.max":"1","cpuset.cpus":"0"}}"#,
            &[("cpu.weight", "7"), ("memory.high", "5")],
        );
        assert!(of(r#"{"unified":{"../memory.high":"5"}}"#).is_err());
        assert!(of(r#"{"hugepageLimits":[{"pageSize":"../x","limit":9}]}"#).is_err());
    }

    #[test]
    fn limits_of_speed_are_left_to_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let get = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        let cpu = r#"{"cpu":{"quota":5000,"burst":7,"shares":1024},"pids":{"limit":5}}"#;
        let settings = of(cpu).unwrap();
        for (file, value) in &settings {
            fs::write(dir.path().join(file), value).unwrap();
        }
        let speed = Speed::lift(dir.path(), &settings).unwrap();
        // The kernel replaces what is written; a plain file is only overwritten.
        assert!(get("cpu.max").starts_with("max"));
        assert_eq!(get("cpu.max.burst"), "0");
        assert_eq!(
            (get("cpu.weight"), get("pids.max")),
            ("100".into(), "5".into())
        );
        speed.set().unwrap();
        assert_eq!(
            (get("cpu.max"), get("cpu.max.burst")),
            ("5000 100000".into(), "7".into())
        );
    }

    #[test]
    fn an_update_keeps_what_it_does_not_name() {
        let dir = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        let get = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        for (file, text) in [
            ("cpu.max", "50000 200000\n"),
            ("memory.max", "1000\n"),
            ("memory.swap.max", "500\n"),
            ("memory.current", "900\n"),
            ("pids.max", "7\n"),
        ] {
            put(file, text);
        }
        let update = |json: &str| {
            // The kernel replaces what is written; a plain file is only overwritten.
            let resources: LinuxResources = serde_json::from_str(json).unwrap();
            let read = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap_or_default();
            settings(&complete(resources, read))
        };
        let own = |expected: &[(&str, &str)]| -> Vec<Setting> {
            let own = |(file, value): &(&str, &str)| ((*file).to_owned(), (*value).to_owned());
            expected.iter().map(own).collect()
        };
        let cases: [(&str, &[(&str, &str)]); 6] = [
            ("{}", &[]),
            (r#"{"pids":{"limit":9}}"#, &[("pids.max", "9")]),
            (r#"{"cpu":{"quota":1000}}"#, &[("cpu.max", "1000 200000")]),
            (r#"{"cpu":{"period":1000}}"#, &[("cpu.max", "50000 1000")]),
            (
                r#"{"memory":{"limit":1200}}"#,
                &[("memory.swap.max", "300"), ("memory.max", "1200")],
            ),
            (
                r#"{"memory":{"swap":1200}}"#,
                &[("memory.swap.max", "200"), ("memory.max", "1000")],
            ),
        ];
        for (json, expected) in cases {
            assert_eq!(update(json).unwrap(), own(expected), "{json}");
        }
        assert!(
            update(r#"{"memory":{"limit":1600}}"#).is_err(),
            "more than both together"
        );
        put("memory.swap.max", "max\n");
        assert_eq!(
            update(r#"{"memory":{"limit":1600}}"#).unwrap(),
            own(&[("memory.max", "1600")])
        );
        let below = r#"{"memory":{"limit":800,"checkBeforeUpdate":true}}"#;
        let error = super::update(serde_json::from_str(below).unwrap(), dir.path()).unwrap_err();
        assert_eq!(error.to_string(), "rejecting memory limit 800 <= usage 900");
        let json = r#"{"pids":{"limit":8}}"#;
        super::update(serde_json::from_str(json).unwrap(), dir.path()).unwrap();
        assert!(get("pids.max").starts_with('8'));
    }

    #[test]
    fn an_update_that_fails_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        let get = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        put("memory.max", "1000\n");
        put("cpu.weight", "59\n");
        let update = |json: &str| super::update(serde_json::from_str(json).unwrap(), dir.path());
        let json = r#"{"memory":{"limit":2000},"cpu":{"shares":1024,"burst":7}}"#;
        let error = update(json).unwrap_err().to_string();
        assert!(error.contains("to cpu.max.burst"), "{error}");
        assert!(get("memory.max").starts_with("1000"));
        // The plain file is overwritten from its beginning.
        assert!(get("cpu.weight").starts_with("59"));
        put("cpu.max.burst", "0\n");
        update(json).unwrap();
        assert!(get("memory.max").starts_with("2000"));
    }

    #[test]
    fn what_cannot_be_put_back_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("kept"), "1\n").unwrap();
        let former =
            [("gone", "max\n"), ("kept", "2\n")].map(|(f, v)| (f.to_owned(), v.to_owned()));
        let reason = Error::Config("the reason".into());
        let error = put_back(dir.path(), former.into(), reason).to_string();
        assert_eq!(error, "the reason; not put back: gone");
        assert_eq!(fs::read(dir.path().join("kept")).unwrap(), b"2\n");
    }
}
