//! Limits: those of cgroup v1, which the specification speaks of, as those of cgroup v2, and who applies them.

/// Where a property is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// By the agent inside the machine.
    Guest,
    /// By the verbs or the machine process.
    Host,
    /// On both sides.
    Both,
}

impl Place {
    /// Where a file of a cgroup is written, by its controller; `None` if no controller that can be limited has it. The
    /// host does the machine's I/O and has the CPUs and memory nodes; memory, processes and huge pages are the guest's
    /// own; CPU time is limited among the container's processes and for the machine as a whole.
    #[must_use]
    pub fn of_file(file: &str) -> Option<Place> {
        match file.split_once('.')?.0 {
            // The guest has no swap space, so it is the host that swaps.
            "memory" if file == SWAP_MAX => Some(Place::Both),
            "memory" | "pids" | "hugetlb" => Some(Place::Guest),
            "cpu" => Some(Place::Both),
            "cpuset" | "io" => Some(Place::Host),
            _ => None,
        }
    }
}

/// The file of a cgroup that limits what of it is swapped out.
pub const SWAP_MAX: &str = "memory.swap.max";

/// [`SWAP_MAX`] for `limit` and `swap` of `linux.resources.memory`, in bytes: the specification limits the sum of
/// memory and swap, the kernel swap alone. 0 is as if nothing was said, -1 means no limit. The rules are runc's
/// (ConvertMemorySwapToCgroupV2Value in github.com/opencontainers/cgroups).
///
/// # Errors
/// What is wrong with `swap`.
pub fn swap_max(limit: Option<i64>, swap: Option<i64>) -> Result<Option<i64>, &'static str> {
    match (limit.unwrap_or(0), swap.unwrap_or(0)) {
        (..=-1, 0) => Ok(Some(-1)),
        (_, 0) => Ok(None),
        (_, ..=-2) => Err("is less than -1, which means no limit"),
        (_, -1) => Ok(Some(-1)),
        (0, _) => Err("needs linux.resources.memory.limit"),
        (..=-1, swap) => Ok(Some(swap)),
        (limit, swap) if swap < limit => Err("is less than the memory limit that it includes"),
        (limit, swap) => Ok(Some(swap - limit)),
    }
}

/// What the guest's kernel and the agent need beside a container that has reached its limit of memory, in bytes, half of
/// which is free then; docs/configuration.md has the figures. Page structures come on top.
pub const GUEST_OVERHEAD: u64 = 48 << 20;

/// The kernel's image, and what else of the RAM it never counts as its own, in bytes.
const GUEST_KERNEL: u64 = 15 << 20;

/// How much memory the guest's kernel may use in all, in KiB, when its container's limit is `limit` bytes.
#[must_use]
pub fn usable_kbytes(limit: u64) -> u64 {
    limit.saturating_add(GUEST_OVERHEAD - GUEST_KERNEL) >> 10
}

/// The period in microseconds of a quota of CPU time that comes without one, the kernel's default (cgroup-v2.rst,
/// cpu.max).
pub const CPU_PERIOD: u64 = 100_000;

/// `linux.resources.cpu.shares` (of cgroup v1: 2 to 262144, 1024 by default) as `cpu.weight` of cgroup v2 (1 to 10000,
/// 100 by default).
///
/// The curve of runc 1.4 and crun 1.23 (ConvertCPUSharesToCgroupV2Value in github.com/opencontainers/cgroups): it meets
/// both ends and both defaults.
#[must_use]
pub fn cpu_weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = f64::from(u32::try_from(shares).unwrap_or(u32::MAX)).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            // Between 1 and 10000 by the range of `shares`.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let weight = 10_f64.powf(exponent).ceil() as u64;
            weight
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Place, cpu_weight, swap_max};

    #[test]
    fn swap_is_what_goes_beyond_memory() {
        for (limit, swap, expected) in [
            (None, None, Ok(None)),
            (Some(1000), Some(0), Ok(None)),
            (Some(1000), Some(1500), Ok(Some(500))),
            (Some(1000), Some(1000), Ok(Some(0))),
            (Some(1000), Some(-1), Ok(Some(-1))),
            (Some(-1), None, Ok(Some(-1))),
            (Some(-1), Some(999), Ok(Some(999))),
            (None, Some(-1), Ok(Some(-1))),
            (
                Some(0),
                Some(999),
                Err("needs linux.resources.memory.limit"),
            ),
            (
                Some(1000),
                Some(999),
                Err("is less than the memory limit that it includes"),
            ),
            (
                Some(1000),
                Some(-2),
                Err("is less than -1, which means no limit"),
            ),
        ] {
            assert_eq!(swap_max(limit, swap), expected, "{limit:?} {swap:?}");
        }
    }

    #[test]
    fn files_have_a_place_by_their_controller() {
        assert_eq!(Place::of_file("memory.high"), Some(Place::Guest));
        assert_eq!(Place::of_file("cpu.max"), Some(Place::Both));
        assert_eq!(Place::of_file("cpuset.cpus"), Some(Place::Host));
        for other in ["misc.max", "cgroup.freeze", "memory", "", "cpuset/x.y"] {
            assert_eq!(Place::of_file(other), None, "{other}");
        }
    }

    #[test]
    fn shares_become_weights_as_with_runc() {
        for (shares, expected) in [
            (2, 1),
            (1, 1),
            (1024, 100),
            (262_144, 10_000),
            (u64::MAX, 10_000),
            (512, 59),
        ] {
            assert_eq!(cpu_weight(shares), expected, "{shares}");
        }
        let rises = |shares| cpu_weight(shares) <= cpu_weight(shares + 97);
        assert!((3..262_144).step_by(97).all(rises));
    }
}
