//! The messages between host and guest: framing and types. No I/O policy.
//!
//! One control stream per machine carries [`Request`]s from the host and [`Message`]s from the
//! guest, each as one frame (see [`frame`]). Standard streams never pass here: each has a raw vsock
//! stream of its own, whose port the host names in [`Stdio`].
//!
//! Every type tolerates unknown fields, so that either side may learn new ones first.

#![forbid(unsafe_code)]

pub mod frame;

use std::error::Error as StdError;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use frame::{Decoder, Error, MAX_FRAME, encode, read, write};

/// The vsock port on the host (CID 2) that the agent dials for the control stream.
pub const CONTROL_PORT: u32 = 1024;

/// The tag of the virtio-fs device that carries the root filesystem and the bind mounts.
pub const SHARE_TAG: &str = "chiton";

/// Version of this protocol, announced in [`Message::Hello`]. Raised by incompatible changes only.
pub const VERSION: u32 = 1;

/// What the host asks of the guest. Answered by [`Message::Response`] with the same `id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host, unique on this stream.
    pub id: u64,
    /// What is asked.
    pub body: RequestBody,
}

/// The requests. A guest holds one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestBody {
    /// Sets the container up, short of executing its program. Answered by [`Reply::Created`].
    Create(Create),
    /// Executes the program of the container created before. Answered by [`Reply::Started`] once
    /// `execve` has succeeded.
    Start,
    /// Sends a signal to the container's init. Answered by [`Reply::Done`], or by a
    /// [`FailureKind::NotRunning`] failure.
    Kill {
        /// Signal number of x86_64 Linux (`signal(7)`); 0 probes only.
        signal: i32,
        /// To every process of the container's cgroup instead of to its init alone.
        all: bool,
    },
}

/// The container to set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// Container id; names its cgroup when the configuration has no `cgroupsPath`.
    pub id: String,
    /// The bytes of `config.json`, verbatim.
    pub config: String,
    /// Where the host has put what the configuration names by host paths.
    pub overlay: Overlay,
    /// The container's standard streams.
    pub stdio: Stdio,
}

/// Where things of the host are found in the share (paths relative to its root).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Overlay {
    /// The root filesystem, for instance `rootfs`.
    pub rootfs: String,
    /// For each bind mount: its index in `mounts` of the configuration, and its source, for
    /// instance `mnt/0`.
    #[serde(default)]
    pub binds: Vec<(usize, String)>,
}

/// The vsock ports on CID 2 that the agent dials, one raw stream per descriptor. None stands for
/// `/dev/null`. With `process.terminal`, `stdin` feeds the terminal, `stdout` carries all its
/// output and `stderr` is None.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stdio {
    /// Host to guest.
    #[serde(default)]
    pub stdin: Option<u32>,
    /// Guest to host.
    #[serde(default)]
    pub stdout: Option<u32>,
    /// Guest to host.
    #[serde(default)]
    pub stderr: Option<u32>,
}

/// What the guest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// First message of the stream: the agent is up. Times are the guest's CLOCK_MONOTONIC in ns.
    Hello {
        /// [`VERSION`] of the agent.
        version: u32,
        /// When the agent's first instruction ran, as near as it can tell.
        agent_started: u64,
        /// When this message was written.
        sent: u64,
    },
    /// The answer to the [`Request`] with this `id`.
    Response {
        /// Of the request; 0 for a request that could not be read.
        id: u64,
        /// What came of it.
        result: Result<Reply, Failure>,
    },
    /// The container's init has ended and all that it wrote has been delivered. Sent once.
    Exited(Exit),
}

/// Success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The container is set up and waits for [`RequestBody::Start`].
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
    /// Nothing to tell.
    Done,
}

/// How the container's init ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It exited with this code.
    Code(u8),
    /// It was killed by this signal.
    Signal(i32),
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

    fn json_round_trip<T>(value: &T, json: &str)
    where
        T: Serialize + for<'de> Deserialize<'de> + PartialEq + fmt::Debug,
    {
        assert_eq!(serde_json::to_string(value).unwrap(), json);
        assert_eq!(&serde_json::from_str::<T>(json).unwrap(), value);
    }

    #[test]
    fn requests_have_a_stable_form() {
        json_round_trip(
            &Request {
                id: 7,
                body: RequestBody::Start,
            },
            r#"{"id":7,"body":"Start"}"#,
        );
        json_round_trip(
            &Request {
                id: 8,
                body: RequestBody::Kill {
                    signal: 15,
                    all: false,
                },
            },
            r#"{"id":8,"body":{"Kill":{"signal":15,"all":false}}}"#,
        );
        let create = Create {
            id: "c1".to_owned(),
            config: "{\"ociVersion\":\"1.0\"}\n".to_owned(),
            overlay: Overlay {
                rootfs: "rootfs".to_owned(),
                binds: vec![(3, "mnt/0".to_owned())],
            },
            stdio: Stdio {
                stdin: None,
                stdout: Some(70_000),
                stderr: Some(70_001),
            },
        };
        json_round_trip(
            &Request {
                id: 1,
                body: RequestBody::Create(create),
            },
            concat!(
                r#"{"id":1,"body":{"Create":{"id":"c1","config":"{\"ociVersion\":\"1.0\"}\n","#,
                r#""overlay":{"rootfs":"rootfs","binds":[[3,"mnt/0"]]},"#,
                r#""stdio":{"stdin":null,"stdout":70000,"stderr":70001}}}}"#
            ),
        );
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
        json_round_trip(&Message::Exited(Exit::Code(3)), r#"{"Exited":{"Code":3}}"#);
        json_round_trip(
            &Message::Exited(Exit::Signal(9)),
            r#"{"Exited":{"Signal":9}}"#,
        );
    }

    #[test]
    fn unknown_fields_and_kinds_are_tolerated() {
        let text = r#"{"id":7,"new":[1],"body":{"Kill":{"signal":9,"all":true,"newer":{}}}}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        assert_eq!(
            request.body,
            RequestBody::Kill {
                signal: 9,
                all: true
            }
        );
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
        let error = Error::Read(inner);
        let failure = Failure::new(FailureKind::Other, &error);
        assert_eq!(failure.chain.len(), 2);
        assert_eq!(failure.to_string(), failure.chain.join(": "));
        assert!(failure.chain[1].contains("No such file"));
    }
}
