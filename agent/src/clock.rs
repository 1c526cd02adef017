//! The guest's clocks.

use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in ns.
pub(crate) fn now() -> u64 {
    read_clock(ClockId::CLOCK_MONOTONIC)
}

/// CLOCK_BOOTTIME in ns.
pub(crate) fn since_boot() -> u64 {
    read_clock(ClockId::CLOCK_BOOTTIME)
}

fn read_clock(clock: ClockId) -> u64 {
    // The clocks always exist and are never negative.
    clock_gettime(clock)
        .map(|time| {
            let part = |value: i64| u64::try_from(value).unwrap_or(0);
            part(time.tv_sec()) * 1_000_000_000 + part(time.tv_nsec())
        })
        .unwrap_or(0)
}
