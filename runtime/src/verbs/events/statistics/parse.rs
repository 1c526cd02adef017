//! Reads cgroup files. Those of the guest may say anything: each is read strictly, and nothing of one that is wrong is
//! shown.

use std::collections::BTreeMap;

use super::{
    BlockIo, BlockIoEntry, Cpu, CpuUsage, Files, HugePages, Machine, MachineMemory, Memory,
    MemoryEntry, Pids, Pressure, Stall, Throttling,
};

/// What is read of the machine's cgroup.
pub(super) const HOST_FILES: [&str; 5] = [
    "cpu.stat",
    "cpu.pressure",
    "memory.current",
    "memory.max",
    "memory.peak",
];

/// Maximum number of lines of a file; memory.stat has about 60, io.stat one for each device.
const LINES_MAX: usize = 1024;

/// Longest name in a file in bytes; the kernel's have up to 30.
const NAME_MAX: usize = 64;

/// Most sizes of huge pages; x86_64 has two.
const SIZES_MAX: usize = 16;

/// A file is not what the kernel writes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {0} in the container's statistics")]
pub(crate) struct Invalid(String);

type Result<T> = std::result::Result<T, Invalid>;

/// A file's content, without its last line break.
fn find<'a>(files: &'a Files, name: &str) -> Option<&'a str> {
    let (_, text) = files.iter().find(|(found, _)| found == name)?;
    Some(text.strip_suffix('\n').unwrap_or(text))
}

/// A number in decimal digits and nothing else.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

/// A decimal fraction without sign or exponent.
fn fraction(text: &str) -> Option<f64> {
    let plain = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    (plain && text.len() <= NAME_MAX).then(|| text.parse().ok())?
}

/// `max` is no limit.
fn limit(text: &str) -> Option<u64> {
    if text == "max" {
        Some(u64::MAX)
    } else {
        number(text)
    }
}

/// Reads a file if it is there.
fn read<T>(files: &Files, name: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>> {
    find(files, name)
        .map(|text| parse(text).ok_or_else(|| Invalid(name.to_owned())))
        .transpose()
}

/// The lines of a file that is not too long.
fn lines(text: &str) -> Option<impl Iterator<Item = &str>> {
    (text.lines().count() <= LINES_MAX).then(|| text.lines())
}

/// Lines of a name and a number each ("flat keyed", cgroup-v2.rst).
fn table(text: &str) -> Option<BTreeMap<String, u64>> {
    lines(text)?
        .map(|line| {
            let (name, value) = line.split_once(' ')?;
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.".contains(&byte);
            let named = (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(allowed);
            Some((named.then(|| name.to_owned())?, number(value)?))
        })
        .collect()
}

pub(super) fn cpu(files: &Files) -> Result<Cpu> {
    let name = "cpu.stat";
    let table = read(files, name, table)?.unwrap_or_default();
    let get = |key| table.get(key).copied().unwrap_or(0);
    let nanoseconds = |key| {
        get(key)
            .checked_mul(1000)
            .ok_or_else(|| Invalid(name.to_owned()))
    };
    Ok(Cpu {
        usage: CpuUsage {
            total: nanoseconds("usage_usec")?,
            kernel: nanoseconds("system_usec")?,
            user: nanoseconds("user_usec")?,
        },
        throttling: Throttling {
            periods: get("nr_periods"),
            throttled_periods: get("nr_throttled"),
            throttled_time: nanoseconds("throttled_usec")?,
        },
        psi: read(files, "cpu.pressure", pressure)?,
    })
}

pub(super) fn memory(files: &Files) -> Result<Memory> {
    let usage = memory_entry(files, "memory")?;
    let swap = memory_entry(files, "memory.swap")?;
    let raw = read(files, "memory.stat", table)?.unwrap_or_default();
    Ok(Memory {
        cache: raw.get("file").copied().unwrap_or(0),
        usage,
        swap: MemoryEntry {
            limit: swap.limit.saturating_add(usage.limit),
            usage: swap.usage.saturating_add(usage.usage),
            // The greatest sum is not the sum of the greatest.
            max: 0,
            failcnt: 0,
        },
        kernel: MemoryEntry::default(),
        kernel_tcp: MemoryEntry::default(),
        raw,
        psi: read(files, "memory.pressure", pressure)?,
    })
}

/// Zeros where the kernel does not count.
fn memory_entry(files: &Files, name: &str) -> Result<MemoryEntry> {
    let read = |file: &str| Ok(read(files, &format!("{name}.{file}"), limit)?.unwrap_or(0));
    Ok(MemoryEntry {
        limit: read("max")?,
        usage: read("current")?,
        max: read("peak")?,
        failcnt: 0,
    })
}

pub(super) fn pids(files: &Files) -> Result<Pids> {
    let most = read(files, "pids.max", limit)?;
    Ok(Pids {
        current: read(files, "pids.current", number)?.unwrap_or(0),
        limit: most.filter(|most| *most != u64::MAX).unwrap_or(0),
    })
}

/// In the tables that cgroup v1 has: bytes and operations.
pub(super) fn block_io(files: &Files) -> Result<BlockIo> {
    let entries = read(files, "io.stat", devices)?.unwrap_or_default();
    let (bytes, operations) = entries.into_iter().partition(|(bytes, _)| *bytes);
    let entries = |entries: Vec<(bool, BlockIoEntry)>| entries.into_iter().map(|(_, e)| e);
    Ok(BlockIo {
        io_service_bytes_recursive: entries(bytes).collect(),
        io_serviced_recursive: entries(operations).collect(),
        psi: read(files, "io.pressure", pressure)?,
    })
}

/// io.stat: `MAJOR:MINOR rbytes=N wbytes=N rios=N wios=N ...` for each device. True goes with bytes, false with
/// operations.
fn devices(text: &str) -> Option<Vec<(bool, BlockIoEntry)>> {
    let mut entries = Vec::new();
    for line in lines(text)? {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let (major, minor) = (number(major)?, number(minor)?);
        for word in words {
            let (name, value) = word.split_once('=')?;
            let (bytes, op) = match name {
                "rbytes" => (true, "Read"),
                "wbytes" => (true, "Write"),
                "rios" => (false, "Read"),
                "wios" => (false, "Write"),
                _ => continue,
            };
            let value = number(value)?;
            entries.push((
                bytes,
                BlockIoEntry {
                    major,
                    minor,
                    op,
                    value,
                },
            ));
        }
    }
    (entries.len() <= 4 * LINES_MAX).then_some(entries)
}

/// By size, for instance `2MB`. Reservations count rather than uses where the kernel has both, as with runc.
pub(super) fn huge_pages(files: &Files) -> Result<BTreeMap<String, HugePages>> {
    let sizes = files.iter().filter_map(|(name, _)| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
        let digits = ["KB", "MB", "GB"]
            .into_iter()
            .find_map(|unit| size.strip_suffix(unit))?;
        (digits.len() <= 8 && number(digits).is_some()).then_some(size)
    });
    let mut found = BTreeMap::new();
    for size in sizes.take(SIZES_MAX) {
        let file = |end: &str| format!("hugetlb.{size}.{end}");
        let reserved = read(files, &file("rsvd.current"), number)?;
        let used = read(files, &file("current"), number)?;
        let events = read(files, &file("events"), table)?.unwrap_or_default();
        let pages = HugePages {
            usage: reserved.or(used).unwrap_or(0),
            failcnt: events.get("max").copied().unwrap_or(0),
        };
        found.insert(size.to_owned(), pages);
    }
    Ok(found)
}

/// Lines `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and `full ...`.
fn pressure(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    for line in lines(text)? {
        let mut words = line.split_ascii_whitespace();
        let stall = match words.next()? {
            "some" => &mut pressure.some,
            "full" => &mut pressure.full,
            _ => continue,
        };
        *stall = Stall::default();
        for word in words {
            match word.split_once('=')? {
                ("avg10", value) => stall.avg10 = fraction(value)?,
                ("avg60", value) => stall.avg60 = fraction(value)?,
                ("avg300", value) => stall.avg300 = fraction(value)?,
                ("total", value) => stall.total = number(value)?,
                _ => {}
            }
        }
    }
    Some(pressure)
}

pub(super) fn machine(files: &Files) -> Result<Machine> {
    let counted = find(files, "memory.current").is_some();
    let memory = counted.then(|| memory_entry(files, "memory")).transpose()?;
    Ok(Machine {
        cpu: cpu(files)?,
        memory: memory.map(|usage| MachineMemory { usage }),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::Statistics;
    use super::*;

    const PRESSURE: &str = "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";

    fn files(files: &[(&str, &str)]) -> Vec<(String, String)> {
        let own = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        files.iter().map(own).collect()
    }

    fn statistics(guest: &[(&str, &str)]) -> std::result::Result<Value, String> {
        Statistics::new(&files(guest), None)
            .map(|statistics| serde_json::to_value(&statistics).unwrap())
            .map_err(|e| e.to_string())
    }

    #[test]
    fn a_kernels_files_become_runcs_json() {
        let found = statistics(&[
            ("cpu.stat", "usage_usec 10\nuser_usec 7\nsystem_usec 3\nnr_periods 4\nnr_throttled 2\nthrottled_usec 9\n"),
            ("cpu.pressure", PRESSURE),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.peak", "8192\n"),
            ("memory.swap.current", "1\n"),
            ("memory.swap.max", "max\n"),
            ("memory.stat", "anon 100\nfile 2000\n"),
            ("pids.current", "3\n"),
            ("pids.max", "10\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:16 \n"),
            ("hugetlb.2MB.current", "2097152\n"),
            ("hugetlb.2MB.rsvd.current", "4194304\n"),
            ("hugetlb.2MB.events", "max 6\n"),
        ])
        .unwrap();
        let zero = json!({"limit": 0, "failcnt": 0});
        let expected = json!({
            "cpu": {
                "usage": {"total": 10_000, "kernel": 3000, "user": 7000},
                "throttling": {"periods": 4, "throttledPeriods": 2, "throttledTime": 9000},
                "psi": {"some": {"avg10": 1.5, "avg60": 0.25, "avg300": 0.0, "total": 77},
                    "full": {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 5}},
            },
            "cpuset": {"cpu_exclusive": 0, "mem_hardwall": 0, "mem_exclusive": 0, "memory_migrate": 0,
                "memory_spread_page": 0, "memory_spread_slab": 0, "memory_pressure": 0,
                "sched_load_balance": 0, "sched_relax_domain_level": 0},
            "memory": {
                "cache": 2000,
                "usage": {"limit": u64::MAX, "usage": 4096, "max": 8192, "failcnt": 0},
                "swap": {"limit": u64::MAX, "usage": 4097, "failcnt": 0},
                "kernel": zero, "kernelTCP": zero,
                "raw": {"anon": 100, "file": 2000},
            },
            "pids": {"current": 3, "limit": 10},
            "blkio": {
                "ioServiceBytesRecursive": [{"major": 8, "op": "Read", "value": 1},
                    {"major": 8, "op": "Write", "value": 2}],
                "ioServicedRecursive": [{"major": 8, "op": "Read", "value": 3},
                    {"major": 8, "op": "Write", "value": 4}],
            },
            "hugetlb": {"2MB": {"usage": 4_194_304, "failcnt": 6}},
            "intel_rdt": {},
            "network_interfaces": null,
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_not_there_is_zero_or_left_out() {
        let found = statistics(&[]).unwrap();
        let zero = json!({"limit": 0, "failcnt": 0});
        assert_eq!(
            found["cpu"],
            json!({"usage": {"kernel": 0, "user": 0}, "throttling": {}})
        );
        assert_eq!(
            found["memory"],
            json!({"usage": zero, "swap": zero, "kernel": zero, "kernelTCP": zero})
        );
        assert_eq!(
            (&found["pids"], &found["blkio"], &found["hugetlb"]),
            (&json!({}), &json!({}), &json!({}))
        );
        assert_eq!(
            statistics(&[("pids.max", "max\n")]).unwrap()["pids"],
            json!({})
        );
    }

    #[test]
    fn without_swap_the_limit_of_both_is_the_memorys() {
        let swap = |limit: &str| {
            let files = [("memory.max", limit), ("memory.current", "5\n")];
            statistics(&files).unwrap()["memory"]["swap"].clone()
        };
        assert_eq!(
            swap("100\n"),
            json!({"limit": 100, "usage": 5, "failcnt": 0})
        );
        assert_eq!(swap("max\n")["limit"], json!(u64::MAX));
    }

    #[test]
    fn the_machines_own_figures_are_beside() {
        let host = files(&[
            ("cpu.stat", "usage_usec 10\nuser_usec 7\nsystem_usec 3\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "8192\n"),
        ]);
        let found =
            serde_json::to_value(Statistics::new(&files(&[]), Some(&host)).unwrap()).unwrap();
        let expected = json!({
            "cpu": {"usage": {"total": 10_000, "kernel": 3000, "user": 7000}, "throttling": {}},
            "memory": {"usage": {"limit": 8192, "usage": 4096, "failcnt": 0}},
        });
        assert_eq!(found["machine"], expected);
        let host = files(&[("cpu.stat", "usage_usec 1\n")]);
        let found =
            serde_json::to_value(Statistics::new(&files(&[]), Some(&host)).unwrap()).unwrap();
        assert_eq!(found["machine"].get("memory"), None);
    }

    #[test]
    fn what_no_kernel_writes_is_refused_by_name() {
        let many = "x 1\n".repeat(LINES_MAX + 1);
        let long = format!("{} 1\n", "x".repeat(NAME_MAX + 1));
        let devices = format!("8:0 {}\n", "rios=1 ".repeat(4 * LINES_MAX + 1));
        for (name, text) in [
            ("cpu.stat", "usage_usec\n"),
            ("cpu.stat", "usage_usec -1\n"),
            ("cpu.stat", "usage_usec +1\n"),
            ("cpu.stat", "usage_usec 1 2\n"),
            ("cpu.stat", "usage_usec 18446744073709551615\n"),
            ("cpu.stat", "\n\n"),
            ("memory.stat", "\u{1b}[31m 1\n"),
            ("memory.stat", &many),
            ("memory.stat", &long),
            ("memory.current", ""),
            ("memory.current", "18446744073709551616\n"),
            ("memory.max", "many\n"),
            ("memory.max", " 1\n"),
            ("memory.pressure", "some avg10=NaN\n"),
            ("memory.pressure", "some avg10=1e9\n"),
            ("memory.pressure", "some avg10\n"),
            ("memory.pressure", "some total=-5\n"),
            ("pids.current", "max\n"),
            ("pids.max", "1\n2\n"),
            ("io.stat", "8 rbytes=1\n"),
            ("io.stat", "8:0 rbytes\n"),
            ("io.stat", "8:0 rbytes=x\n"),
            ("io.stat", &devices),
        ] {
            let expected = format!("invalid {name} in the container's statistics");
            assert_eq!(statistics(&[(name, text)]), Err(expected), "{text:?}");
        }
        let pages = statistics(&[
            ("hugetlb.2MB.current", "1\n"),
            ("hugetlb.2MB.events", "max\n"),
        ]);
        assert!(pages.unwrap_err().contains("hugetlb.2MB.events"));
    }

    #[test]
    fn other_names_are_not_looked_at() {
        let found = statistics(&[
            ("hugetlb.\n.current", "1\n"),
            ("hugetlb.evilMB.current", "1\n"),
            ("hugetlb.2MB.rsvd.current", "1\n"),
            ("../x", "?"),
        ]);
        assert_eq!(found.unwrap()["hugetlb"], json!({}));
        let many: Vec<_> = (0..1000)
            .map(|n| (format!("hugetlb.{n}MB.current"), "1\n".to_owned()))
            .collect();
        assert_eq!(huge_pages(&many).unwrap().len(), SIZES_MAX);
    }
}
