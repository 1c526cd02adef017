//! The figures of a container in runc's form (types/events.go of runc), which callers of `events` parse.
//!
//! They are those of the container's cgroup in the guest. One member is this runtime's own: `machine` has `cpu` and
//! `memory` in the same form, as the machine's cgroup on this host counts them. It holds the guest's RAM as far as the
//! guest has touched it, so it is what the container costs the host.

mod parse;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

pub(crate) use parse::Invalid;

/// Names and contents of cgroup files (cgroup-v2.rst).
pub(crate) type Files = [(String, String)];

/// What `events` prints in one line.
#[derive(Debug, Serialize)]
pub(crate) struct Event<'a> {
    /// `stats` or `oom`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// Of the container.
    pub(crate) id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<Statistics>,
}

/// All figures. What the guest does not report is zero or left out, as runc does it.
#[derive(Debug, Serialize)]
pub(crate) struct Statistics {
    cpu: Cpu,
    cpuset: CpuSet,
    memory: Memory,
    pids: Pids,
    blkio: BlockIo,
    hugetlb: BTreeMap<String, HugePages>,
    intel_rdt: Nothing,
    /// None is known, as with runc when an engine makes the interfaces.
    network_interfaces: (),
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<Machine>,
}

impl Statistics {
    /// From the files of the container's cgroup in the guest, and those of the machine's on this host if it has one.
    ///
    /// # Errors
    /// A file is not what the kernel writes.
    pub(crate) fn new(guest: &Files, host: Option<&Files>) -> Result<Statistics, Invalid> {
        Ok(Statistics {
            cpu: parse::cpu(guest)?,
            cpuset: CpuSet::default(),
            memory: parse::memory(guest)?,
            pids: parse::pids(guest)?,
            blkio: parse::block_io(guest)?,
            hugetlb: parse::huge_pages(guest)?,
            intel_rdt: Nothing {},
            network_interfaces: (),
            machine: host.map(parse::machine).transpose()?,
        })
    }
}

/// The files of the machine's cgroup that [`Statistics::new`] looks at, as far as they are there.
pub(crate) fn host_files(cgroup: &Path) -> Vec<(String, String)> {
    parse::HOST_FILES
        .into_iter()
        .filter_map(|name| {
            let text = std::fs::read_to_string(cgroup.join(name)).ok()?;
            Some((name.to_owned(), text))
        })
        .collect()
}

#[derive(Debug, Default, Serialize)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

/// Nanoseconds.
#[derive(Debug, Default, Serialize)]
struct CpuUsage {
    #[serde(skip_serializing_if = "is_zero")]
    total: u64,
    kernel: u64,
    user: u64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_periods: u64,
    /// Nanoseconds.
    #[serde(skip_serializing_if = "is_zero")]
    throttled_time: u64,
}

/// Pressure stall information (Documentation/accounting/psi.rst).
#[derive(Debug, Default, PartialEq, Serialize)]
struct Pressure {
    some: Stall,
    full: Stall,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Stall {
    /// Percent of the last 10 seconds.
    avg10: f64,
    avg60: f64,
    avg300: f64,
    /// Microseconds.
    total: u64,
}

/// Cgroup v2 counts none of it; runc prints it nevertheless.
#[derive(Debug, Default, Serialize)]
struct CpuSet {
    cpu_exclusive: u64,
    mem_hardwall: u64,
    mem_exclusive: u64,
    memory_migrate: u64,
    memory_spread_page: u64,
    memory_spread_slab: u64,
    memory_pressure: u64,
    sched_load_balance: u64,
    sched_relax_domain_level: i64,
}

/// Bytes.
#[derive(Debug, Default, Serialize)]
struct Memory {
    #[serde(skip_serializing_if = "is_zero")]
    cache: u64,
    usage: MemoryEntry,
    /// Memory and swap together, as cgroup v1 counts.
    swap: MemoryEntry,
    kernel: MemoryEntry,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: MemoryEntry,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct MemoryEntry {
    /// `u64::MAX` is no limit.
    limit: u64,
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

#[derive(Debug, Default, Serialize)]
struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    current: u64,
    /// 0 is no limit.
    #[serde(skip_serializing_if = "is_zero")]
    limit: u64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct BlockIo {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_service_bytes_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_serviced_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct BlockIoEntry {
    #[serde(skip_serializing_if = "is_zero")]
    major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    minor: u64,
    op: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    value: u64,
}

/// Bytes.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct HugePages {
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    failcnt: u64,
}

#[derive(Debug, Serialize)]
struct Nothing {}

/// What the machine costs the host.
#[derive(Debug, Serialize)]
struct Machine {
    cpu: Cpu,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<MachineMemory>,
}

#[derive(Debug, Serialize)]
struct MachineMemory {
    usage: MemoryEntry,
}

// serde hands out references.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}
