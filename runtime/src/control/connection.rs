//! A connection to the machine process, seen from a verb; and the socket in the state directory that it is made to.
//!
//! Whether and when an answer comes is the guest's to decide, or that of whoever has taken the machine process over: no
//! verb waits for one without a limit.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use protocol::{ContainerId, FIRST, Network};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg, socket_with,
};
use serde::Serialize;

use super::message::{Control, ControlReply, DESCRIPTORS_MAX, ExecControl, ExecRequest, Request};
use crate::error::{Doing, SystemError};

/// Name of the socket in the state directory.
const SOCKET: &str = "control.sock";

/// How long the machine process may take to read a request and to answer it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The same for a start, of which hooks in the guest are part.
const START_PATIENCE: Duration = Duration::from_secs(600);

/// Maximum length of a reply that comes later than the first, in bytes. It says that something has happened, or a text.
const LATER_MAX: usize = 64 << 10;

/// Why a machine process could not be spoken to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A system call failed.
    #[error("cannot {doing}")]
    System {
        /// What was being done.
        doing: Cow<'static, str>,
        /// The cause.
        source: io::Error,
    },
    /// The container's machine answers no control requests.
    #[error("container not running")]
    NotRunning,
    /// The machine process did not answer within this time.
    #[error("the guest did not answer within {} seconds", .0.as_secs())]
    Unanswered(Duration),
    /// What is asked does not fit into one request. Lengths are in bytes.
    #[error("request of {length} bytes, {cap} are allowed")]
    TooLarge { length: usize, cap: usize },
    /// The machine process broke the control protocol.
    #[error("invalid reply of the machine process")]
    Protocol(#[source] protocol::Error),
}

impl From<SystemError> for Error {
    fn from(SystemError { doing, source }: SystemError) -> Error {
        Error::System { doing, source }
    }
}

/// Where requests about a container go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// The state directory of the container that the machine was made for.
    pub(crate) directory: PathBuf,
    /// The container's number in the machine.
    pub(crate) container: ContainerId,
    /// The machine process, where another one may listen by now.
    pub(crate) machine: Option<i32>,
}

impl Address {
    /// That of the container that a machine was made for, by its state directory.
    pub(crate) fn of_first(directory: &Path) -> Address {
        Address {
            directory: directory.to_owned(),
            container: FIRST,
            machine: None,
        }
    }
}

/// Asks the machine process of a container, and waits for its answer.
///
/// # Errors
/// [`Error::NotRunning`] when no machine listens or it ends before it answers; [`Error::Unanswered`].
pub(crate) fn control(address: &Address, request: &Control) -> Result<ControlReply, Error> {
    control_within(address, request, PATIENCE)
}

/// The same with a limit of the caller's own.
pub(crate) fn control_within(
    address: &Address,
    request: &Control,
    limit: Duration,
) -> Result<ControlReply, Error> {
    let connection = Connection::open(address)?;
    connection.ask(request)?;
    connection.answer_within(limit)
}

/// Asks the machine process to execute one more process, passes it the descriptors that `request.streams` speaks of,
/// and waits for the first answer. Further ones are for the caller to receive.
///
/// # Errors
/// As [`control`].
pub(crate) fn exec(
    address: &Address,
    request: ExecRequest,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(Connection, ControlReply), Error> {
    let connection = Connection::open(address)?;
    connection.ask_with(&Control::Exec(request), descriptors)?;
    let answer = connection.answer_within(PATIENCE)?;
    Ok((connection, answer))
}

/// The error of a request that could not be put into words or sent.
fn unwritten(e: protocol::Error) -> Error {
    match e {
        protocol::Error::Write(e) => unsent(e),
        protocol::Error::TooLong { length, cap } => Error::TooLarge { length, cap },
        e => Error::Protocol(e),
    }
}

/// The error of a request that could not be sent.
fn unsent(e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::WouldBlock => Error::Unanswered(PATIENCE),
        _ if is_gone(&e) => Error::NotRunning,
        _ => Error::Protocol(protocol::Error::Write(e)),
    }
}

/// A connection to the machine process, seen from a verb.
pub(crate) struct Connection {
    stream: UnixStream,
    /// The container that requests are about.
    container: ContainerId,
}

impl Connection {
    /// Connects to the machine of a container.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when no machine listens, or another one.
    pub(crate) fn open(address: &Address) -> Result<Connection, Error> {
        let directory = match File::open(&address.directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Error::NotRunning),
            directory => directory.doing("open the state directory")?,
        };
        match connect(&socket(directory.as_fd())) {
            Ok(stream) if address.machine.is_none_or(|pid| peer(&stream) == Some(pid)) => {
                Ok(Connection {
                    stream,
                    container: address.container,
                })
            }
            Ok(_) => Err(Error::NotRunning),
            Err(Errno::NOENT | Errno::CONNREFUSED) => Err(Error::NotRunning),
            Err(Errno::AGAIN) => Err(Error::Unanswered(PATIENCE)),
            Err(e) => Err(e).doing("connect to control.sock")?,
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when the machine has ended.
    pub(crate) fn ask(&self, request: &Control) -> Result<(), Error> {
        self.send(&self.named(request))
    }

    /// Sends a request, with the descriptors that it speaks of.
    ///
    /// # Errors
    /// As [`Connection::ask`].
    pub(crate) fn ask_with(
        &self,
        request: &Control,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        let frame = protocol::encode(&self.named(request)).map_err(unwritten)?;
        self.send_with(&frame, descriptors).map_err(unsent)
    }

    /// Asks the machine process to give the container its network and to execute its program, and waits for the answer.
    ///
    /// # Errors
    /// As [`control`].
    pub(crate) fn start(&self, network: Network, taps: &[OwnedFd]) -> Result<ControlReply, Error> {
        let taps: Vec<BorrowedFd<'_>> = taps.iter().map(AsFd::as_fd).collect();
        self.ask_with(&Control::Start(network), &taps)?;
        self.answer_within(START_PATIENCE)
    }

    /// Has further requests be about another container of the machine.
    pub(crate) fn about(&mut self, container: ContainerId) {
        self.container = container;
    }

    fn named<'a>(&self, control: &'a Control) -> Request<&'a Control> {
        Request {
            container: self.container,
            control,
        }
    }

    /// Steers the process of an exec, once that is `Executed`.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when the machine has ended.
    pub(crate) fn steer(&self, control: &ExecControl) -> Result<(), Error> {
        self.send(control)
    }

    fn send<T: Serialize>(&self, message: &T) -> Result<(), Error> {
        protocol::write(&mut &self.stream, message).map_err(unwritten)
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

    /// The next reply, within `limit`.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when the machine has ended, [`Error::Unanswered`].
    pub(crate) fn answer_within(&self, limit: Duration) -> Result<ControlReply, Error> {
        self.read_within(limit, protocol::MAX_FRAME)?
            .ok_or(Error::NotRunning)
    }

    /// The next reply, however long it takes until it begins; `None` when the machine has ended or has no more to say.
    pub(crate) fn receive(&self) -> Result<Option<ControlReply>, Error> {
        readable(self.stream.as_fd(), None).doing("wait for the machine process")?;
        self.read_within(PATIENCE, LATER_MAX)
    }

    fn read_within(&self, limit: Duration, cap: usize) -> Result<Option<ControlReply>, Error> {
        let mut stream = Until {
            stream: &self.stream,
            end: Instant::now() + limit,
        };
        match protocol::read_with_cap(&mut stream, cap) {
            Ok(reply) => Ok(reply),
            Err(protocol::Error::Truncated) => Ok(None),
            Err(protocol::Error::Read(e)) if is_gone(&e) => Ok(None),
            Err(protocol::Error::Read(e)) if e.kind() == io::ErrorKind::TimedOut => {
                Err(Error::Unanswered(limit))
            }
            Err(e) => Err(Error::Protocol(e)),
        }
    }
}

/// A stream that is read until a moment, whatever comes until then.
struct Until<'a> {
    stream: &'a UnixStream,
    end: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if readable(self.stream.as_fd(), Some(self.end))? {
            self.stream.read(buffer)
        } else {
            Err(io::ErrorKind::TimedOut.into())
        }
    }
}

/// Whether there is something to be read, or the end, before a moment; without one it is waited for.
fn readable(fd: BorrowedFd<'_>, end: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            // A part of a millisecond more, not less: poll(2) must not return at once, again and again.
            let left = left + Duration::from_micros(999);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            count => return Ok(count? > 0),
        }
    }
}

/// Connects to a socket, and gives up sending to it after [`PATIENCE`].
fn connect(path: &Path) -> Result<UnixStream, Errno> {
    let flags = SocketFlags::CLOEXEC;
    let unconnected = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // That holds for connect(2) as well, which waits where too many connections have not been accepted.
    set_socket_timeout(&unconnected, Timeout::Send, Some(PATIENCE))?;
    rustix::net::connect(&unconnected, &SocketAddrUnix::new(path)?)?;
    Ok(unconnected.into())
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The socket's path by way of its directory's descriptor: it fits into a socket address whatever the directory's own
/// path is.
fn socket(state_dir: BorrowedFd<'_>) -> PathBuf {
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
    let listener = UnixListener::bind(socket(state_dir))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The process that listens on the socket in a state directory, as the kernel knows it; `None` if there is none.
pub(crate) fn listener(state_dir: BorrowedFd<'_>) -> Option<i32> {
    peer(&connect(&socket(state_dir)).ok()?)
}

/// The process at the other end.
fn peer(stream: &UnixStream) -> Option<i32> {
    let credentials = getsockopt(stream, PeerCredentials).ok()?;
    Some(credentials.pid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listener_is_the_one_who_listens() {
        let dir = tempfile::tempdir().unwrap();
        let directory = File::open(dir.path()).unwrap();
        let directory = directory.as_fd();
        assert_eq!(listener(directory), None);
        let socket = listen(directory).unwrap();
        assert_eq!(listener(directory), Some(std::process::id().cast_signed()));
        drop(socket);
        assert_eq!(listener(directory), None);
    }

    /// A machine process that accepts connections and does what it is told with each, and a state directory with it.
    fn machine(
        answer: impl Fn(UnixStream) + Send + 'static,
    ) -> (
        tempfile::TempDir,
        impl Fn(Duration) -> Result<ControlReply, Error>,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let socket = listen(File::open(dir.path()).unwrap().as_fd()).unwrap();
        socket.set_nonblocking(false).unwrap();
        std::thread::spawn(move || {
            for stream in socket.incoming() {
                answer(stream.unwrap());
            }
        });
        let path = dir.path().to_owned();
        let address = Address::of_first(&path);
        let ask = move |limit| control_within(&address, &Control::Processes, limit);
        (dir, ask)
    }

    #[test]
    fn no_machine_process_is_waited_for_without_a_limit() {
        let limit = Duration::from_millis(50);
        let unanswered = |result| matches!(result, Err(Error::Unanswered(after)) if after == limit);
        let kept = std::sync::Mutex::new(Vec::new());
        let (_dir, ask) = machine(move |stream| kept.lock().unwrap().push(stream));
        assert!(unanswered(ask(limit)), "it says nothing");
        // A frame of 16 bytes, of which one comes now and then.
        let (_dir, ask) = machine(|mut stream| {
            let _ = stream.write_all(&16_u32.to_le_bytes());
            while stream.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        assert!(unanswered(ask(limit)), "it says little");
        let (_dir, ask) = machine(drop);
        assert!(matches!(ask(limit), Err(Error::NotRunning)));
        let (_dir, ask) = machine(|stream| {
            protocol::write(&mut &stream, &ControlReply::Done).unwrap();
        });
        assert_eq!(ask(PATIENCE).unwrap(), ControlReply::Done);
    }
}
