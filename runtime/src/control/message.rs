//! What is said.

use std::os::fd::OwnedFd;

use protocol::{
    ContainerId, EXTRA_MAX, Exit, Joined, NetlinkRequest, Network, Overlay, Ports, Process,
    TerminalSize,
};
use serde::{Deserialize, Serialize};
use vmm::MAX_NET_SLOTS;

/// Maximum number of descriptors that come with a request: the standard streams, those besides them and a journal, or
/// the taps of all network interfaces.
pub(crate) const DESCRIPTORS_MAX: usize = if 4 + EXTRA_MAX > MAX_NET_SLOTS {
    4 + EXTRA_MAX
} else {
    MAX_NET_SLOTS
};

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Direction {
    /// Into the guest.
    In,
    /// Out of the guest.
    Out,
    /// Both at once.
    Both,
}

impl Direction {
    /// What the guest is told of a descriptor that has a stream between these ports.
    pub(crate) fn to_guest(self, ports: Ports) -> protocol::Extra {
        match self {
            Direction::In => protocol::Extra::In(ports),
            Direction::Out => protocol::Extra::Out(ports),
            Direction::Both => protocol::Extra::Both(ports),
        }
    }
}

/// A descriptor that is passed on, and that nobody else of this process has any more.
#[derive(Debug)]
pub(crate) struct Preserved {
    pub(crate) fd: OwnedFd,
    pub(crate) direction: Direction,
}

/// A request to the machine process, and the container of the machine that it is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request<C> {
    pub(crate) container: ContainerId,
    pub(crate) control: C,
}

/// What is asked of the machine process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Control {
    /// Give a number to one more container.
    Admit,
    /// Set up the container whose number has been given on this connection, short of executing its program.
    Create(Box<CreateRequest>),
    /// End a container that is not the machine's first, and have the guest unmount its shares.
    Remove,
    /// Give the container its network and execute its program. The number of a device is that of no device yet; the tap
    /// of each interface comes along as a descriptor.
    Start(Network),
    /// Do to the network of a running container what has been done to that of the host. More such requests may follow.
    Network(NetworkChange),
    /// Send a signal to the container's init process, or to all of its processes.
    Kill {
        /// The signal's number.
        signal: i32,
        /// Whether every process gets it.
        all: bool,
    },
    /// Execute one more process.
    Exec(ExecRequest),
    /// Freeze the container and stop its vCPUs.
    Pause,
    /// Undo `Pause`.
    Resume,
    /// Change the limits in the guest: the JSON of a `linux.resources` object.
    Update(String),
    /// The files of the container's cgroup in the guest.
    Statistics,
    /// The processes of the container.
    Processes,
    /// Tell of out-of-memory kills until the container ends.
    Events,
    /// Tell when the container has said that it is ready.
    Ready,
}

/// What has become of the container's network namespace on the host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct NetworkChange {
    /// The indices of interfaces that are gone.
    pub(crate) gone: Vec<i32>,
    /// As of [`protocol::NetworkChange`].
    pub(crate) undone: Vec<NetlinkRequest>,
    /// What is new. Devices and taps are as of [`Control::Start`].
    pub(crate) new: Network,
    /// What the log is to say.
    pub(crate) notes: Vec<String>,
}

/// A process to execute in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExecRequest {
    /// The JSON of an OCI `process` object.
    pub(crate) process: String,
    /// The compiled AppArmor policy that the guest does not have yet, in hexadecimal; empty if there is none.
    pub(crate) policy: String,
    /// The cgroup below the container's own that it starts in; the container's own if empty.
    pub(crate) cgroup: String,
    /// Its descriptors.
    pub(crate) passed: Passed,
}

/// A container to set up in the machine of another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CreateRequest {
    /// Its id.
    pub(crate) id: String,
    /// The bundle's absolute path.
    pub(crate) bundle: String,
    /// The bytes of config.json.
    pub(crate) config: String,
    /// What the guest must know besides.
    pub(crate) overlay: Overlay,
    /// The compiled AppArmor policy of its init, in hexadecimal; empty if there is none.
    pub(crate) policy: String,
    /// Its cgroup in the guest: the path below the root of the hierarchy.
    pub(crate) cgroup: String,
    /// It has a pid namespace of its own.
    pub(crate) own_pids: bool,
    /// The namespaces of other containers that it has.
    pub(crate) joins: Vec<Joined>,
    /// It gets a socket for sd_notify(3).
    pub(crate) notify: bool,
    /// Its root filesystem is to become read-only.
    pub(crate) sealed: bool,
    /// The descriptors of its init. The journal comes after them.
    pub(crate) passed: Passed,
}

/// What of a process's descriptors comes along with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Passed {
    /// It has a terminal: one descriptor in place of the standard streams, as standard input.
    pub(crate) terminal: bool,
    pub(crate) streams: [Stream; 3],
    /// The descriptors besides the standard streams. They come after those.
    pub(crate) extra: Vec<ExtraDescriptor>,
}

/// A descriptor besides the standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExtraDescriptor {
    pub(crate) direction: Direction,
    /// As of [`Stream::Passed`].
    pub(crate) own: bool,
}

/// A standard stream of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stream {
    /// There is none: /dev/null.
    None,
    /// A descriptor that comes along. `own`: its open file description belongs to the machine process alone and does
    /// not block.
    Passed { own: bool },
}

/// What the client of an exec or of a container may ask for while the process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ExecControl {
    /// Send it a signal.
    Kill(i32),
    /// Resize its terminal.
    Resize(TerminalSize),
}

/// The machine process's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ControlReply {
    /// It is done.
    Done,
    /// It is done, but files are in use that others may only open again by way of the container's mounts.
    Busy,
    /// The container has no process any more.
    NotRunning,
    /// The container is paused, and what was asked for needs one that is not.
    Paused,
    /// It could not be done, and why.
    Failed(String),
    /// The number of one more container.
    Admitted(ContainerId),
    /// The container is set up.
    Created,
    /// The process of an exec runs its program.
    Executed,
    /// The process of an exec, or the container's init, has ended and all its output has been delivered.
    Exited(Exit),
    /// Answer to [`Control::Statistics`]: file names and contents.
    Statistics(Vec<(String, String)>),
    /// Answer to [`Control::Processes`].
    Processes {
        /// Guest CLOCK_BOOTTIME, ns.
        now: u64,
        /// By pid.
        processes: Vec<Process>,
    },
    /// The guest's kernel has killed a process of the container because memory ran out.
    OutOfMemory,
}
