//! What a verb can fail with. Callers match some of the texts, so these are runc's.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::host::{cgroup, hooks, network, resctrl};
use crate::plan::Refused;
use crate::state::Status;
use crate::verbs::PsError;
use crate::verbs::statistics;
use crate::{config, machine};

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("container id cannot be empty")]
    EmptyId,
    #[error("invalid container ID format")]
    InvalidId,
    #[error("container does not exist")]
    NotFound,
    #[error("container with given ID already exists")]
    Exists,
    #[error("container not running")]
    NotRunning,
    #[error("container with id {0} is not running")]
    NotRunningId(String),
    #[error("container paused")]
    Paused,
    #[error("container not paused")]
    NotPaused,
    #[error("cannot exec in a paused container (use --ignore-paused to override)")]
    ExecPaused,
    #[error("cannot exec in a stopped container")]
    ExecStopped,
    #[error("cannot start an already running container")]
    AlreadyRunning,
    #[error("cannot start a container that has stopped")]
    HasStopped,
    #[error("cannot start a container in the {0} state")]
    NotCreated(Status),
    #[error("cannot delete container {id} that is not stopped: {status}")]
    NotStopped { id: String, status: Status },
    /// How runc words the failure of a verb that makes a container.
    #[error("chiton {0} failed")]
    Failed(&'static str, #[source] Box<Error>),
    /// How runc words the failure of exec.
    #[error("exec failed")]
    Exec(#[source] Box<Error>),
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// The machine process's own words.
    #[error("{0}")]
    Reply(String),
    #[error("the guest does not answer within {} seconds", .0.as_secs())]
    Unanswered(Duration),
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
    #[error("machine process {0} does not end")]
    Unkillable(i32),
    #[error("unknown signal {0:?}")]
    UnknownSignal(String),
    /// What the arguments of exec ask for and cannot be; runc's words.
    #[error("{0}")]
    Invalid(String),
    #[error("cannot pass on the standard streams")]
    Stream(#[source] vmm::vsock::Error),
    /// runc's words.
    #[error("unable to stat preserved-fd {index} (of {of})")]
    NotOpen {
        index: usize,
        of: usize,
        source: io::Error,
    },
    #[error("NOTIFY_SOCKET is set, and was not when the container was created")]
    NoNotifySocket,
    /// What a flag or the environment asks for and is not there.
    #[error("{0} is not supported yet")]
    Unsupported(&'static str),
    #[error("cannot use console socket if chiton will not detach or allocate tty")]
    ConsoleSocket,
    #[error("cannot allocate tty if chiton will detach without setting console socket")]
    NoConsoleSocket,
    #[error("process.consoleSize: must be less than 65536 by 65536")]
    ConsoleSize,
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
    Resctrl(#[from] resctrl::Error),
    #[error(transparent)]
    Network(#[from] network::Error),
    #[error(transparent)]
    Ps(#[from] PsError),
    #[error("File config.json exists. Remove it first")]
    SpecExists,
    #[error("state of container {id} is damaged: {path}")]
    Damaged {
        id: String,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{doing} {}", path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{0}")]
    System(&'static str, #[source] io::Error),
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

/// Adds what was being done to which file to a system call's error.
pub(crate) trait FileContext<T> {
    fn file(self, doing: &'static str, path: impl Into<PathBuf>) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> FileContext<T> for Result<T, E> {
    fn file(self, doing: &'static str, path: impl Into<PathBuf>) -> Result<T, Error> {
        self.map_err(|e| Error::File {
            doing,
            path: path.into(),
            source: e.into(),
        })
    }
}

/// Adds what was being done to a system call's error.
pub(crate) trait SystemContext<T> {
    fn system(self, doing: &'static str) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> SystemContext<T> for Result<T, E> {
    fn system(self, doing: &'static str) -> Result<T, Error> {
        self.map_err(|e| Error::System(doing, e.into()))
    }
}
