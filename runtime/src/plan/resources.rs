//! Which limits can be had, and what of them the host applies to the machine as a whole.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};
use specification::{CpuList, DeviceRule, Place, swap_max};

use super::RESOURCES;
use super::ledger::Ledger;
use crate::host::cgroup::Limit;

/// Sizes of huge pages on x86_64, as the kernel names them in files of the hugetlb controller.
const PAGE_SIZES: [&str; 2] = ["2MB", "1GB"];

/// The range of `blockIO.weight` (config-linux.md, Block IO).
const BLOCK_WEIGHTS: std::ops::RangeInclusive<u16> = 10..=1000;

/// The range of `cpu.max`'s period in microseconds (Linux, kernel/sched/core.c).
const PERIODS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;

/// Least quota of a period in microseconds (the same).
const QUOTA_MIN: i64 = 1_000;

/// Refuses what cannot be had.
pub(super) fn check(resources: &LinuxResources, ledger: &mut Ledger) {
    if let Some(memory) = resources.memory() {
        self::memory(memory, ledger);
    }
    if let Some(cpu) = resources.cpu() {
        self::cpu(cpu, ledger);
    }
    if let Some(block) = resources.block_io() {
        block_io(block, ledger);
    }
    for (index, huge) in resources.hugepage_limits().iter().flatten().enumerate() {
        let property = format!("{RESOURCES}.hugepageLimits[{index}]");
        if !PAGE_SIZES.contains(&huge.page_size().as_str()) {
            let problem = format!(
                "the guest has no huge pages of {:?}, only of {}",
                huge.page_size(),
                PAGE_SIZES.join(" and ")
            );
            ledger.refuse(format!("{property}.pageSize"), problem);
        }
    }
    for (index, rule) in resources.devices().iter().flatten().enumerate() {
        if let Err(problem) = DeviceRule::read(rule) {
            ledger.refuse(format!("{RESOURCES}.devices[{index}]"), problem);
        }
    }
    for (file, value) in unified(resources) {
        let property = format!("{RESOURCES}.unified[{file}]");
        match Place::of_file(file) {
            Some(place) => ledger.place(&property, place),
            None => ledger.refuse(
                property.as_str(),
                "belongs to no controller that can be limited",
            ),
        }
        if file.contains('/') || value.contains('\0') {
            ledger.refuse(
                property,
                "is not the name of a cgroup file, or its value is not a text",
            );
        }
    }
}

/// `unified` in order.
pub(super) fn unified(resources: &LinuxResources) -> BTreeMap<&str, &str> {
    let pairs = resources.unified().iter().flatten();
    pairs
        .map(|(file, value)| (file.as_str(), value.as_str()))
        .collect()
}

fn memory(memory: &LinuxMemory, ledger: &mut Ledger) {
    let mut refuse = |name: &str, problem: &str| {
        ledger.refuse(format!("{RESOURCES}.memory.{name}"), problem);
    };
    if let Err(problem) = swap_max(memory.limit(), memory.swap()) {
        refuse("swap", problem);
    }
    for (name, value) in [
        ("limit", memory.limit()),
        ("reservation", memory.reservation()),
    ] {
        if value.is_some_and(|value| value < -1) {
            refuse(name, "is less than -1, which means no limit");
        }
    }
    if memory.swappiness().is_some_and(|value| value > 100) {
        refuse("swappiness", "is not between 0 and 100");
    }
}

fn cpu(cpu: &LinuxCpu, ledger: &mut Ledger) {
    let mut refuse = |name: &str, problem: String| {
        ledger.refuse(format!("{RESOURCES}.cpu.{name}"), problem);
    };
    if let Some(period) = cpu.period().filter(|period| *period != 0)
        && !PERIODS.contains(&period)
    {
        let problem = format!(
            "{period} is not between {} and {} microseconds",
            PERIODS.start(),
            PERIODS.end()
        );
        refuse("period", problem);
    }
    if let Some(quota) = cpu.quota()
        && (1..QUOTA_MIN).contains(&quota)
    {
        refuse(
            "quota",
            format!("{quota} is less than {QUOTA_MIN} microseconds"),
        );
    }
    if let Some(burst) = cpu.burst().filter(|burst| *burst != 0) {
        let quota = cpu.quota().and_then(|quota| u64::try_from(quota).ok());
        if quota.is_some_and(|quota| quota != 0 && burst > quota) {
            refuse("burst", format!("{burst} is more than the quota"));
        }
    }
    if cpu.idle().is_some_and(|idle| !(0..=1).contains(&idle)) {
        refuse("idle", "is neither 0 nor 1".into());
    }
    for (name, list) in [("cpus", cpu.cpus()), ("mems", cpu.mems())] {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty())
            && CpuList::parse(list).is_none()
        {
            refuse(name, format!("{list:?} is not a list of numbers"));
        }
    }
}

fn block_io(block: &LinuxBlockIo, ledger: &mut Ledger) {
    let mut refuse = |name: &str, problem: &str| {
        ledger.refuse(format!("{RESOURCES}.blockIO.{name}"), problem);
    };
    let given = |weight: Option<u16>| weight.filter(|weight| *weight != 0);
    if given(block.weight()).is_some_and(|weight| !BLOCK_WEIGHTS.contains(&weight)) {
        refuse("weight", "is not between 10 and 1000");
    }
    if given(block.leaf_weight()).is_some() {
        refuse(
            "leafWeight",
            "cgroup v2 has no weight of the processes of a cgroup against those below it",
        );
    }
    for (index, device) in block.weight_device().iter().flatten().enumerate() {
        let property = format!("weightDevice[{index}]");
        if given(device.leaf_weight()).is_some() {
            refuse(&property, "cgroup v2 has no leafWeight");
        }
        if given(device.weight()).is_some_and(|weight| !BLOCK_WEIGHTS.contains(&weight)) {
            refuse(&property, "weight is not between 10 and 1000");
        }
        if !is_device(device.major(), device.minor()) {
            refuse(&property, "is not a device");
        }
    }
    for (name, _, devices) in throttles(block) {
        for (index, device) in devices.iter().enumerate() {
            if !is_device(device.major(), device.minor()) {
                refuse(&format!("{name}[{index}]"), "is not a device");
            }
        }
    }
}

fn is_device(major: i64, minor: i64) -> bool {
    u32::try_from(major).is_ok() && u32::try_from(minor).is_ok()
}

/// The limits of devices: property, key in `io.max` (cgroup-v2.rst), devices.
fn throttles(block: &LinuxBlockIo) -> [(&'static str, &'static str, &[LinuxThrottleDevice]); 4] {
    let devices = |devices: &'static str, key, of: fn(&LinuxBlockIo) -> &Option<Vec<_>>| {
        (devices, key, of(block).as_deref().unwrap_or_default())
    };
    [
        devices("throttleReadBpsDevice", "rbps", |b| {
            b.throttle_read_bps_device()
        }),
        devices("throttleWriteBpsDevice", "wbps", |b| {
            b.throttle_write_bps_device()
        }),
        devices("throttleReadIOPSDevice", "riops", |b| {
            b.throttle_read_iops_device()
        }),
        devices("throttleWriteIOPSDevice", "wiops", |b| {
            b.throttle_write_iops_device()
        }),
    ]
}

/// What the host does about I/O: it is the host that reads and writes the container's files.
pub(super) fn io_limits(resources: &LinuxResources) -> Vec<Limit> {
    let mut limits = Vec::new();
    let mut limit = |file: &'static str, value: String, property: String| {
        limits.push(Limit::asked(file, value, property));
    };
    if let Some(block) = resources.block_io() {
        let property = |name: &str| format!("{RESOURCES}.blockIO.{name}");
        if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
            limit(
                "io.weight",
                io_weight(weight).to_string(),
                property("weight"),
            );
        }
        for device in block.weight_device().iter().flatten() {
            if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
                let (major, minor) = (device.major(), device.minor());
                let value = format!("{major}:{minor} {}", io_weight(weight));
                limit("io.weight", value, property("weightDevice"));
            }
        }
        for (name, key, devices) in throttles(block) {
            for device in devices {
                let rate = match device.rate() {
                    0 => "max".to_owned(),
                    rate => rate.to_string(),
                };
                let (major, minor) = (device.major(), device.minor());
                limit(
                    "io.max",
                    format!("{major}:{minor} {key}={rate}"),
                    property(name),
                );
            }
        }
    }
    for (file, value) in unified(resources) {
        let property = format!("{RESOURCES}.unified[{file}]");
        if Place::of_file(file) == Some(Place::Host) && file.starts_with("io.") {
            for line in value.lines() {
                limits.push(Limit::asked(file.to_owned(), line, property.clone()));
            }
        }
    }
    limits
}

/// A weight of the specification (10 to 1000, of cgroup v1's blkio) as one of cgroup v2 (1 to 10000):
/// ConvertBlkIOToIOWeightValue in github.com/opencontainers/cgroups.
fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.saturating_sub(*BLOCK_WEIGHTS.start())) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(json: &str) -> Vec<(String, String)> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let limits = io_limits(&resources).into_iter();
        limits
            .map(|limit| (limit.file.into_owned(), limit.value))
            .collect()
    }

    #[test]
    fn input_and_output_are_the_hosts() {
        let json = r#"{"blockIO":{"weight":500,"weightDevice":[{"major":8,"minor":0,"weight":1000}],
            "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1000},{"major":8,"minor":16,"rate":0}],
            "throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":7}]},
            "unified":{"io.max":"8:0 wbps=5\n8:16 rbps=6","memory.high":"5","io.weight":"9"}}"#;
        let expected = [
            ("io.weight", "4950"),
            ("io.weight", "8:0 10000"),
            ("io.max", "8:0 rbps=1000"),
            ("io.max", "8:16 rbps=max"),
            ("io.max", "8:0 wiops=7"),
            ("io.max", "8:0 wbps=5"),
            ("io.max", "8:16 rbps=6"),
            ("io.weight", "9"),
        ];
        let expected = expected.map(|(file, value)| (file.to_owned(), value.to_owned()));
        assert_eq!(limits(json), expected);
        assert_eq!(limits(r#"{"blockIO":{"weight":0}}"#), []);
    }

    #[test]
    fn weights() {
        for (weight, expected) in [(10, 1), (100, 910), (500, 4950), (1000, 10_000)] {
            assert_eq!(io_weight(weight), expected);
        }
    }
}
