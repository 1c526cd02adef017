//! How large the machine is, and what the host allows it.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use oci_spec::runtime::{LinuxCpu, LinuxResources};
use serde_json::Value;
use specification::{CPU_PERIOD, CpuList, GUEST_OVERHEAD, SWAP_MAX, cpu_weight, swap_max};

use super::annotations::{MEMORY, VCPUS};
use super::ledger::Ledger;
use super::resources::{io_limits, unified};
use super::{Facts, MachineSize, RESOURCES};
use crate::host::cgroup::Limit;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Guest RAM is a multiple of a huge page (2 MiB on x86_64).
const GRANULE: u64 = 2 * MIB;

/// Least guest RAM when there is no limit.
const DEFAULT_MEMORY: u64 = 512 * MIB;

/// Most guest RAM that a machine is given without being asked: what of it is not used costs a start little, up to here
/// (docs/configuration.md has the figures).
pub(crate) const ROOM_MAX: u64 = 256 * KIB * MIB;

/// The guest's kernel describes each page of 4 KiB in 64 bytes (struct page, linux/mm_types.h).
const PAGES_PER_DESCRIPTOR: u64 = 4 * KIB / 64;

/// Least guest RAM that a machine is given.
const MACHINE_MIN: u64 = 64 * MIB;

/// Least memory limit of a container, that of docker.
const LIMIT_MIN: u64 = 6 * MIB;

/// Host memory of a machine beside guest RAM and what is reckoned by its size: the process itself, kernel memory on its
/// behalf, room for page cache of shared files.
const HOST_OVERHEAD: u64 = 64 * MIB;

/// Both the process's and the guest's page tables need 8 bytes for each 4 KiB page of guest RAM, at worst.
const PAGE_TABLES: u64 = 4 * KIB / (2 * 8);

/// What the guest's kernel spends on a file that it knows, at least: `struct fuse_inode` and `struct dentry`.
const GUEST_INODE: u64 = KIB;

/// Most vCPUs of a machine.
const VCPUS_MAX: u64 = 32;

/// The machine's size, and what its cgroup on the host allows.
pub(super) struct Size {
    /// Guest RAM in bytes.
    pub(super) memory: u64,
    pub(super) vcpus: u8,
    pub(super) limits: Vec<Limit>,
}

/// What the configuration says of the machine itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SizeRequest {
    memory: Option<(String, u64)>,
    vcpus: Option<(String, u64)>,
}

impl SizeRequest {
    /// By annotations of ours, or by `vm.hwConfig`.
    pub(super) fn of(
        annotations: &HashMap<String, String>,
        config: &Value,
        ledger: &mut Ledger,
    ) -> SizeRequest {
        let mut asked = SizeRequest::default();
        for (name, annotation) in [("memory", MEMORY), ("vcpus", VCPUS)] {
            let property = format!("vm.hwConfig.{name}");
            match &config["vm"]["hwConfig"][name] {
                Value::Null => {}
                value => match value.as_u64() {
                    Some(number) => asked.set(name, property, number, ledger),
                    None => ledger.refuse(property, "is not a number"),
                },
            }
            let Some(text) = annotations.get(annotation) else {
                continue;
            };
            let property = format!("annotations[{annotation}]");
            let number = match name {
                "memory" => bytes(text),
                _ => text.parse().ok(),
            };
            match number {
                Some(number) => asked.set(name, property, number, ledger),
                None => ledger.refuse(property, format!("{text:?} is not a number")),
            }
        }
        asked
    }

    fn set(&mut self, name: &str, property: String, number: u64, ledger: &mut Ledger) {
        let (slot, range) = match name {
            "memory" => (&mut self.memory, MACHINE_MIN..=u64::MAX),
            _ => (&mut self.vcpus, 1..=VCPUS_MAX),
        };
        if number < *range.start() {
            ledger.refuse(property, format!("{number} is less than {}", range.start()));
        } else if number > *range.end() {
            ledger.refuse(property, format!("{number} is more than {}", range.end()));
        } else if let Some((other, known)) = slot
            && *known != number
        {
            ledger.refuse(property, format!("{number} is not the {known} of {other}"));
        } else {
            *slot = Some((property, number));
        }
    }
}

/// A number of bytes, with K, M or G behind it of 1024, 1024^2 or 1024^3 bytes.
fn bytes(text: &str) -> Option<u64> {
    let units = [("K", KIB), ("M", MIB), ("G", KIB * MIB)];
    let unit = units
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)));
    let (number, unit) = unit.unwrap_or((text, 1));
    // Not what else parse() takes, such as a sign.
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .then(|| number.parse::<u64>().ok()?.checked_mul(unit))
        .flatten()
}

/// Decides; what cannot be is refused in `ledger`.
pub(super) fn size(
    resources: Option<&LinuxResources>,
    asked: &SizeRequest,
    facts: &Facts<'_>,
    ledger: &mut Ledger,
) -> Size {
    let memory = memory(resources, asked, facts, ledger);
    let (wanted, mut limits) = host_limits(resources, ledger);
    let vcpus = match &asked.vcpus {
        Some((_, vcpus)) => *vcpus,
        None => wanted.clamp(1, VCPUS_MAX),
    };
    let limit = memory_limit(resources, &mut Ledger::default());
    limits.push(host_memory(memory, limit));
    limits.push(Limit::unasked("pids.max", PIDS_MAX.to_string()));
    Size {
        memory,
        vcpus: u8::try_from(vcpus).unwrap_or(u8::MAX),
        limits,
    }
}

/// The limits of a machine that has its size already, when the container's resources change.
pub(super) fn resize(
    old: Option<&LinuxResources>,
    new: Option<&LinuxResources>,
    machine: MachineSize,
    warnings: &mut Vec<String>,
    ledger: &mut Ledger,
) -> Vec<Limit> {
    // What is in force has been looked at when it came.
    let mut seen = Ledger::default();
    let had = memory_limit(old, &mut seen);
    let limit = memory_limit(new, ledger);
    if let Some((property, limit)) = limit.filter(|_| limit != had) {
        check_least(property, limit, ledger);
        let most = allowed(machine.memory);
        // One beyond the host's memory limits nothing.
        if limit > most && machine.memory < machine.host {
            let problem = format!(
                "the machine was given {} bytes of memory, which allow a limit of {most} bytes at most",
                machine.memory
            );
            ledger.refuse(property, problem);
        }
    }
    let ((had, _), (wanted, mut limits)) = (host_limits(old, &mut seen), host_limits(new, ledger));
    if wanted != had && wanted > u64::from(machine.vcpus) {
        warnings.push(format!(
            "the machine has {} vCPU{} and gets no more, where a new one would have {wanted}",
            machine.vcpus,
            if machine.vcpus == 1 { "" } else { "s" }
        ));
    }
    // The burst may never be more than the quota (cgroup-v2.rst, cpu.max.burst): when it is lowered, it comes first.
    let burst = |resources: Option<&LinuxResources>| cpu_of(resources).and_then(LinuxCpu::burst);
    if burst(new) < burst(old) {
        limits.sort_by_key(|limit| limit.file != "cpu.max.burst");
    }
    limits.push(host_memory(machine.memory, limit));
    limits
}

/// Maximum number of tasks of a machine on the host: its threads, and a stub for each process that was executed and
/// left to itself. A machine makes no threads once its guest runs; this bounds those who add stubs.
const PIDS_MAX: u32 = 4096;

/// What the host allows a machine with this much RAM, of which the guest's kernel uses no more than the limit needs.
fn host_memory(memory: u64, limit: Option<(&str, u64)>) -> Limit {
    let memory = limit.map_or(memory, |(_, limit)| {
        memory.min(needed(limit).next_multiple_of(GRANULE))
    });
    // As many as fill the guest's memory, or as there may be, if that is less.
    let longest = u64::from(vmm_fs::MAX_INODES) * vmm_fs::LONGEST_INODE_BYTES;
    let files = (memory / GUEST_INODE * vmm_fs::INODE_BYTES).min(longest);
    let most = memory + memory / PAGE_TABLES + files + HOST_OVERHEAD;
    Limit::unasked("memory.max", most.to_string())
}

/// The greatest limit of a container's memory in a machine with this much RAM: it has to be reached before the guest's
/// kernel itself is short of memory.
fn allowed(memory: u64) -> u64 {
    (memory - memory / PAGES_PER_DESCRIPTOR).saturating_sub(GUEST_OVERHEAD)
}

/// The RAM of a machine for a container with this limit; the inverse of [`allowed`].
fn needed(limit: u64) -> u64 {
    let used = limit.saturating_add(GUEST_OVERHEAD);
    used.saturating_add(used.div_ceil(PAGES_PER_DESCRIPTOR - 1))
}

/// Guest RAM in bytes.
fn memory(
    resources: Option<&LinuxResources>,
    asked: &SizeRequest,
    facts: &Facts<'_>,
    ledger: &mut Ledger,
) -> u64 {
    let limit = memory_limit(resources, ledger);
    if let Some((property, limit)) = limit {
        check_least(property, limit, ledger);
    }
    let wanted = match (&asked.memory, limit) {
        (Some((property, memory)), limit) => {
            if *memory > facts.memory {
                let problem = format!(
                    "{memory} is more than the {} bytes of this host",
                    facts.memory
                );
                ledger.refuse(property.as_str(), problem);
            }
            if let Some((limited_by, limit)) = limit
                && limit > allowed(*memory)
            {
                let problem = format!(
                    "{memory} is too little for {limited_by}, which needs {}",
                    needed(limit)
                );
                ledger.refuse(property.as_str(), problem);
            }
            *memory
        }
        // The rest is there for a limit that is raised. One beyond the host's memory limits nothing.
        (None, Some((_, limit))) => needed(limit).max(MACHINE_MIN).max(facts.room),
        (None, None) => DEFAULT_MEMORY.max(facts.room),
    };
    wanted.min(facts.memory).div_ceil(GRANULE) * GRANULE
}

fn check_least(property: &str, limit: u64, ledger: &mut Ledger) {
    if limit < LIMIT_MIN {
        let problem =
            format!("{limit} bytes are less than the {LIMIT_MIN} bytes that a container needs");
        ledger.refuse(property, problem);
    }
}

/// The limit of the container's memory in bytes, and the property that sets it.
fn memory_limit(
    resources: Option<&LinuxResources>,
    ledger: &mut Ledger,
) -> Option<(&'static str, u64)> {
    const UNIFIED: &str = "linux.resources.unified[memory.max]";
    let unified = resources.and_then(|resources| unified(resources).remove("memory.max"));
    match unified.map(str::trim) {
        None | Some("max") => {}
        Some(text) => match text.parse() {
            Ok(limit) => return Some((UNIFIED, limit)),
            Err(_) => ledger.refuse(UNIFIED, "is not a number of bytes"),
        },
    }
    let limit = resources
        .and_then(|resources| resources.memory().as_ref())
        .and_then(|memory| memory.limit());
    let limit = limit
        .and_then(|limit| u64::try_from(limit).ok())
        .filter(|limit| *limit > 0);
    limit.map(|limit| ("linux.resources.memory.limit", limit))
}

fn cpu_of(resources: Option<&LinuxResources>) -> Option<&LinuxCpu> {
    resources.and_then(|resources| resources.cpu().as_ref())
}

/// The number of vCPUs that CPU limits come to, and the limits of what the machine takes of the host.
pub(super) fn host_limits(
    resources: Option<&LinuxResources>,
    ledger: &mut Ledger,
) -> (u64, Vec<Limit>) {
    let (mut quota, mut cpus) = (None, None);
    let mut limits = Vec::new();
    if let Some(cpu) = cpu_of(resources) {
        (quota, cpus) = cpu_limits(cpu, &mut limits);
    }
    let Some(resources) = resources else {
        return (1, limits);
    };
    limits.extend(io_limits(resources));
    limits.extend(swap_limit(resources));
    for (file, value) in unified(resources) {
        let property = || format!("{RESOURCES}.unified[{file}]");
        match file {
            "cpu.max" => match of_cpu_max(value) {
                Some(wanted) => quota = wanted,
                None => ledger.refuse(property(), "is not QUOTA PERIOD in microseconds"),
            },
            "cpuset.cpus" if !value.trim().is_empty() => match CpuList::parse(value) {
                Some(list) => cpus = Some(list.count()),
                None => ledger.refuse(property(), "is not a list of CPUs"),
            },
            _ => {}
        }
        if file.starts_with("cpu.") || file.starts_with("cpuset.") || file == SWAP_MAX {
            limits.push(Limit::asked(file.to_owned(), value, property()));
        }
    }
    let wanted = match (quota, cpus) {
        (Some(quota), Some(cpus)) => u64::min(quota, cpus),
        (wanted, None) | (None, wanted) => wanted.unwrap_or(1),
    };
    (wanted, limits)
}

/// How much of the machine's memory the host may swap out: as much as of the container's, were it a process of the host.
fn swap_limit(resources: &LinuxResources) -> Option<Limit> {
    let memory = resources.memory().as_ref()?;
    // What is wrong with it has been refused.
    let most = swap_max(memory.limit(), memory.swap()).ok().flatten()?;
    Some(match u64::try_from(most) {
        // Where nothing can be swapped out there is no file to say so.
        Ok(0) => Limit::unasked(SWAP_MAX, "0"),
        Ok(most) => Limit::asked(
            SWAP_MAX,
            most.to_string(),
            format!("{RESOURCES}.memory.swap"),
        ),
        Err(_) => Limit::unasked(SWAP_MAX, "max"),
    })
}

/// How many CPUs' time `QUOTA [PERIOD]` is (cgroup-v2.rst, cpu.max), if it is limited.
fn of_cpu_max(text: &str) -> Option<Option<u64>> {
    let mut numbers = text.split_ascii_whitespace();
    let quota = numbers.next()?;
    let period = match numbers.next() {
        Some(period) => period.parse().ok().filter(|period| *period > 0)?,
        None => CPU_PERIOD,
    };
    match (quota, numbers.next()) {
        (_, Some(_)) => None,
        ("max", None) => Some(None),
        (quota, None) => Some(Some(quota.parse::<u64>().ok()?.div_ceil(period))),
    }
}

/// Adds the limits of the machine's use of the host's CPUs; how many CPUs' time it has, and how many CPUs, where that
/// is limited.
fn cpu_limits(cpu: &LinuxCpu, limits: &mut Vec<Limit>) -> (Option<u64>, Option<u64>) {
    let mut limit = |file: &'static str, value: String, name: &str| {
        limits.push(Limit::asked(file, value, format!("{RESOURCES}.cpu.{name}")));
    };
    if let Some(idle) = cpu.idle() {
        limit("cpu.idle", idle.to_string(), "idle");
    }
    // An idle cgroup has no weight to set (kernel/sched/core.c, cpu_weight_write_u64).
    if let Some(shares) = cpu.shares().filter(|s| *s > 0 && cpu.idle() != Some(1)) {
        limit("cpu.weight", cpu_weight(shares).to_string(), "shares");
    }
    let period = cpu.period().filter(|period| *period > 0);
    let quota = cpu.quota().filter(|quota| *quota != 0).map(u64::try_from);
    let mut wanted = None;
    if let Some(Ok(quota)) = quota {
        let period = period.unwrap_or(CPU_PERIOD);
        wanted = Some(quota.div_ceil(period));
        limit("cpu.max", format!("{quota} {period}"), "quota");
    } else if quota.is_some() || period.is_some() {
        // No quota, which is what holds where there is no file to say so.
        let period = period.unwrap_or(CPU_PERIOD);
        limits.push(Limit::unasked("cpu.max", format!("max {period}")));
    }
    let mut limit = |file: &'static str, value: String, name: &str| {
        limits.push(Limit::asked(file, value, format!("{RESOURCES}.cpu.{name}")));
    };
    if let Some(burst) = cpu.burst() {
        limit("cpu.max.burst", burst.to_string(), "burst");
    }
    let text = |list: &Option<String>| list.clone().filter(|list| !list.is_empty());
    let cpus = text(cpu.cpus());
    let count = cpus
        .as_deref()
        .and_then(CpuList::parse)
        .map(|list| list.count());
    if let Some(cpus) = cpus {
        limit("cpuset.cpus", cpus, "cpus");
    }
    if let Some(mems) = text(cpu.mems()) {
        limit("cpuset.mems", mems, "mems");
    }
    (wanted, count)
}
