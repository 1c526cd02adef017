//! A connection to the machine process, seen from a verb; and the socket in the state directory that it is made to.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use protocol::{FIRST, Network};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Serialize;

use super::message::{Control, ControlReply, DESCRIPTORS_MAX, ExecControl, ExecRequest, Request};
use crate::error::{Doing, SystemError};

/// Name of the socket in the state directory.
const SOCKET: &str = "control.sock";

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
    /// The machine process broke the control protocol.
    #[error("invalid reply of the machine process")]
    Protocol(#[source] protocol::Error),
}

impl From<SystemError> for Error {
    fn from(SystemError { doing, source }: SystemError) -> Error {
        Error::System { doing, source }
    }
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

/// Asks the machine process to execute one more process, and passes it the descriptors that `request.streams` speaks
/// of. The answers are for the caller to receive.
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
        result => Ok(result.doing("send the request").map(|()| connection)?),
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
            result => Ok(Connection {
                stream: result.doing("connect to control.sock")?,
            }),
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

/// The socket's path by way of its directory's descriptor: it fits into a socket address whatever the directory's own
/// path is.
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

/// The process that listens on the socket in a state directory, as the kernel knows it; `None` if there is none.
pub(crate) fn listener(state_dir: BorrowedFd<'_>) -> Option<i32> {
    let connection = UnixStream::connect(address(state_dir)).ok()?;
    let credentials = getsockopt(&connection, PeerCredentials).ok()?;
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
}
