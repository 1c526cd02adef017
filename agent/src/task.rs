//! What PID 1 and its stage processes say to each other.

use std::net::SocketAddr;
use std::path::PathBuf;

use protocol::{ContainerId, Exec, Extra, Failure, Reply, Stdio};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What PID 1 asks of a stage process. Its bytes are a frame, and behind that, in frames as they came, what
/// the host has attached to its own request.
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
    /// To unmount the shares of this container, which has ended.
    Unmount(ContainerId),
    /// To be its name server.
    Names,
    /// To connect somebody on the host to this address in it.
    Connect(SocketAddr),
}

/// A container to be set up, in addition to its [`Setup`](protocol::Setup).
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Create {
    /// Its directory in the guest ([`paths`](crate::paths)).
    pub(crate) directory: PathBuf,
    /// The container's cgroup.
    pub(crate) cgroup: PathBuf,
    /// The namespaces that it joins: whose, by a process that is in them, and which, as `CLONE_NEW*` bits.
    pub(crate) joins: Vec<(i32, i32)>,
    /// PID 1 has made a socket for notifications.
    pub(crate) notify: bool,
    /// The init's standard streams.
    pub(crate) stdio: Stdio,
    /// The init's descriptors from number 3 on.
    pub(crate) extra: Vec<Extra>,
    /// The AppArmor policy that its processes need; empty if they need none.
    #[serde(skip)]
    pub(crate) policy: Vec<u8>,
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
        let bytes = || {
            let mut bytes = protocol::encode(self)?;
            for attachment in self.attachments().into_iter().flatten() {
                protocol::append_bytes(&mut bytes, attachment)?;
            }
            Ok(bytes)
        };
        bytes().map_err(|e| Error::Stream("stage", e))
    }

    /// From the bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Task> {
        let task = || {
            let (mut task, mut rest) = protocol::split::<Task>(bytes)?;
            for attachment in task.attachments_mut().into_iter().flatten() {
                let (bytes, behind) = protocol::split_bytes(rest)?;
                *attachment = bytes.to_vec();
                rest = behind;
            }
            Ok(task)
        };
        task().map_err(|e| Error::Stream("agent", e))
    }

    fn attachments(&self) -> [Option<&[u8]>; 2] {
        match self {
            Task::Create(create) => [Some(&create.policy), None],
            Task::Exec(Join { exec, .. }) => [Some(&exec.config), Some(&exec.policy)],
            Task::Update(update) => [Some(&update.resources), None],
            Task::Processes(_) | Task::Unmount(_) | Task::Names | Task::Connect(_) => [None, None],
        }
    }

    /// The same, in the same order.
    fn attachments_mut(&mut self) -> [Option<&mut Vec<u8>>; 2] {
        match self {
            Task::Create(create) => [Some(&mut create.policy), None],
            Task::Exec(Join { exec, .. }) => [Some(&mut exec.config), Some(&mut exec.policy)],
            Task::Update(update) => [Some(&mut update.resources), None],
            Task::Processes(_) | Task::Unmount(_) | Task::Names | Task::Connect(_) => [None, None],
        }
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
    fn attachments_arrive_as_they_were() {
        let exec = Exec {
            process: 1,
            config: b" {\"a\":\"b\"}\n".to_vec(),
            policy: vec![4, 0, 255],
            terminal: false,
            plain_newlines: false,
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
