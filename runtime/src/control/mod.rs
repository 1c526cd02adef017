//! control.sock: how the later verbs speak to the machine process, in frames of the protocol crate. A connection carries one
//! [`Request`], which names the container, and its replies:
//!
//! | request | replies |
//! |---|---|
//! | [`Control::Exec`] | `Executed` or an error; after `Executed` the client may send any number of [`ExecControl`], which are not answered; at last `Exited` |
//! | [`Control::Events`] | `OutOfMemory` each time; the connection ends with the container |
//! | [`Control::Ready`] | one, when the container has said so or has ended |
//! | the others | one |
//!
//! The descriptors of an `Exec` or a `Start` travel with the first byte of its frame (SCM_RIGHTS), in the order of
//! [`ExecRequest::streams`] and [`ExecRequest::extra`], or of the network's interfaces. When the client of an exec goes away before
//! `Exited`, the process in the guest is killed.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use protocol::{ContainerId, EXTRA_MAX, Exit, FIRST, Network, Ports, Process, TerminalSize};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::{Deserialize, Serialize};
use vmm::MAX_NET_SLOTS;

use crate::machine::{Doing, Error};

/// Name of the socket in the state directory.
const SOCKET: &str = "control.sock";

/// Most descriptors that come with a request: the standard streams and those beside them, or the taps of all network interfaces.
pub(crate) const DESCRIPTORS_MAX: usize = if 3 + EXTRA_MAX > MAX_NET_SLOTS {
    3 + EXTRA_MAX
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
    /// Give the container its network and execute its program. The number of a device is that of no device yet; the tap of each
    /// interface comes along as a descriptor.
    Start(Network),
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

/// A process to execute in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExecRequest {
    /// The JSON of an OCI `process` object.
    pub(crate) process: String,
    /// The cgroup below the container's own that it starts in; the container's own if empty.
    pub(crate) cgroup: String,
    /// What comes along as descriptors. With `process.terminal` that is one descriptor, the terminal, as standard input.
    pub(crate) streams: [Stream; 3],
    /// The descriptors beside the standard streams. They come after those.
    pub(crate) extra: Vec<Extra>,
}

/// A descriptor beside the standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extra {
    pub(crate) direction: Direction,
    /// As of [`Stream::Passed`].
    pub(crate) own: bool,
}

/// A standard stream of an exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stream {
    /// There is none: /dev/null.
    None,
    /// A descriptor that comes along. `own`: its open file description belongs to the machine process alone and does not block.
    Passed { own: bool },
}

/// What the client of an exec may ask for while the process runs.
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
    /// The container has no process any more.
    NotRunning,
    /// The container is paused, and what was asked for needs one that is not.
    Paused,
    /// It could not be done, and why.
    Failed(String),
    /// The process of an exec runs its program.
    Executed,
    /// The process of an exec has ended and all its output has been delivered.
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
    /// The guest's kernel has killed a process of the container for want of memory.
    OutOfMemory,
}

/// Asks the machine process of the container whose state directory is given, and waits for its answer.
///
/// # Errors
/// [`Error::NotRunning`] when no machine listens or it ends before it answers.
pub(crate) fn control(state_dir: &Path, request: &Control) -> Result<ControlReply, Error> {
    let connection = Connection::open(state_dir)?;
    connection.ask(request)?;
    connection.receive()?.ok_or(Error::NotRunning)
}

/// Asks the machine process to execute one more process, and passes it the descriptors that `request.streams` speaks of. The answers are
/// for the caller to receive.
///
/// # Errors
/// [`Error::NotRunning`] when no machine listens or it ends meanwhile.
pub(crate) fn exec(
    state_dir: &Path,
    request: &ExecRequest,
    descriptors: &[BorrowedFd<'_>],
) -> Result<Connection, Error> {
    send_with(state_dir, &Control::Exec(request.clone()), descriptors)
}

/// Asks the machine process to give the container its network and to execute its program, and waits for the answer.
///
/// # Errors
/// [`Error::NotRunning`] when no machine listens or it ends before it answers.
pub(crate) fn start(
    state_dir: &Path,
    network: Network,
    taps: &[OwnedFd],
) -> Result<ControlReply, Error> {
    let taps: Vec<BorrowedFd<'_>> = taps.iter().map(AsFd::as_fd).collect();
    let connection = send_with(state_dir, &Control::Start(network), &taps)?;
    connection.receive()?.ok_or(Error::NotRunning)
}

fn send_with(
    state_dir: &Path,
    request: &Control,
    descriptors: &[BorrowedFd<'_>],
) -> Result<Connection, Error> {
    let frame = protocol::encode(&named(request)).map_err(Error::Protocol)?;
    let connection = Connection::open(state_dir)?;
    match connection.send_with(&frame, descriptors) {
        Err(e) if is_gone(&e) => Err(Error::NotRunning),
        result => result.doing("send the request").map(|()| connection),
    }
}

/// A connection to the machine process, seen from a verb. Blocks.
pub(crate) struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// Connects to the machine of the container whose state directory is given.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when no machine listens.
    pub(crate) fn open(state_dir: &Path) -> Result<Connection, Error> {
        let directory = File::open(state_dir).doing("open the state directory")?;
        match UnixStream::connect(address(directory.as_fd())) {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Err(Error::NotRunning)
            }
            result => result
                .doing("connect to control.sock")
                .map(|stream| Connection { stream }),
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when the machine has ended.
    pub(crate) fn ask(&self, request: &Control) -> Result<(), Error> {
        self.send(&named(request))
    }

    /// Steers the process of an exec, once that is `Executed`.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when the machine has ended.
    pub(crate) fn steer(&self, control: &ExecControl) -> Result<(), Error> {
        self.send(control)
    }

    fn send<T: Serialize>(&self, message: &T) -> Result<(), Error> {
        match protocol::write(&mut &self.stream, message) {
            Err(protocol::Error::Write(e)) if is_gone(&e) => Err(Error::NotRunning),
            result => result.map_err(Error::Protocol),
        }
    }

    /// Sends bytes, the first of them with descriptors.
    fn send_with(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let sent = loop {
            let bytes = [IoSlice::new(bytes)];
            match sendmsg(&self.stream, &bytes, &mut ancillary, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                result => break result?,
            }
        };
        (&self.stream).write_all(&bytes[sent..])
    }

    /// The next reply; `None` when the machine has ended or has no more to say.
    pub(crate) fn receive(&self) -> Result<Option<ControlReply>, Error> {
        match protocol::read(&mut &self.stream) {
            Ok(reply) => Ok(reply),
            Err(protocol::Error::Truncated) => Ok(None),
            Err(protocol::Error::Read(e)) if is_gone(&e) => Ok(None),
            Err(e) => Err(Error::Protocol(e)),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The container that a machine was made for is the one that has a state directory with a socket.
fn named(control: &Control) -> Request<&Control> {
    Request {
        container: FIRST,
        control,
    }
}

/// The socket's path by way of its directory's descriptor: it fits into a socket address whatever the directory's own path is.
fn address(state_dir: BorrowedFd<'_>) -> PathBuf {
    Path::new("/proc/self/fd")
        .join(state_dir.as_raw_fd().to_string())
        .join(SOCKET)
}

/// Whether an error says that the other side has ended.
fn is_gone(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

/// Listens in the state directory. Never blocks.
pub(crate) fn listen(state_dir: BorrowedFd<'_>) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(address(state_dir))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
