//! The guest's wall clock follows the host's.
//!
//! ```text
//!  Hello ────────────────────────────────────────────┐
//!  the host's clock is set ──┐                       v
//!  every PERIOD ─────────────┴── Time ──answer──> SetTime
//! ```
//! Each of the three brings what the guest's CLOCK_MONOTONIC was a moment ago, which is told together with the host's
//! time of now. So the guest is ahead of the host by the way of one message, and never behind it: what the host stamps
//! a file with, and the host keeps the times of all shares, lies in the past for whoever reads it in the guest.
//!
//! The guest's clock runs by the processor's, without the corrections that NTP makes on the host. That is what the
//! period is for, and it is made up for slowly.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd::read;
use protocol::{FIRST, RequestBody};

use super::life::{Life, Waiting};

/// How long the guest's clock is left alone. At 50 ppm, which is much for a processor's crystal, it is off by 30 ms
/// then.
const PERIOD: Duration = Duration::from_secs(600);

/// An event when the host's clock is set, also by a suspension of the host, and every [`PERIOD`].
pub(super) struct Clock(TimerFd);

/// What an event of the clock was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tick {
    /// The host's clock was set.
    Set,
    /// The period is over.
    Period,
}

impl Clock {
    /// Watches the clock.
    pub(super) fn new() -> io::Result<Clock> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let clock = Clock(TimerFd::new(ClockId::CLOCK_REALTIME, flags)?);
        clock.begin()?;
        Ok(clock)
    }

    /// The kernel tells of a set clock by timers of a moment of that clock only (timerfd_create(2),
    /// TFD_TIMER_CANCEL_ON_SET).
    fn begin(&self) -> io::Result<()> {
        let moment = TimeSpec::from_duration(realtime() + PERIOD);
        let flags =
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        match self.0.set(Expiration::OneShot(moment), flags) {
            // It was set once more in between: it is readable.
            Ok(()) | Err(Errno::ECANCELED) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// What has happened, if anything has.
    fn take(&self) -> io::Result<Option<Tick>> {
        // TimerFd::wait does not tell the two apart.
        let tick = match read(&self.0, &mut [0; 8]) {
            Ok(_) => Tick::Period,
            Err(Errno::ECANCELED) => Tick::Set,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        self.begin()?;
        Ok(Some(tick))
    }
}

impl AsFd for Clock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The host's CLOCK_REALTIME; 0 before 1970.
fn realtime() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

impl Life {
    /// An agent that is not there yet gets the time with its first message.
    pub(super) fn clock_event(&mut self) -> io::Result<()> {
        if let (Some(tick), true) = (self.parts.clock.take()?, self.up) {
            let step = tick == Tick::Set;
            self.request(FIRST, RequestBody::Time, Waiting::Time { step })?;
        }
        Ok(())
    }

    /// Sets the guest's clock, `monotonic` being its CLOCK_MONOTONIC as it has just told it.
    pub(super) fn set_time(&mut self, monotonic: u64, step: bool) -> io::Result<()> {
        let set = RequestBody::SetTime {
            realtime: u64::try_from(realtime().as_nanos()).unwrap_or(u64::MAX),
            monotonic,
            step,
        };
        self.request(FIRST, set, Waiting::Nobody).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_happens_before_the_period_is_over() {
        let clock = Clock::new().unwrap();
        assert_eq!(clock.take().unwrap(), None);
        let over = TimeSpec::from_duration(Duration::from_millis(1));
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME;
        clock.0.set(Expiration::OneShot(over), flags).unwrap();
        let mut polled = [nix::poll::PollFd::new(
            clock.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        nix::poll::poll(&mut polled, 10_000u16).unwrap();
        assert_eq!(clock.take().unwrap(), Some(Tick::Period));
        assert_eq!(clock.take().unwrap(), None, "the next period has begun");
    }
}
