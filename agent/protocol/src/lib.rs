//! The messages between host and guest: framing and types. No I/O policy.
//!
//! One control stream per machine carries [`Request`]s from the host and [`Message`]s from the
//! guest, each as one frame (see [`frame`]). Standard streams never pass here: each has a raw vsock
//! stream of its own, whose ports the host names in [`Stdio`].
//!
//! Every type tolerates unknown fields, so that either side may learn new ones first.

#![forbid(unsafe_code)]

pub mod frame;
mod hex;

use std::error::Error as StdError;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

pub use frame::{Decoder, Error, MAX_FRAME, encode, read, write};
pub use hex::{from_hex, to_hex};

/// The vsock ports of the control stream, on the host (CID 2) and in the guest. The agent dials it before there is any other process.
pub const CONTROL_PORTS: Ports = Ports {
    guest: 1024,
    host: 1024,
};

/// Where engines have the name server of a container: Docker's, in the container's network namespace.
pub const NAMES_ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 11), 53);

/// The vsock port on the host for a datagram to the name server, each on a connection of its own: one datagram there, one back.
pub const NAMES_DATAGRAM_PORT: u32 = 1022;

/// The vsock port on the host for connections to the name server.
pub const NAMES_STREAM_PORT: u32 = 1023;

/// Most connections to each of these ports at a time.
pub const NAMES_MAX: usize = 64;

/// The machine's device that takes memory back, which the agent binds when there is time for it.
pub const BALLOON_DEVICE: u8 = 3;

/// The tag of the virtio-fs device that carries the root filesystem and the bind mounts.
pub const SHARE_TAG: &str = "chiton";

/// Version of this protocol, announced in [`Message::Hello`]. Raised by incompatible changes only.
pub const VERSION: u32 = 4;

/// Most descriptors that a process has beside its standard streams.
pub const EXTRA_MAX: usize = 16;

/// Names a container of the machine by a number that the host has given with [`RequestBody::Create`]; below [`CONTAINERS_MAX`]. The
/// container that the machine was made for is [`FIRST`].
pub type ContainerId = u64;

/// The container that the machine was made for.
pub const FIRST: ContainerId = 0;

/// Maximum number of containers that a machine has had in its life.
pub const CONTAINERS_MAX: ContainerId = 1 << 16;

/// Names a process of a container: [`INIT`], or a number that the host has given with [`Exec`].
pub type ProcessId = u64;

/// The container's init.
pub const INIT: ProcessId = 0;

/// What the host asks of the guest. Answered by [`Message::Response`] with the same `id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host, unique on this stream.
    pub id: u64,
    /// The container that it is about.
    pub container: ContainerId,
    /// What is asked.
    pub body: RequestBody,
}

/// The requests. Every request is answered exactly once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestBody {
    /// Sets up a container with a new number, short of executing its program. Answered by [`Reply::Created`].
    Create(Create),
    /// Configures the container's network and executes the program of the container created before.
    /// Answered by [`Reply::Started`] once `execve` has succeeded. After a failure the container is
    /// of no use any more.
    Start(Network),
    /// Executes one more process in the container. Answered by [`Reply::Executed`] once `execve` has
    /// succeeded; its end is told by [`Message::Exited`].
    Exec(Exec),
    /// Sends a signal to a process. Answered by [`Reply::Done`], or by a
    /// [`FailureKind::NotRunning`] failure.
    Kill {
        /// The process.
        #[serde(default)]
        process: ProcessId,
        /// Signal number of x86_64 Linux (`signal(7)`); 0 probes only.
        signal: i32,
        /// To every process of the container's cgroup instead of to the one named.
        all: bool,
    },
    /// Sets the window size of a process's terminal. Answered by [`Reply::Done`].
    Resize {
        /// The process.
        process: ProcessId,
        /// The new size.
        size: TerminalSize,
    },
    /// Freezes the container's cgroup. Answered by [`Reply::Done`] when all of it is frozen.
    Pause,
    /// Thaws the container's cgroup. Answered by [`Reply::Done`].
    Resume,
    /// Changes the limits of the container's cgroup; the text is the JSON of a `linux.resources`
    /// object, of which only what is present changes. Answered by [`Reply::Done`].
    Update(String),
    /// Asks for the files of the container's cgroup. Answered by [`Reply::Statistics`].
    Statistics,
    /// Asks for the processes of the container. Answered by [`Reply::Processes`].
    Processes,
}

/// What the container's network namespace is to have beside its loopback interface.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Network {
    /// The interfaces.
    pub interfaces: Vec<Interface>,
    /// Files below `/proc/sys/net` and what is written to them, once the interfaces are there.
    pub settings: Vec<(String, String)>,
    /// What the kernel is asked for then, in this order.
    pub requests: Vec<NetlinkRequest>,
    /// The host has a name server at [`NAMES_ADDRESS`], which is to be there in the guest, too.
    #[serde(default)]
    pub names: bool,
}

/// A network interface: what becomes of a device of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// The device `virtio-mmio.N`, which no driver is bound to.
    pub device: u8,
    /// Its Ethernet address, which the device knows itself.
    pub mac: [u8; 6],
    /// The interface's name.
    pub name: String,
    /// The interface's index.
    pub index: i32,
}

/// A request of rtnetlink(7), which asks for an acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetlinkRequest {
    /// What it is about, for an error: `add the address 10.0.0.2/24 to eth0`.
    pub what: String,
    /// The message with its header, in hexadecimal.
    pub message: String,
}

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines of text.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A process to execute in the container that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Its name from now on: greater than every one used before on this stream, and below 2^56.
    pub process: ProcessId,
    /// The JSON of a `process` object as in `config.json`. The container's seccomp filter applies.
    pub config: String,
    /// The cgroup below the container's own that it starts in; the container's own if empty.
    #[serde(default)]
    pub cgroup: String,
    /// Its standard streams.
    pub stdio: Stdio,
    /// Its descriptors from number 3 on, at most [`EXTRA_MAX`].
    #[serde(default)]
    pub extra: Vec<Extra>,
}

/// The container to set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// Container id; names its cgroup when the configuration has no `cgroupsPath`.
    pub id: String,
    /// The bytes of `config.json`, verbatim.
    pub config: String,
    /// The bundle's path on the host, for the state that hooks are told.
    #[serde(default)]
    pub bundle: String,
    /// Where the host has put what the configuration names by host paths.
    pub overlay: Overlay,
    /// The container's standard streams.
    pub stdio: Stdio,
    /// The init's descriptors from number 3 on, at most [`EXTRA_MAX`].
    #[serde(default)]
    pub extra: Vec<Extra>,
}

/// Where things of the host are found in the share (paths relative to its root).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Overlay {
    /// The root filesystem, for instance `rootfs`.
    pub rootfs: String,
    /// For each mount whose source is shared: its index in `mounts` of the configuration, and its
    /// source, for instance `mnt/0`.
    #[serde(default)]
    pub binds: Vec<(usize, String)>,
    /// For each bind mount of a character device: its index in `mounts`, and the device, of which
    /// the guest has one of its own.
    #[serde(default)]
    pub devices: Vec<(usize, Device)>,
    /// Mounts of the host below those sources, for instance `mnt/0/below`, outer before inner: what
    /// the configuration does not make recursive must not reach them.
    #[serde(default)]
    pub submounts: Vec<String>,
    /// The block devices of the host that the guest has as virtio-blk.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// `linux.seccomp`, compiled.
    #[serde(default)]
    pub seccomp: Option<Seccomp>,
    /// Added to `process.env`, in its form.
    #[serde(default)]
    pub env: Vec<String>,
    /// The container gets a socket for sd_notify(3), which NOTIFY_SOCKET names.
    #[serde(default)]
    pub notify: bool,
}

/// A block device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its number on the host, as the configuration has it.
    pub device: Device,
    /// The serial number under which the guest finds it.
    pub serial: String,
}

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The major number.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
}

/// A seccomp filter, ready for `seccomp(SECCOMP_SET_MODE_FILTER)`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Seccomp {
    /// `SECCOMP_FILTER_FLAG_*` of linux/seccomp.h.
    pub flags: u64,
    /// The program: each element is one `struct sock_filter` (linux/filter.h) in its memory layout,
    /// read as a little-endian number.
    pub program: Vec<u64>,
}

/// The two vsock ports of a stream: the one in the guest that the agent dials from, and the one on the host (CID 2) that it dials. The
/// host draws both at random and accepts no connection between others: any process of the guest may open a vsock socket, and only the
/// agent knows these ports. They must not be told to a process of a container before the stream is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// In the guest.
    pub guest: u32,
    /// On the host.
    pub host: u32,
}

/// The streams that the agent dials, one raw stream per descriptor. None stands for
/// `/dev/null`. With `process.terminal`, `stdin` feeds the terminal, `stdout` carries all its
/// output and `stderr` is None; when `stdin` ends, the terminal hangs up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stdio {
    /// Host to guest.
    #[serde(default)]
    pub stdin: Option<Ports>,
    /// Guest to host.
    #[serde(default)]
    pub stdout: Option<Ports>,
    /// Guest to host.
    #[serde(default)]
    pub stderr: Option<Ports>,
}

/// A descriptor beside the standard streams, by the ports of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extra {
    /// Host to guest: a pipe to read from.
    In(Ports),
    /// Guest to host: a pipe to write to.
    Out(Ports),
    /// Both ways: a stream socket.
    Both(Ports),
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
    /// A process has ended and all that it wrote has been delivered. Sent once for each process
    /// that was created or executed; of a container's processes, [`INIT`]'s comes last.
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
    /// This container has said READY=1 (sd_notify(3)). Sent once, if [`Overlay::notify`] is set.
    Ready(ContainerId),
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
    /// The process of an [`Exec`] runs its program.
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
                container: FIRST,
                body: RequestBody::Start(Network::default()),
            },
            r#"{"id":7,"container":0,"body":{"Start":{"interfaces":[],"settings":[],"requests":[],"names":false}}}"#,
        );
        json_round_trip(
            &Request {
                id: 8,
                container: 3,
                body: RequestBody::Kill {
                    process: INIT,
                    signal: 15,
                    all: false,
                },
            },
            r#"{"id":8,"container":3,"body":{"Kill":{"process":0,"signal":15,"all":false}}}"#,
        );
        let create = Create {
            id: "c1".to_owned(),
            config: "{\"ociVersion\":\"1.0\"}\n".to_owned(),
            bundle: "/b".to_owned(),
            overlay: Overlay {
                rootfs: "rootfs".to_owned(),
                binds: vec![(3, "mnt/0".to_owned())],
                seccomp: Some(Seccomp {
                    flags: 2,
                    program: vec![6],
                }),
                devices: vec![(4, Device { major: 1, minor: 3 })],
                submounts: vec!["mnt/0/x".to_owned()],
                disks: vec![Disk {
                    device: Device { major: 8, minor: 0 },
                    serial: "disk0".to_owned(),
                }],
                env: vec!["A=b".to_owned()],
                notify: true,
            },
            stdio: Stdio {
                stdin: None,
                stdout: Some(Ports {
                    guest: 70_000,
                    host: 80_000,
                }),
                stderr: Some(Ports {
                    guest: 70_001,
                    host: 80_001,
                }),
            },
            extra: vec![
                Extra::In(Ports { guest: 5, host: 6 }),
                Extra::Both(Ports { guest: 7, host: 8 }),
            ],
        };
        json_round_trip(
            &Request {
                id: 1,
                container: FIRST,
                body: RequestBody::Create(create),
            },
            concat!(
                r#"{"id":1,"container":0,"body":{"Create":{"id":"c1","config":"{\"ociVersion\":\"1.0\"}\n","#,
                r#""bundle":"/b","overlay":{"rootfs":"rootfs","binds":[[3,"mnt/0"]],"#,
                r#""devices":[[4,{"major":1,"minor":3}]],"submounts":["mnt/0/x"],"#,
                r#""disks":[{"device":{"major":8,"minor":0},"serial":"disk0"}],"#,
                r#""seccomp":{"flags":2,"program":[6]},"#,
                r#""env":["A=b"],"notify":true},"#,
                r#""stdio":{"stdin":null,"stdout":{"guest":70000,"host":80000},"#,
                r#""stderr":{"guest":70001,"host":80001}},"#,
                r#""extra":[{"In":{"guest":5,"host":6}},{"Both":{"guest":7,"host":8}}]}}}"#
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
    fn unknown_fields_and_kinds_are_tolerated() {
        let text = r#"{"id":7,"container":1,"new":[1],"body":{"Kill":{"signal":9,"all":true,"newer":{}}}}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        assert_eq!(
            request.body,
            RequestBody::Kill {
                process: INIT,
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
