//! control.sock: how the later verbs speak to the machine process. One connection carries one request and its reply, as frames of
//! the protocol crate.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use protocol::Decoder;
use serde::{Deserialize, Serialize};

use super::{Doing, Error};

/// Name of the socket in the state directory.
const SOCKET: &str = "control.sock";

/// Largest request in bytes.
const REQUEST_MAX: usize = 4 << 10;

/// A request to the machine process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Control {
    /// Execute the container's program.
    Start,
    /// Send a signal to the container's init process, or to all of its processes.
    Kill {
        /// The signal's number.
        signal: i32,
        /// Whether every process gets it.
        all: bool,
    },
}

/// The machine process's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ControlReply {
    /// It is done.
    Done,
    /// The container has no process any more.
    NotRunning,
    /// It could not be done, and why.
    Failed(String),
}

/// Asks the machine process of the container whose state directory is given, and waits for its answer.
///
/// # Errors
/// [`Error::NotRunning`] when no machine listens or it ends before it answers.
pub(crate) fn control(state_dir: &Path, request: &Control) -> Result<ControlReply, Error> {
    let directory = File::open(state_dir).doing("open the state directory")?;
    let mut connection = match UnixStream::connect(address(directory.as_fd())) {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Err(Error::NotRunning);
        }
        result => result.doing("connect to control.sock")?,
    };
    match protocol::write(&mut connection, request) {
        Err(protocol::Error::Write(e)) if is_gone(&e) => return Err(Error::NotRunning),
        result => result.map_err(Error::Protocol)?,
    }
    match protocol::read(&mut connection) {
        Ok(Some(reply)) => Ok(reply),
        Ok(None) | Err(protocol::Error::Truncated) => Err(Error::NotRunning),
        Err(protocol::Error::Read(e)) if is_gone(&e) => Err(Error::NotRunning),
        Err(e) => Err(Error::Protocol(e)),
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
pub(super) fn listen(state_dir: BorrowedFd<'_>) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(address(state_dir))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// One client, seen from the machine process.
pub(super) struct Client {
    stream: UnixStream,
    decoder: Decoder,
}

impl Client {
    /// Takes an accepted connection.
    pub(super) fn new(stream: UnixStream) -> io::Result<Client> {
        stream.set_nonblocking(true)?;
        Ok(Client {
            stream,
            decoder: Decoder::with_cap(REQUEST_MAX),
        })
    }

    /// Reads once; the request, when it is whole.
    pub(super) fn request(&mut self) -> io::Result<Option<Control>> {
        let mut bytes = [0; REQUEST_MAX];
        match self.stream.read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => self.decoder.push(&bytes[..count]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        self.decoder.take().map_err(io::Error::other)
    }

    /// Answers and hangs up. A client that has gone or takes nothing loses its answer.
    pub(super) fn reply(mut self, reply: &ControlReply) {
        let _ = protocol::write(&mut self.stream, reply);
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
