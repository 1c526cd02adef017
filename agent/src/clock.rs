//! The guest's clocks.

use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

use crate::error::{During, Result};
use crate::sys;

/// What CLOCK_REALTIME may be off, in ns, to be led to the right time. The kernel takes 256 s for it (it
/// changes the rate by 500 ppm, adjtime(3)). The same as ntpd's.
const STEP: u64 = 128_000_000;

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

/// Sets CLOCK_REALTIME, which was or should have been `realtime` when CLOCK_MONOTONIC was `monotonic`, all
/// in ns: at once with `step`, or when it is off by more than [`STEP`].
pub(crate) fn set(realtime: u64, monotonic: u64, step: bool) -> Result<()> {
    let right = |now: u64| realtime.saturating_add(now.saturating_sub(monotonic));
    let (now, is) = (now(), read_clock(ClockId::CLOCK_REALTIME));
    let off = right(now).abs_diff(is);
    if !step && off <= STEP {
        let late = right(now) >= is;
        return sys::lead_clock(off / 1000, late).during(|| "lead the clock");
    }
    // What is still being made up for is not any more.
    sys::lead_clock(0, true).during(|| "stop leading the clock")?;
    let time = TimeSpec::from_duration(Duration::from_nanos(right(self::now())));
    clock_settime(ClockId::CLOCK_REALTIME, time).during(|| "set the clock")
}
