//! What PID 1 and its stage processes say to each other.

use std::path::PathBuf;

use protocol::{Exec, Extra, Failure, Reply, Stdio};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What PID 1 asks of a stage process. Its bytes are a frame, and behind that as it came what the host
/// has attached to its own request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// To set the container up.
    Create(Create),
    /// To execute one more process in it.
    Exec(Join),
    /// To change its limits.
    Update(Update),
    /// To list the processes of its cgroup, which this is.
    Processes(PathBuf),
    /// To be its name server.
    Names,
}

/// A container to be set up, in addition to its [`Setup`](protocol::Setup).
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Create {
    /// Its directory in the guest ([`paths`](crate::paths)).
    pub(crate) directory: PathBuf,
    /// The container's cgroup.
    pub(crate) cgroup: PathBuf,
    /// PID 1 has made a socket for notifications.
    pub(crate) notify: bool,
    /// The init's standard streams.
    pub(crate) stdio: Stdio,
    /// The init's descriptors from number 3 on.
    pub(crate) extra: Vec<Extra>,
}

/// A process and the container that it joins.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Join {
    /// The container's cgroup.
    pub(crate) cgroup: PathBuf,
    /// The container's init, in the guest's root pid namespace.
    pub(crate) init: i32,
    /// The process.
    pub(crate) exec: Exec,
}

/// A change of limits.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Update {
    /// The container's cgroup.
    pub(crate) cgroup: PathBuf,
    /// The JSON of a `linux.resources` object.
    #[serde(skip)]
    pub(crate) resources: Vec<u8>,
}

impl Task {
    /// The bytes.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let mut bytes = protocol::encode(self).map_err(|e| Error::Stream("stage", e))?;
        match self {
            Task::Exec(join) => bytes.extend_from_slice(&join.exec.config),
            Task::Update(update) => bytes.extend_from_slice(&update.resources),
            Task::Create(_) | Task::Processes(_) | Task::Names => {}
        }
        Ok(bytes)
    }

    /// From the bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Task> {
        let (mut task, rest) = protocol::split(bytes).map_err(|e| Error::Stream("agent", e))?;
        match &mut task {
            Task::Exec(join) => join.exec.config = rest.to_vec(),
            Task::Update(update) => update.resources = rest.to_vec(),
            Task::Create(_) | Task::Processes(_) | Task::Names => {}
        }
        Ok(task)
    }
}

/// What the stage and the process that it makes tell PID 1.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attachment_arrives_as_it_was() {
        let exec = Exec {
            process: 1,
            config: b" {\"a\":\"b\"}\n".to_vec(),
            terminal: false,
            cgroup: String::new(),
            stdio: Stdio::default(),
            extra: Vec::new(),
        };
        let cgroup = PathBuf::from("/a");
        let init = 7;
        let task = Task::Exec(Join {
            cgroup,
            init,
            exec: exec.clone(),
        });
        let Task::Exec(join) = Task::decode(&task.encode().unwrap()).unwrap() else {
            panic!("another task")
        };
        assert_eq!(join.exec, exec);
        assert!(Task::decode(b"{}").is_err());
    }
}
