//! What the create verb and the machine process say to each other until the container is committed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::sys;

/// Machine process to verb.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromMachine {
    /// It has taken its SELinux label, and waits for the verb to have that noted.
    Labelled,
    /// It is in its namespaces.
    Entered,
    /// The guest has prepared the container.
    Created,
    /// It could not, and is ending.
    Failed(String),
}

/// Verb to machine process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToMachine {
    /// The label is noted; or what is done in its namespaces, the hooks above all, is done.
    Proceed,
    /// The container is on record; live on without the verb.
    Commit,
}

/// One end of the pair. Both sides trust each other: reads and writes block.
pub(super) struct SyncSocket(UnixStream);

impl SyncSocket {
    pub(super) fn pair() -> io::Result<(SyncSocket, SyncSocket)> {
        UnixStream::pair().map(|(a, b)| (SyncSocket(a), SyncSocket(b)))
    }

    pub(super) fn send<T: Serialize>(&self, message: &T) -> io::Result<()> {
        protocol::write(&mut &self.0, message).map_err(io::Error::other)
    }

    /// The next message, or `None` when the other end is gone.
    pub(super) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<T>> {
        match protocol::read(&mut &self.0) {
            Ok(message) => Ok(message),
            Err(protocol::Error::Truncated) => Ok(None),
            Err(protocol::Error::Read(e)) if e.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(e) => Err(io::Error::other(e)),
        }
    }
}

impl AsFd for SyncSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Tells the verb why there will be no container, and ends.
pub(super) fn give_up(sync: &SyncSocket, reason: String) -> ! {
    // When the verb is gone, nobody is left to be told.
    let _ = sync.send(&FromMachine::Failed(reason));
    sys::exit_now(1)
}
