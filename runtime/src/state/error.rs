//! What can be wrong with a container's id, its record and its status. Callers match some of the texts, so these are
//! runc's.

use std::io;
use std::path::PathBuf;

use super::status::Status;
use crate::error::SystemError;

/// What can be wrong with what is on record.
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
    #[error("state of container {id} is damaged: {path}")]
    Damaged {
        id: String,
        path: PathBuf,
        source: io::Error,
    },
    /// The status does not allow the verb, as for those that follow.
    #[error("container not running")]
    NotRunning,
    #[error("container with id {0} is not running")]
    NotRunningId(String),
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
    #[error(transparent)]
    System(#[from] SystemError),
}
