//! The boot timeline: how long each phase took from the verb's first instruction to the container's.
//!
//! Guest moments come as guest CLOCK_MONOTONIC values and are placed on the host's clock by the message that carried
//! them: the time between a moment and the sending of its message is the same on both clocks. The message's own way is
//! counted to the later phase.

use std::fs::File;
use std::io::{self, Write};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// CLOCK_MONOTONIC now; on Linux it cannot fail for this clock.
pub(crate) fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// The host's time of a guest moment that lay `sent - moment` guest nanoseconds before a message received at
/// `received`.
pub(super) fn placed(received: Duration, sent: u64, moment: u64) -> Duration {
    received.saturating_sub(Duration::from_nanos(sent.saturating_sub(moment)))
}

/// The moments, in order, as host CLOCK_MONOTONIC values; `None` until they have come.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    /// The verb's main.
    pub(super) begun: Duration,
    /// The machine process is in its namespaces and starts to build the VM.
    pub(super) set_up: Duration,
    /// First KVM_RUN.
    pub(super) first_run: Duration,
    /// The agent's main.
    pub(super) agent: Duration,
    /// The agent's connection.
    pub(super) hello: Duration,
    /// The guest has prepared the container.
    pub(super) prepared: Duration,
    /// The start request.
    pub(super) start: Duration,
    /// The program has been executed.
    pub(super) executed: Duration,
}

/// One phase as written.
#[derive(Debug, Serialize)]
struct Phase {
    phase: &'static str,
    microseconds: f64,
}

impl Timeline {
    fn phases(&self) -> Vec<Phase> {
        let marks = [
            ("host set-up", self.begun, self.set_up),
            ("VMM until the first KVM_RUN", self.set_up, self.first_run),
            ("guest kernel", self.first_run, self.agent),
            ("agent", self.agent, self.hello),
            ("container set-up", self.hello, self.prepared),
            ("waiting for start", self.prepared, self.start),
            ("program's first instruction", self.start, self.executed),
        ];
        marks
            .into_iter()
            .map(|(phase, from, to)| Phase {
                phase,
                microseconds: to.saturating_sub(from).as_secs_f64() * 1e6,
            })
            .collect()
    }

    /// Writes the phases as one JSON array.
    pub(super) fn write(&self, mut file: &File) -> io::Result<()> {
        let mut text = serde_json::to_vec(&self.phases())?;
        text.push(b'\n');
        file.write_all(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_moments_are_placed_before_their_message() {
        let received = Duration::from_millis(500);
        assert_eq!(
            placed(received, 3_000_000, 1_000_000),
            Duration::from_millis(498)
        );
        // A guest that lies can't take the host's arithmetic out of range.
        assert_eq!(placed(received, 1, u64::MAX), received);
        assert_eq!(placed(received, u64::MAX, 0), Duration::ZERO);
    }

    #[test]
    fn phases_follow_each_other() {
        let ms = Duration::from_millis;
        let timeline = Timeline {
            begun: ms(0),
            set_up: ms(1),
            first_run: ms(3),
            agent: ms(6),
            hello: ms(10),
            prepared: ms(15),
            start: ms(21),
            executed: ms(28),
        };
        let lengths: Vec<f64> = timeline.phases().iter().map(|p| p.microseconds).collect();
        assert_eq!(lengths, [1e3, 2e3, 3e3, 4e3, 5e3, 6e3, 7e3]);
    }
}
