//! The status of a container and which verb it allows.
//!
//! ```text
//!           machine started        program executed  ┌────────── pause ──────────┐
//! creating ────────────────> created ────────────> running <──── resume ──── paused
//!    │                          │                       │                       │
//!    │                          └────────────────────────────── machine ended ──┴──> stopped
//!    └────────────────────────────── create was killed ──────────────────────────┘ (a pid that has ended)
//! ```
//! Invariants: the status is computed from what is there, never stored; but for a pause it only moves to the right; `stopped` means that
//! no process of the machine is left.

use std::fmt;

use serde::Serialize;

use super::journal::Entry;
use crate::verbs::error::Error;

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

/// What the status decides about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Start,
    Kill,
    Delete,
    DeleteForce,
    Exec,
    /// `exec --ignore-paused`.
    ExecPaused,
    Pause,
    Resume,
    Ps,
    Update,
    Events,
}

impl Status {
    /// The status that follows from what can be seen.
    ///
    /// `alive`: whether the machine process runs, `None` when none has been recorded. `last`: what the journal says last.
    pub(crate) fn observed(alive: Option<bool>, last: Option<&Entry>) -> Status {
        match (alive, last) {
            (None, _) => Status::Creating,
            (Some(false), _) => Status::Stopped,
            (Some(true), None) => Status::Created,
            (Some(true), Some(Entry::Paused)) => Status::Paused,
            (Some(true), Some(Entry::Started | Entry::Exited { .. })) => Status::Running,
        }
    }

    /// Whether the container `id` allows a verb. `Creating` allows its deletion: who holds the lock knows that no create is at work.
    pub(crate) fn allows(self, verb: Verb, id: &str) -> Result<(), Error> {
        use Status::{Created, Creating, Paused, Running, Stopped};
        match (verb, self) {
            (Verb::Start, Created)
            | (Verb::Kill, Created | Running | Paused)
            | (Verb::Delete, Creating | Created | Stopped)
            | (Verb::DeleteForce, _)
            | (Verb::Exec, Created | Running)
            | (Verb::ExecPaused, Created | Running | Paused)
            | (Verb::Pause, Created | Running)
            | (Verb::Resume, Paused)
            // What has stopped has no processes.
            | (Verb::Ps, Created | Running | Paused | Stopped)
            | (Verb::Update | Verb::Events, Created | Running | Paused) => Ok(()),
            (Verb::Start, Running) => Err(Error::AlreadyRunning),
            (Verb::Start, Stopped) => Err(Error::HasStopped),
            (Verb::Start, Creating | Paused) => Err(Error::NotCreated(self)),
            (Verb::Delete, Running | Paused) => Err(Error::NotStopped {
                id: id.to_owned(),
                status: self,
            }),
            (Verb::Exec, Paused) => Err(Error::ExecPaused),
            (Verb::Exec | Verb::ExecPaused, Stopped) => Err(Error::ExecStopped),
            (Verb::Resume, _) => Err(Error::NotPaused),
            (Verb::Events, Creating | Stopped) => Err(Error::NotRunningId(id.to_owned())),
            (Verb::Kill | Verb::Update, Creating | Stopped)
            | (Verb::Pause, Creating | Paused | Stopped)
            | (Verb::Ps | Verb::Exec | Verb::ExecPaused, Creating) => Err(Error::NotRunning),
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

    #[test]
    fn every_status_answers_every_verb() {
        let statuses = [
            Status::Creating,
            Status::Created,
            Status::Running,
            Status::Paused,
            Status::Stopped,
        ];
        let not_running = "container not running";
        let not_paused = "container not paused";
        let no_events = "container with id c is not running";
        let exec_stopped = "cannot exec in a stopped container";
        let exec_paused = "cannot exec in a paused container (use --ignore-paused to override)";
        let cannot = |what: &str| format!("cannot {what}");
        let (start_creating, start_running, start_paused, start_stopped) = (
            &*cannot("start a container in the creating state"),
            &*cannot("start an already running container"),
            &*cannot("start a container in the paused state"),
            &*cannot("start a container that has stopped"),
        );
        let (delete_running, delete_paused) = (
            &*cannot("delete container c that is not stopped: running"),
            &*cannot("delete container c that is not stopped: paused"),
        );
        for (verb, refusals) in [
            (
                Verb::Start,
                [
                    start_creating,
                    "",
                    start_running,
                    start_paused,
                    start_stopped,
                ],
            ),
            (Verb::Kill, [not_running, "", "", "", not_running]),
            (Verb::Delete, ["", "", delete_running, delete_paused, ""]),
            (Verb::DeleteForce, ["", "", "", "", ""]),
            (Verb::Exec, [not_running, "", "", exec_paused, exec_stopped]),
            (Verb::ExecPaused, [not_running, "", "", "", exec_stopped]),
            (Verb::Pause, [not_running, "", "", not_running, not_running]),
            (
                Verb::Resume,
                [not_paused, not_paused, not_paused, "", not_paused],
            ),
            (Verb::Ps, [not_running, "", "", "", ""]),
            (Verb::Update, [not_running, "", "", "", not_running]),
            (Verb::Events, [no_events, "", "", "", no_events]),
        ] {
            for (status, refusal) in statuses.into_iter().zip(refusals) {
                let answer = status
                    .allows(verb, "c")
                    .map_or_else(|e| e.to_string(), |()| String::new());
                assert_eq!(answer, refusal, "{status} {verb:?}");
            }
        }
    }
}
