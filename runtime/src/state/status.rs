//! The status of a container and which verb it allows.
//!
//! ```text
//!           machine started        program executed         machine ended
//! creating ────────────────> created ────────────> running ────────────────> stopped
//!    │                         └──────────────────────────────────────────────┘ ^
//!    └────────────────────────────── create was killed ─────────────────────────┘ (a pid that has ended)
//! ```
//! Invariants: the status is computed from what is there, never stored; it only moves to the right; `stopped` means that no process of
//! the machine is left.

use std::fmt;

use serde::Serialize;

use crate::error::Error;

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
    /// The machine has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Stopped => "stopped",
        })
    }
}

/// What the status decides about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Start,
    Kill,
    Delete,
    DeleteForce,
}

impl Status {
    /// The status that follows from what can be seen.
    ///
    /// `alive`: whether the machine process runs, `None` when none has been recorded. `started`: whether the journal says so.
    pub(crate) fn observed(alive: Option<bool>, started: bool) -> Status {
        match (alive, started) {
            (None, _) => Status::Creating,
            (Some(false), _) => Status::Stopped,
            (Some(true), false) => Status::Created,
            (Some(true), true) => Status::Running,
        }
    }

    /// Whether the container `id` allows a verb. `Creating` allows its deletion: who holds the lock knows that no create is at work.
    pub(crate) fn allows(self, verb: Verb, id: &str) -> Result<(), Error> {
        match (verb, self) {
            (Verb::Start, Status::Created)
            | (Verb::Kill, Status::Created | Status::Running)
            | (Verb::Delete, Status::Creating | Status::Created | Status::Stopped)
            | (Verb::DeleteForce, _) => Ok(()),
            (Verb::Start, Status::Running) => Err(Error::AlreadyRunning),
            (Verb::Start, Status::Stopped) => Err(Error::HasStopped),
            (Verb::Start, Status::Creating) => Err(Error::NotCreated(self)),
            (Verb::Kill, Status::Creating | Status::Stopped) => Err(Error::NotRunning),
            (Verb::Delete, Status::Running) => Err(Error::NotStopped {
                id: id.to_owned(),
                status: self,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_observation_has_its_status() {
        for (alive, started, status) in [
            (None, false, Status::Creating),
            (None, true, Status::Creating),
            (Some(true), false, Status::Created),
            (Some(true), true, Status::Running),
            (Some(false), false, Status::Stopped),
            (Some(false), true, Status::Stopped),
        ] {
            assert_eq!(Status::observed(alive, started), status);
        }
    }

    #[test]
    fn every_status_answers_every_verb() {
        let not_stopped = "cannot delete container c that is not stopped: running";
        let creating = "cannot start a container in the creating state";
        for (status, verb, refusal) in [
            (Status::Creating, Verb::Start, creating),
            (Status::Creating, Verb::Kill, "container not running"),
            (Status::Creating, Verb::Delete, ""),
            (Status::Creating, Verb::DeleteForce, ""),
            (Status::Created, Verb::Start, ""),
            (Status::Created, Verb::Kill, ""),
            (Status::Created, Verb::Delete, ""),
            (Status::Created, Verb::DeleteForce, ""),
            (
                Status::Running,
                Verb::Start,
                "cannot start an already running container",
            ),
            (Status::Running, Verb::Kill, ""),
            (Status::Running, Verb::Delete, not_stopped),
            (Status::Running, Verb::DeleteForce, ""),
            (
                Status::Stopped,
                Verb::Start,
                "cannot start a container that has stopped",
            ),
            (Status::Stopped, Verb::Kill, "container not running"),
            (Status::Stopped, Verb::Delete, ""),
            (Status::Stopped, Verb::DeleteForce, ""),
        ] {
            let answer = status
                .allows(verb, "c")
                .map_or_else(|e| e.to_string(), |()| String::new());
            assert_eq!(answer, refusal, "{status} {verb:?}");
        }
    }
}
