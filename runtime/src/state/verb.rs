//! Which verbs a container's status allows.

use super::error::Error;
use super::status::Status;

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
    /// Whether the container `id` allows a verb. `Creating` allows its deletion: who holds the lock knows that no
    /// create is at work.
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
