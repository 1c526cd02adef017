//! What PID 1 and its stage processes say to each other.

use std::path::PathBuf;

use protocol::{Create, Exec, Failure, Reply};
use serde::{Deserialize, Serialize};

/// What PID 1 asks of a stage process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// To set the container up.
    Create(Box<Create>),
    /// To execute one more process in it.
    Exec(Box<Join>),
    /// To change its limits.
    Update(Update),
    /// To list its processes.
    Processes(Processes),
    /// To be its name server.
    Names,
}

/// A process and the container that it joins.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Join {
    /// How the container was created.
    pub(crate) create: Create,
    /// The process.
    pub(crate) exec: Exec,
    /// The container's init, in the guest's root pid namespace.
    pub(crate) init: i32,
}

/// A change of limits.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Update {
    /// The container's cgroup.
    pub(crate) cgroup: PathBuf,
    /// The `config.json` that it was created with.
    pub(crate) config: String,
    /// The JSON of a `linux.resources` object.
    pub(crate) resources: String,
}

/// The list of processes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Processes {
    /// The container's cgroup.
    pub(crate) cgroup: PathBuf,
}

/// What the stage and init tell PID 1.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The process exists, with this pid.
    Child(i32),
    /// It waits for its release. With a terminal its master comes along as SCM_RIGHTS.
    Prepared,
    /// What could not be done.
    Failed(Failure),
    /// The answer to a task that makes no process.
    Answered(std::result::Result<Reply, Failure>),
}
