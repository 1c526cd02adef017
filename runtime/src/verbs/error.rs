//! What a verb can fail with. Callers match some of the texts, so these are runc's.

use std::path::PathBuf;

use super::events::statistics;
use super::ps::error::PsError;
use crate::error::SystemError;
use crate::host::{cgroup, hooks, network, notify, preserved, resctrl, terminal};
use crate::plan::Refused;
use crate::{audit, config, control, ids, machine, state};

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("container not running")]
    NotRunning,
    #[error("container paused")]
    Paused,
    /// How runc words the failure of a verb that makes a container.
    #[error("chiton {0} failed")]
    Failed(&'static str, #[source] Box<Error>),
    /// How runc words the failure of exec.
    #[error("exec failed")]
    Exec(#[source] Box<Error>),
    #[error(transparent)]
    State(state::Error),
    #[error(transparent)]
    Control(control::Error),
    #[error(transparent)]
    Machine(#[from] machine::Error),
    #[error(transparent)]
    Terminal(#[from] terminal::Error),
    #[error(transparent)]
    Preserved(#[from] preserved::Error),
    #[error(transparent)]
    Notify(#[from] notify::Error),
    /// The machine process's own words.
    #[error("{0}")]
    Reply(String),
    #[error("duration interval must be greater than 0")]
    Interval,
    #[error(transparent)]
    Statistics(#[from] statistics::Invalid),
    /// A flag or a file of `update`.
    #[error("invalid value for {0}: {1}")]
    Value(&'static str, String),
    #[error("invalid resources in {from}")]
    Resources {
        from: String,
        source: serde_json::Error,
    },
    #[error("machine process {0} did not exit")]
    Unkillable(i32),
    #[error("unknown signal {0:?}")]
    UnknownSignal(String),
    /// What the arguments of exec ask for and cannot be; runc's words.
    #[error("{0}")]
    Invalid(String),
    #[error("cannot pass on the standard streams")]
    Stream(#[source] vmm::vsock::Error),
    #[error("NOTIFY_SOCKET is set, but was not set when the container was created")]
    NoNotifySocket,
    /// What a flag or the environment asks for and is not there.
    #[error("{0} is not supported yet")]
    Unsupported(&'static str),
    #[error("must be run as root: rootless containers are not supported yet")]
    NotRoot,
    #[error("invalid --root {}: it cannot hold the state of containers", .0.display())]
    Root(PathBuf),
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Hook(#[from] hooks::Error),
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    #[error(transparent)]
    Ids(#[from] ids::Error),
    #[error(transparent)]
    Resctrl(#[from] resctrl::Error),
    #[error(transparent)]
    Network(#[from] network::Error),
    #[error(transparent)]
    Ps(#[from] PsError),
    #[error(transparent)]
    Audit(#[from] audit::Error),
    #[error("File config.json exists. Remove it first")]
    SpecExists,
    /// Another pod has this namespace.
    #[error(
        "{} is that of a pod with other pinned namespaces than the configuration names, and a container lives in one \
         machine", .0.display()
    )]
    OtherPins(PathBuf),
    #[error(transparent)]
    System(#[from] SystemError),
}

impl Error {
    /// The exit code for the caller: runc's.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Error::Exec(_) => 255,
            _ => 1,
        }
    }
}

impl From<state::Error> for Error {
    fn from(e: state::Error) -> Error {
        match e {
            state::Error::NotRunning => Error::NotRunning,
            e => Error::State(e),
        }
    }
}

impl From<control::Error> for Error {
    fn from(e: control::Error) -> Error {
        match e {
            control::Error::NotRunning => Error::NotRunning,
            e => Error::Control(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layer_says_once_what_was_being_done() {
        let failed = || SystemError {
            doing: "open /x".into(),
            source: std::io::Error::other("no"),
        };
        for (error, text) in [
            (Error::from(failed()), "open /x: no"),
            (state::Error::from(failed()).into(), "open /x: no"),
            (control::Error::from(failed()).into(), "cannot open /x: no"),
            (machine::Error::from(failed()).into(), "cannot open /x: no"),
            (terminal::Error::from(failed()).into(), "open /x: no"),
            (preserved::Error::from(failed()).into(), "open /x: no"),
            (notify::Error::from(failed()).into(), "open /x: no"),
            (cgroup::Error::from(failed()).into(), "open /x: no"),
            (network::Error::from(failed()).into(), "cannot open /x: no"),
            (
                resctrl::Error::from(failed()).into(),
                "linux.intelRdt: open /x: no",
            ),
            (
                Error::Failed("create", Box::new(failed().into())),
                "chiton create failed: open /x: no",
            ),
        ] {
            assert_eq!(format!("{:#}", anyhow::Error::from(error)), text);
        }
    }

    #[test]
    fn that_a_container_does_not_run_is_one_error() {
        for error in [
            Error::from(state::Error::NotRunning),
            control::Error::NotRunning.into(),
        ] {
            assert!(matches!(error, Error::NotRunning));
        }
    }
}
