//! How large the machine is.

use oci_spec::runtime::LinuxResources;

use super::{Facts, MachineSize, Refused, invalid};
use crate::cgroup::Limit;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Guest RAM is a multiple of a huge page (2 MiB on x86_64).
const GRANULE: u64 = 2 * MIB;

/// Guest RAM when the configuration has no memory limit.
const DEFAULT_MEMORY: u64 = 512 * MIB;

/// Guest RAM beside the container's own limit: the guest's kernel, the agent, page tables. The limit itself holds inside the guest.
const GUEST_OVERHEAD: u64 = 48 * MIB;

/// Least guest RAM that a machine is given.
const MACHINE_MIN: u64 = 64 * MIB;

/// Least memory limit of a container.
const LIMIT_MIN: u64 = 16 * MIB;

/// Host memory of a machine beside guest RAM: the process itself, kernel memory on its behalf, room for page cache of shared files.
const HOST_OVERHEAD: u64 = 64 * MIB;

/// Both the process's and the guest's page tables need 8 bytes for each 4 KiB page of guest RAM, at worst.
const PAGE_TABLES: u64 = 4 * KIB / (2 * 8);

/// Most vCPUs of a machine.
const VCPUS_MAX: u64 = 32;

/// `cpu.cfs_period_us` when the configuration has only a quota (Linux, sched-bwc).
const DEFAULT_PERIOD: u64 = 100_000;

/// The machine's size, and what its cgroup on the host allows.
pub(super) struct Size {
    /// Guest RAM in bytes.
    pub(super) memory: u64,
    pub(super) vcpus: u8,
    pub(super) limits: Vec<Limit>,
}

pub(super) fn size(resources: Option<&LinuxResources>, facts: &Facts<'_>) -> Result<Size, Refused> {
    let memory = memory(resources, facts)?;
    let (vcpus, mut limits) = cpu(resources)?;
    limits.push(host_memory(memory));
    Ok(Size {
        memory,
        vcpus,
        limits,
    })
}

/// The limits of a machine that has its size already, when the container's resources change.
pub(super) fn resize(
    old: Option<&LinuxResources>,
    new: Option<&LinuxResources>,
    machine: MachineSize,
    warnings: &mut Vec<String>,
) -> Result<Vec<Limit>, Refused> {
    let had = memory_limit(old)?;
    match memory_limit(new)? {
        limit if limit == had => {}
        None => warnings.push(format!(
            "the machine has {} bytes of memory, limit or not",
            machine.memory
        )),
        Some((property, limit)) => {
            check_least(property, limit)?;
            let most = machine.memory.saturating_sub(GUEST_OVERHEAD);
            if limit > most {
                let problem = format!(
                    "the machine was given {} bytes of memory, which allow a limit of {most} bytes at most",
                    machine.memory
                );
                return Err(invalid(property, problem));
            }
        }
    }
    let ((had, _), (wanted, mut limits)) = (cpu(old)?, cpu(new)?);
    if wanted != had && wanted > machine.vcpus {
        warnings.push(format!(
            "the machine has {} vCPU{} and gets no more, where a new one would have {wanted}",
            machine.vcpus,
            if machine.vcpus == 1 { "" } else { "s" }
        ));
    }
    limits.push(host_memory(machine.memory));
    Ok(limits)
}

/// What the host allows a machine with this much RAM.
fn host_memory(memory: u64) -> Limit {
    Limit {
        file: "memory.max",
        value: (memory + memory / PAGE_TABLES + HOST_OVERHEAD).to_string(),
        property: None,
    }
}

/// Guest RAM in bytes.
fn memory(resources: Option<&LinuxResources>, facts: &Facts<'_>) -> Result<u64, Refused> {
    let Some((property, limit)) = memory_limit(resources)? else {
        return Ok(DEFAULT_MEMORY);
    };
    check_least(property, limit)?;
    let wanted = limit.saturating_add(GUEST_OVERHEAD);
    // A limit beyond the host's memory limits nothing.
    let memory = wanted.min(facts.memory).max(MACHINE_MIN);
    Ok(memory.div_ceil(GRANULE) * GRANULE)
}

fn check_least(property: &str, limit: u64) -> Result<(), Refused> {
    if limit >= LIMIT_MIN {
        return Ok(());
    }
    let problem =
        format!("{limit} bytes are less than the {LIMIT_MIN} bytes that a container needs");
    Err(invalid(property, problem))
}

/// The limit of the container's memory in bytes, and the property that sets it.
fn memory_limit(
    resources: Option<&LinuxResources>,
) -> Result<Option<(&'static str, u64)>, Refused> {
    let unified = resources
        .and_then(|r| r.unified().as_ref())
        .and_then(|u| u.get("memory.max"));
    if let Some(text) = unified.filter(|text| *text != "max") {
        let property = "linux.resources.unified[memory.max]";
        let limit = text.parse();
        return Ok(Some((
            property,
            limit.map_err(|_| invalid(property, "is not a number of bytes"))?,
        )));
    }
    let limit = resources
        .and_then(|r| r.memory().as_ref())
        .and_then(|memory| memory.limit());
    let limit = limit
        .and_then(|limit| u64::try_from(limit).ok())
        .filter(|limit| *limit > 0);
    Ok(limit.map(|limit| ("linux.resources.memory.limit", limit)))
}

/// The number of vCPUs, and the limits of their use of the host's CPUs.
fn cpu(resources: Option<&LinuxResources>) -> Result<(u8, Vec<Limit>), Refused> {
    let Some(cpu) = resources.and_then(|resources| resources.cpu().as_ref()) else {
        return Ok((1, Vec::new()));
    };
    let mut wanted = None;
    let mut limits = Vec::new();
    let period = cpu
        .period()
        .filter(|period| *period > 0)
        .unwrap_or(DEFAULT_PERIOD);
    match cpu.quota().map(u64::try_from) {
        None | Some(Ok(0)) => {}
        Some(Ok(quota)) => {
            wanted = Some(quota.div_ceil(period));
            limits.push(Limit {
                file: "cpu.max",
                value: format!("{quota} {period}"),
                property: Some("linux.resources.cpu.quota"),
            });
        }
        // No quota, which is what holds where there is no file to say so.
        Some(Err(_)) => limits.push(Limit {
            file: "cpu.max",
            value: format!("max {period}"),
            property: None,
        }),
    }
    let mut limit = |file, value, property| {
        limits.push(Limit {
            file,
            value,
            property: Some(property),
        });
    };
    if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
        limit(
            "cpu.weight",
            weight(shares).to_string(),
            "linux.resources.cpu.shares",
        );
    }
    let cpus = cpu.cpus().as_deref().filter(|cpus| !cpus.is_empty());
    if let Some(cpus) = cpus {
        let count = count(cpus)
            .ok_or_else(|| invalid("linux.resources.cpu.cpus", "is not a list of CPUs"))?;
        wanted = wanted.or(Some(count));
        limit("cpuset.cpus", cpus.to_owned(), "linux.resources.cpu.cpus");
    }
    if let Some(mems) = cpu.mems().as_deref().filter(|mems| !mems.is_empty()) {
        limit("cpuset.mems", mems.to_owned(), "linux.resources.cpu.mems");
    }
    let vcpus = wanted.unwrap_or(1).clamp(1, VCPUS_MAX);
    Ok((u8::try_from(vcpus).unwrap_or(u8::MAX), limits))
}

/// Shares (2 to 262144, cgroup v1) as a weight (1 to 10000, cgroup v2), linearly, as runc and crun do.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// How many CPUs a list such as `0-3,7` names (cpuset(7), List format); `None` if it is none.
fn count(list: &str) -> Option<u64> {
    list.trim().split(',').try_fold(0u64, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        let length = last.checked_sub(first)?;
        count.checked_add(u64::from(length) + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        for (list, expected) in [
            ("0", Some(1)),
            ("0-3,7", Some(5)),
            ("1,3,5\n", Some(3)),
            ("", None),
            ("3-1", None),
            ("a", None),
            ("1,", None),
            ("-1", None),
        ] {
            assert_eq!(count(list), expected, "{list:?}");
        }
    }

    #[test]
    fn weights() {
        for (shares, expected) in [
            (0, 1),
            (2, 1),
            (1024, 39),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight(shares), expected);
        }
    }

    /// MiB of guest RAM, vCPUs, and what is written to which file.
    type Sized = (u64, u8, Vec<(&'static str, String)>);

    fn sized(resources: &str) -> Result<Sized, String> {
        let resources: LinuxResources = serde_json::from_str(resources).unwrap();
        let kind = |_: &std::path::Path| Ok(super::super::FileKind::Directory);
        let bundle = std::path::Path::new("/b");
        let facts = Facts {
            bundle,
            memory: 4096 * MIB,
            kind: &kind,
        };
        let size = size(Some(&resources), &facts).map_err(|e| e.to_string())?;
        let limits = size
            .limits
            .into_iter()
            .map(|limit| (limit.file, limit.value))
            .collect();
        Ok((size.memory / MIB, size.vcpus, limits))
    }

    #[test]
    fn memory_follows_the_limit() {
        let of = |json: &str| sized(json).map(|(memory, _, _)| memory);
        for (resources, mib) in [
            ("{}", 512),
            (r#"{"memory":{"limit":-1}}"#, 512),
            (r#"{"memory":{"limit":134217728}}"#, 176),
            (r#"{"memory":{"limit":134217729}}"#, 178),
            (r#"{"memory":{"limit":16777216}}"#, 64),
            (r#"{"memory":{"limit":9223372036854775807}}"#, 4096),
            (r#"{"unified":{"memory.max":"134217728"}}"#, 176),
            (r#"{"unified":{"memory.max":"max"}}"#, 512),
        ] {
            assert_eq!(of(resources), Ok(mib), "{resources}");
        }
        let small = of(r#"{"memory":{"limit":1048576}}"#).unwrap_err();
        assert!(
            small.starts_with("linux.resources.memory.limit: 1048576 bytes"),
            "{small}"
        );
        of(r#"{"unified":{"memory.max":"lots"}}"#).unwrap_err();
    }

    #[test]
    fn the_host_cgroup_allows_the_machine_and_its_overhead() {
        let (memory, _, limits) = sized("{}").unwrap();
        assert_eq!(
            limits,
            [("memory.max", ((memory + 2 + 64) * MIB).to_string())]
        );
    }

    #[test]
    fn vcpus_follow_quota_then_cpus() {
        let of = |json: &str| sized(json).map(|(_, vcpus, _)| vcpus);
        for (cpu, vcpus) in [
            ("{}", 1),
            (r#"{"quota":-1,"cpus":"0-1"}"#, 2),
            (r#"{"quota":50000}"#, 1),
            (r#"{"quota":150000,"period":100000}"#, 2),
            (r#"{"quota":150000,"cpus":"0-6"}"#, 2),
            (r#"{"quota":100000,"period":10000}"#, 10),
            (r#"{"cpus":"0-63"}"#, 32),
        ] {
            assert_eq!(of(&format!(r#"{{"cpu":{cpu}}}"#)), Ok(vcpus), "{cpu}");
        }
        of(r#"{"cpu":{"cpus":"all"}}"#).unwrap_err();
    }
}
