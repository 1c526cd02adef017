//! The status of a container.
//!
//! ```text
//!           machine started        program executed  ┌────────── pause ──────────┐
//! creating ────────────────> created ────────────> running <──── resume ──── paused
//!    │                          │                       │                       │
//!    │                          └────────────────────────────── machine ended ──┴──> stopped
//!    └────────────────────────────── create was killed ──────────────────────────┘ (a pid that has ended)
//! ```
//! Invariants: the status is computed from what is there, never stored; but for a pause it only moves to the right;
//! `stopped` means that no process of the machine is left.

use std::fmt;

use serde::Serialize;

use super::journal::Entry;

/// The status of a container, as the OCI runtime specification names it (runtime.md, State).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// `create` is at work, or it was killed.
    Creating,
    /// The container is set up and its program is not executed.
    Created,
    /// The program has been executed.
    Running,
    /// Its processes are frozen and its vCPUs stand still.
    Paused,
    /// The machine has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

impl Status {
    /// The status that follows from what can be seen.
    ///
    /// `alive`: whether the machine process runs, `None` when none has been recorded. `last`: what the journal says
    /// last.
    pub(crate) fn observed(alive: Option<bool>, last: Option<&Entry>) -> Status {
        match (alive, last) {
            (None, _) => Status::Creating,
            (Some(false), _) => Status::Stopped,
            (Some(true), None) => Status::Created,
            (Some(true), Some(Entry::Paused)) => Status::Paused,
            (Some(true), Some(Entry::Started | Entry::Exited { .. })) => Status::Running,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_observation_has_its_status() {
        let exited = Entry::Exited {
            exit: protocol::Exit::Code(0),
            reason: None,
        };
        for (alive, last, status) in [
            (None, None, Status::Creating),
            (None, Some(Entry::Started), Status::Creating),
            (Some(true), None, Status::Created),
            (Some(true), Some(Entry::Started), Status::Running),
            (Some(true), Some(Entry::Paused), Status::Paused),
            // The machine delivers what is left to be delivered.
            (Some(true), Some(exited), Status::Running),
            (Some(false), None, Status::Stopped),
            (Some(false), Some(Entry::Paused), Status::Stopped),
        ] {
            assert_eq!(Status::observed(alive, last.as_ref()), status);
        }
    }
}
