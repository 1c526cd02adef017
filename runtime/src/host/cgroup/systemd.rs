//! A cgroup that systemd makes and owns: that of a transient scope, `--systemd-cgroup`.
//!
//! ```text
//! create                              systemd
//!   placeholder <──clone
//!   StartTransientUnit(placeholder) ──> makes the scope's cgroup, moves the placeholder into it
//!                                  <─── JobRemoved "done"
//!   machine <──clone3 into the cgroup
//!   ends the placeholder
//! delete: the cgroup is emptied, which ends the scope; StopUnit waits until it has.
//! ```
//! A scope without processes does not exist, hence the placeholder: the machine is a member of its cgroup from its
//! first instruction on. When create fails or is killed, placeholder and machine end, and with them the scope.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2, read};
use specification::CpuList;

use super::dbus::{self, Call, Connection, Message, Value, Writer};
use super::{Limit, property};
use crate::sys::{Cloned, clone_process, exit_now};

/// systemd's own socket, for root only; it works without a message bus.
const PRIVATE_SOCKET: &str = "/run/systemd/private";
/// The system's message bus (D-Bus Specification, "Well-known Message Bus Instances").
const BUS_SOCKET: &str = "/run/dbus/system_bus_socket";

/// Names of org.freedesktop.systemd1(5) and of the bus itself.
const DESTINATION: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";
const BUS: &str = "org.freedesktop.DBus";
const BUS_OBJECT: &str = "/org/freedesktop/DBus";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";

/// The slice of containers that name none.
const DEFAULT_SLICE: &str = "system.slice";
/// Starts the scope's name when there is no cgroupsPath.
const DEFAULT_PREFIX: &str = "chiton";
/// Longest name of a unit (systemd, unit-name.h).
const NAME_MAX: usize = 255;

/// What a unit's property counts CPU time by: microseconds in a second.
const USEC_PER_SEC: u64 = 1_000_000;
/// systemd keeps quotas in whole percents of a CPU: 10 ms in a second.
const QUOTA_STEP: u64 = 10_000;

/// CPUs and memory nodes have numbers below this one: bounds what a list such as `0-4294967295` takes of memory.
const NUMBERS_MAX: u32 = 1 << 16;

/// What goes wrong with a scope.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("systemd not running on this host, cannot use systemd cgroups manager")]
    NotRunning,
    #[error("systemd cgroups need cgroup v2, which is not mounted")]
    NoHierarchy,
    #[error(
        "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {0:?} instead"
    )]
    Format(String),
    #[error("invalid slice name: {0}")]
    Slice(String),
    #[error("invalid unit name: {0}")]
    Name(String),
    #[error("linux.cgroupsPath names the slice {0}: a container needs a scope")]
    NotScope(String),
    #[error("systemd units have no property for {0}")]
    Limit(String),
    #[error("{0} has a value that no property of a systemd unit can express")]
    Value(String),
    #[error(transparent)]
    Annotation(#[from] property::Error),
    #[error("start a process for the scope")]
    Placeholder(#[source] io::Error),
    #[error("unable to start unit {unit:?}")]
    Start { unit: String, source: dbus::Error },
    #[error("error creating systemd unit `{unit}`: got `{result}`")]
    Job { unit: String, result: String },
    #[error("unable to set the properties of unit {unit:?}")]
    Set { unit: String, source: dbus::Error },
}

/// Whether systemd runs this host (sd_booted(3)).
pub(crate) fn check_running() -> Result<(), Error> {
    let booted = fs::symlink_metadata("/run/systemd/system").is_ok_and(|found| found.is_dir());
    booted.then_some(()).ok_or(Error::NotRunning)
}

/// The scope that a container's cgroupsPath names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scope {
    slice: String,
    /// The slice's cgroup, relative.
    slice_path: PathBuf,
    name: String,
    /// Asked for by annotations.
    properties: Vec<(String, Value)>,
}

impl Scope {
    /// `slice:prefix:name`, as runc understands it.
    pub(crate) fn parse<'a>(
        cgroups_path: Option<&Path>,
        id: &str,
        annotations: impl Iterator<Item = (&'a String, &'a String)>,
    ) -> Result<Scope, Error> {
        let text = cgroups_path
            .unwrap_or_else(|| Path::new(""))
            .to_string_lossy();
        let parts: Vec<&str> = text.split(':').collect();
        let (slice, prefix, name) = match parts[..] {
            [""] => ("", DEFAULT_PREFIX, id),
            [slice, prefix, name] => (slice, prefix, name),
            _ => return Err(Error::Format(text.into_owned())),
        };
        if name.ends_with(".slice") {
            return Err(Error::NotScope(name.to_owned()));
        }
        let slice = if slice.is_empty() {
            DEFAULT_SLICE
        } else {
            slice
        };
        let name = format!("{prefix}-{name}.scope");
        if !is_unit_name(&name) {
            return Err(Error::Name(name));
        }
        Ok(Scope {
            slice_path: expand(slice)?,
            slice: slice.to_owned(),
            name,
            properties: property::properties(annotations)?,
        })
    }

    /// The unit's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The directory of the scope's cgroup.
    pub(crate) fn directory(&self, root: &Path) -> PathBuf {
        root.join(&self.slice_path).join(&self.name)
    }

    /// Starts the scope with `limits`, around a process that ends with the value returned.
    pub(super) fn start(&self, limits: &[Limit]) -> Result<Placeholder, Error> {
        let placeholder = Placeholder::new().map_err(Error::Placeholder)?;
        let pid = placeholder.pid.as_raw().unsigned_abs();
        let properties = self.properties(pid, limits)?;
        let failed = |source| Error::Start {
            unit: self.name.clone(),
            source,
        };
        let mut systemd = Systemd::connect().map_err(failed)?;
        let result = systemd
            .start(&self.name, &properties)
            .or_else(|e| match e {
                dbus::Error::Reply { ref name, .. } if name == UNIT_EXISTS => {
                    // It may be one that has failed, which stays until it is reset.
                    let _ = systemd.reset_failed(&self.name);
                    systemd.start(&self.name, &properties)
                }
                e => Err(e),
            })
            .map_err(failed)?;
        if result == "done" {
            return Ok(placeholder);
        }
        let _ = systemd.reset_failed(&self.name);
        Err(Error::Job {
            unit: self.name.clone(),
            result,
        })
    }

    /// What runc sets, so that a container looks alike to who asks systemd.
    fn properties(&self, pid: u32, limits: &[Limit]) -> Result<Vec<(String, Value)>, Error> {
        let description = format!("chiton container {}", self.name);
        let mut properties = vec![
            ("Description".to_owned(), Value::Text(description)),
            ("Slice".to_owned(), Value::Text(self.slice.clone())),
            ("PIDs".to_owned(), Value::Numbers(vec![pid])),
        ];
        for (name, value) in [
            ("Delegate", true),
            ("DefaultDependencies", false),
            ("MemoryAccounting", true),
            ("CPUAccounting", true),
            ("IOAccounting", true),
            ("TasksAccounting", true),
        ] {
            properties.push((name.to_owned(), Value::Bool(value)));
        }
        properties.extend(self.properties.iter().cloned());
        for limit in limits {
            properties.extend(limit_properties(limit)?);
        }
        Ok(properties)
    }
}

/// Stops a scope and waits until it is gone. As with runc this may fail: without processes the scope ends by itself.
pub(super) fn stop(unit: &str) {
    if let Ok(mut systemd) = Systemd::connect() {
        let _ = systemd.stop(unit);
        let _ = systemd.reset_failed(unit);
    }
}

/// Changes the limits of a scope, as long as it lives. What is written to its files only is undone by the next
/// `systemctl daemon-reload`.
pub(super) fn set(unit: &str, limits: &[Limit]) -> Result<(), Error> {
    let mut properties = Vec::new();
    for limit in limits {
        properties.extend(limit_properties(limit)?);
    }
    Systemd::connect()
        .and_then(|mut systemd| systemd.set_properties(unit, &properties))
        .map_err(|source| Error::Set {
            unit: unit.to_owned(),
            source,
        })
}

/// The cgroup of a slice, relative: `a-b.slice` is `a.slice/a-b.slice` (systemd.slice(5)).
fn expand(slice: &str) -> Result<PathBuf, Error> {
    let invalid = || Error::Slice(slice.to_owned());
    let name = slice.strip_suffix(".slice").ok_or_else(invalid)?;
    if name == "-" {
        return Ok(PathBuf::new());
    }
    if !is_unit_name(slice) {
        return Err(invalid());
    }
    let mut path = PathBuf::new();
    let mut prefix = String::new();
    for component in name.split('-') {
        if component.is_empty() {
            return Err(invalid());
        }
        prefix.push_str(component);
        path.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    Ok(path)
}

/// systemd.unit(5): letters, digits, and some more characters, none of them a slash.
fn is_unit_name(name: &str) -> bool {
    let valid = |c: char| c.is_ascii_alphanumeric() || r":-_.\@".contains(c);
    name.len() <= NAME_MAX && name.chars().all(valid)
}

/// The properties for a limit (systemd.resource-control(5)): what is not one of the unit's own is reset by `systemctl
/// daemon-reload`.
fn limit_properties(limit: &Limit) -> Result<Vec<(String, Value)>, Error> {
    let named = || limit.property.as_ref().unwrap_or(&limit.file).to_string();
    let invalid = || Error::Value(named());
    let number = |text: &str| match text {
        "max" => Ok(u64::MAX),
        text => text.parse().map_err(|_| invalid()),
    };
    let properties = match &*limit.file {
        "memory.max" => vec![("MemoryMax", Value::U64(number(&limit.value)?))],
        "pids.max" => vec![("TasksMax", Value::U64(number(&limit.value)?))],
        "memory.swap.max" => vec![("MemorySwapMax", Value::U64(number(&limit.value)?))],
        "cpu.weight" => vec![("CPUWeight", Value::U64(number(&limit.value)?))],
        "cpu.max" => {
            let (quota, period) = limit.value.split_once(' ').ok_or_else(invalid)?;
            let (quota, period) = (number(quota)?, number(period)?);
            let each_second = match quota {
                u64::MAX => u64::MAX,
                quota => quota
                    .checked_mul(USEC_PER_SEC)
                    .and_then(|product| product.checked_div(period))
                    .and_then(|usec| usec.checked_next_multiple_of(QUOTA_STEP))
                    .ok_or_else(invalid)?,
            };
            vec![
                ("CPUQuotaPerSecUSec", Value::U64(each_second)),
                ("CPUQuotaPeriodUSec", Value::U64(period)),
            ]
        }
        "cpuset.cpus" => vec![("AllowedCPUs", mask(&limit.value).ok_or_else(invalid)?)],
        "cpuset.mems" => {
            vec![(
                "AllowedMemoryNodes",
                mask(&limit.value).ok_or_else(invalid)?,
            )]
        }
        // systemd has no property for them, or one that names files instead of devices; as runc: the files are written,
        // and are the container's own to write (Delegate=).
        "cpu.idle" | "cpu.max.burst" | "cpu.weight.nice" => Vec::new(),
        file if file.starts_with("io.") => Vec::new(),
        _ => return Err(Error::Limit(named())),
    };
    Ok(properties
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect())
}

/// A list of CPUs or memory nodes as a set of bits, the first in the first byte's lowest. An empty one is no limit.
fn mask(list: &str) -> Option<Value> {
    if list.is_empty() {
        return Some(Value::Bytes(Vec::new()));
    }
    let list = CpuList::parse(list)?;
    let words = list.mask(NUMBERS_MAX)?;
    let mut bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    bytes.truncate(list.last() as usize / 8 + 1);
    Some(Value::Bytes(bytes))
}

/// A process that does nothing but live, until this value or the process that has it ends.
#[derive(Debug)]
pub(crate) struct Placeholder {
    pid: Pid,
    /// The end of the pipe that only we have: the placeholder lives until it is closed.
    _life: OwnedFd,
}

impl Placeholder {
    fn new() -> io::Result<Placeholder> {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
        match clone_process(None)? {
            Cloned::Child => {
                drop(ours);
                while read(theirs.as_fd(), &mut [0]) == Err(Errno::EINTR) {}
                exit_now(0)
            }
            Cloned::Parent(pid) => Ok(Placeholder {
                pid: Pid::from_raw(pid),
                _life: ours,
            }),
        }
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        // A child that has ended keeps its pid until it is waited for.
        let _ = kill(self.pid, Signal::SIGKILL);
        while waitpid(self.pid, None) == Err(Errno::EINTR) {}
    }
}

/// systemd's interface for units.
struct Systemd {
    connection: Connection,
}

impl Systemd {
    fn connect() -> Result<Systemd, dbus::Error> {
        match Connection::open(Path::new(PRIVATE_SOCKET)) {
            Ok(connection) => Ok(Systemd { connection }),
            Err(_) => Systemd::on_bus(Path::new(BUS_SOCKET)),
        }
    }

    /// On a bus signals come to those only that ask for them.
    fn on_bus(path: &Path) -> Result<Systemd, dbus::Error> {
        let mut connection = Connection::open(path)?;
        let mut ask = |member, signature, body| {
            connection.call(&Call {
                destination: BUS,
                path: BUS_OBJECT,
                interface: BUS,
                member,
                signature,
                body,
            })
        };
        ask("Hello", "", Writer::default())?;
        let mut rule = Writer::default();
        rule.string(&format!(
            "type='signal',sender='{DESTINATION}',interface='{INTERFACE}',member='JobRemoved'"
        ));
        ask("AddMatch", "s", rule)?;
        let mut systemd = Systemd { connection };
        systemd.call("Subscribe", "", Writer::default())?;
        Ok(systemd)
    }

    fn call(
        &mut self,
        member: &str,
        signature: &str,
        body: Writer,
    ) -> Result<Message, dbus::Error> {
        self.connection.call(&Call {
            destination: DESTINATION,
            path: OBJECT,
            interface: INTERFACE,
            member,
            signature,
            body,
        })
    }

    /// Starts a transient unit; how the job ended.
    fn start(&mut self, unit: &str, properties: &[(String, Value)]) -> Result<String, dbus::Error> {
        let mut body = Writer::default();
        body.string(unit);
        body.string("replace");
        body.properties(properties);
        // No other units.
        body.array(8, |_| {});
        self.job("StartTransientUnit", "ssa(sv)a(sa(sv))", body)
    }

    /// Stops a unit; how the job ended.
    fn stop(&mut self, unit: &str) -> Result<String, dbus::Error> {
        let mut body = Writer::default();
        body.string(unit);
        body.string("replace");
        self.job("StopUnit", "ss", body)
    }

    /// Sets properties of a unit until it ends.
    fn set_properties(
        &mut self,
        unit: &str,
        properties: &[(String, Value)],
    ) -> Result<(), dbus::Error> {
        let mut body = Writer::default();
        body.string(unit);
        body.bool(true);
        body.properties(properties);
        self.call("SetUnitProperties", "sba(sv)", body).map(drop)
    }

    /// Makes systemd forget that a unit has failed.
    fn reset_failed(&mut self, unit: &str) -> Result<(), dbus::Error> {
        let mut body = Writer::default();
        body.string(unit);
        self.call("ResetFailedUnit", "s", body).map(drop)
    }

    /// Calls a method that starts a job, and waits for its end.
    fn job(&mut self, member: &str, signature: &str, body: Writer) -> Result<String, dbus::Error> {
        let reply = self.call(member, signature, body)?;
        let job = reply.body("o")?.string()?;
        loop {
            let signal = self.connection.signal("JobRemoved")?;
            let mut removed = signal.body("uoss")?;
            let (_id, path, _unit, result) = (
                removed.u32()?,
                removed.string()?,
                removed.string()?,
                removed.string()?,
            );
            if path == job {
                return Ok(result.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests;
