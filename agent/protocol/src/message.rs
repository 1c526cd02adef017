//! What the guest says.

use std::error::Error as StdError;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ContainerId, ProcessId};

/// What the guest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// First message of the stream: the agent is up. Times are the guest's CLOCK_MONOTONIC in ns.
    Hello {
        /// [`VERSION`](crate::VERSION) of the agent.
        version: u32,
        /// When the agent's first instruction ran, as near as it can tell.
        agent_started: u64,
        /// When this message was written.
        sent: u64,
    },
    /// The answer to the [`Request`](crate::Request) with this `id`.
    Response {
        /// Of the request; 0 for a request that could not be read.
        id: u64,
        /// What came of it.
        result: Result<Reply, Failure>,
    },
    /// A process has ended and all that it wrote has been delivered. Sent once for each process
    /// that was created or executed; of a container's processes, [`INIT`](crate::INIT)'s comes last.
    Exited {
        /// The container.
        container: ContainerId,
        /// The process.
        process: ProcessId,
        /// How.
        exit: Exit,
    },
    /// The kernel has killed a process of this container because memory ran out.
    OutOfMemory(ContainerId),
    /// This container has said READY=1 (sd_notify(3)). Sent once, if
    /// [`Create::notify`](crate::Create::notify) is set.
    Ready(ContainerId),
}

/// Success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The container is set up and waits for [`RequestBody::Start`](crate::RequestBody::Start).
    Created {
        /// Of the container's init, in the guest's root pid namespace.
        pid: i32,
        /// When the request was read: guest CLOCK_MONOTONIC, ns.
        started: u64,
        /// When the set-up was complete: guest CLOCK_MONOTONIC, ns.
        prepared: u64,
    },
    /// The program has been executed.
    Started {
        /// When the agent saw that `execve` had succeeded: guest CLOCK_MONOTONIC, ns.
        executed: u64,
        /// When this reply was written: guest CLOCK_MONOTONIC, ns.
        sent: u64,
    },
    /// The process of an [`Exec`](crate::Exec) runs its program.
    Executed {
        /// In the guest's root pid namespace.
        pid: i32,
    },
    /// The files of the container's cgroup that could be read: name and content.
    Statistics(Vec<(String, String)>),
    /// The processes of the container.
    Processes {
        /// Guest CLOCK_BOOTTIME, ns: what the start times in `stat` are relative to.
        now: u64,
        /// Of the container's cgroup and those below it, by pid.
        processes: Vec<Process>,
    },
    /// Guest CLOCK_MONOTONIC when this reply was written, ns.
    Time(u64),
    /// Nothing to tell.
    Done,
}

/// A process of the guest, in the words of its `/proc` (proc(5)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// In the guest's root pid namespace.
    pub pid: i32,
    /// `/proc/<pid>/stat`.
    pub stat: String,
    /// `/proc/<pid>/status`.
    pub status: String,
    /// `/proc/<pid>/cmdline`, with NUL between arguments.
    pub command_line: String,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It exited with this code.
    Code(u8),
    /// It was killed by this signal.
    Signal(i32),
}

impl Exit {
    /// Whether it ended by SIGKILL, or as a shell does that reports such an end of its child.
    #[must_use]
    pub fn is_killed(self) -> bool {
        /// Of signal(7).
        const SIGKILL: u8 = 9;
        matches!(self, Exit::Code(code) if code == 128 + SIGKILL)
            || self == Exit::Signal(SIGKILL.into())
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What callers distinguish.
    pub kind: FailureKind,
    /// The error and its sources, outermost first.
    pub chain: Vec<String>,
}

/// The failures that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// `process.args[0]` does not exist (shells: exit code 127).
    NotFound,
    /// `process.args[0]` may not be executed (shells: exit code 126).
    PermissionDenied,
    /// There is no running container.
    NotRunning,
    /// The configuration is invalid, or asks for what the guest does not support.
    Config,
    /// Anything else, including kinds that this version does not know.
    #[serde(other)]
    Other,
}

impl Failure {
    /// A failure from an error and all its sources.
    pub fn new(kind: FailureKind, error: &(dyn StdError + 'static)) -> Failure {
        let mut chain = vec![error.to_string()];
        let mut source = error.source();
        while let Some(error) = source {
            chain.push(error.to_string());
            source = error.source();
        }
        Failure { kind, chain }
    }

    /// A failure that has no source.
    pub fn message(kind: FailureKind, text: impl Into<String>) -> Failure {
        Failure {
            kind,
            chain: vec![text.into()],
        }
    }
}

/// One line: the chain joined by `: `.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.chain.is_empty() {
            f.write_str("unknown failure")
        } else {
            f.write_str(&self.chain.join(": "))
        }
    }
}

impl StdError for Failure {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FIRST, INIT};

    fn json_round_trip<T>(value: &T, json: &str)
    where
        T: Serialize + for<'de> Deserialize<'de> + PartialEq + fmt::Debug,
    {
        assert_eq!(serde_json::to_string(value).unwrap(), json);
        assert_eq!(&serde_json::from_str::<T>(json).unwrap(), value);
    }

    #[test]
    fn messages_have_a_stable_form() {
        json_round_trip(
            &Message::Hello {
                version: 1,
                agent_started: 2,
                sent: 3,
            },
            r#"{"Hello":{"version":1,"agent_started":2,"sent":3}}"#,
        );
        json_round_trip(
            &Message::Response {
                id: 4,
                result: Ok(Reply::Done),
            },
            r#"{"Response":{"id":4,"result":{"Ok":"Done"}}}"#,
        );
        let failure = Failure::message(FailureKind::NotFound, "no");
        json_round_trip(
            &Message::Response {
                id: 4,
                result: Err(failure),
            },
            r#"{"Response":{"id":4,"result":{"Err":{"kind":"NotFound","chain":["no"]}}}}"#,
        );
        json_round_trip(
            &Message::Exited {
                container: FIRST,
                process: INIT,
                exit: Exit::Code(3),
            },
            r#"{"Exited":{"container":0,"process":0,"exit":{"Code":3}}}"#,
        );
        json_round_trip(
            &Message::Exited {
                container: 2,
                process: 4,
                exit: Exit::Signal(9),
            },
            r#"{"Exited":{"container":2,"process":4,"exit":{"Signal":9}}}"#,
        );
    }

    #[test]
    fn unknown_kinds_are_tolerated() {
        let failure: Failure =
            serde_json::from_str(r#"{"kind":"Invented","chain":["a"],"x":1}"#).unwrap();
        assert_eq!(failure.kind, FailureKind::Other);
    }

    #[test]
    fn exit_codes_out_of_range_are_refused() {
        assert!(serde_json::from_str::<Exit>(r#"{"Code":256}"#).is_err());
        assert!(serde_json::from_str::<Exit>(r#"{"Code":-1}"#).is_err());
        assert!(serde_json::from_str::<Exit>(r#"{"Signal":4294967296}"#).is_err());
    }

    #[test]
    fn failure_keeps_the_whole_chain() {
        let inner = std::io::Error::from_raw_os_error(2);
        let error = crate::Error::Read(inner);
        let failure = Failure::new(FailureKind::Other, &error);
        assert_eq!(failure.chain.len(), 2);
        assert_eq!(failure.to_string(), failure.chain.join(": "));
        assert!(failure.chain[1].contains("No such file"));
    }
}
