//! Limits of cgroup v1, which the specification speaks of, as those of cgroup v2.

/// The period in microseconds of a quota of CPU time that comes without one, the kernel's default (cgroup-v2.rst, cpu.max).
pub const CPU_PERIOD: u64 = 100_000;

/// `linux.resources.cpu.shares` (of cgroup v1: 2 to 262144, 1024 by default) as `cpu.weight` of cgroup v2 (1 to 10000, 100 by default).
///
/// The curve of runc 1.4 and crun 1.23 (ConvertCPUSharesToCgroupV2Value in github.com/opencontainers/cgroups): it meets both
/// ends and both defaults.
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
    use super::cpu_weight;

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
