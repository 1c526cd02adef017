//! The socket that the container tells of its readiness on, as sd_notify(3) says.
//!
//! What comes is read and, but for the one thing that the host wants to know, dropped, so that
//! nobody in the container waits for a reader. Descriptors that come along (BARRIER=1) are closed
//! by the kernel, which is what their sender waits for.

use std::fs::{self, Permissions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use crate::error::{During, Result};
use crate::paths::{self, NOTIFY_SOCKET};

/// Longest datagram that is looked at, in bytes, as with runc.
const DATAGRAM_MAX: usize = 4096;

/// Datagrams that are read in one turn; then others have theirs.
const TURN: usize = 16;

/// What the host wants to know.
const READY: &[u8] = b"READY=1";

/// The socket.
pub(crate) struct Notify {
    socket: OwnedFd,
    ready: bool,
}

impl Notify {
    /// Makes it, in a directory of its own that the container gets to see.
    pub(crate) fn create(place: &Path) -> Result<Notify> {
        let what = || "create the socket for notifications";
        let directory = paths::notify(place);
        fs::create_dir(&directory).during(what)?;
        let path = directory.join(NOTIFY_SOCKET);
        let socket = UnixDatagram::bind(&path).during(what)?;
        socket.set_nonblocking(true).during(what)?;
        // Any user of the container may speak.
        fs::set_permissions(&path, Permissions::from_mode(0o777)).during(what)?;
        Ok(Notify {
            socket: socket.into(),
            ready: false,
        })
    }

    /// The descriptor that must be watched.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads what has come. True once: when the container has said that it is ready.
    pub(crate) fn read(&mut self) -> bool {
        let before = self.ready;
        let mut datagram = [0; DATAGRAM_MAX];
        for _ in 0..TURN {
            match recv(
                self.socket.as_raw_fd(),
                &mut datagram,
                MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(length) => self.ready |= says_ready(&datagram[..length]),
                Err(Errno::EINTR) => {}
                // Nothing more has come. A datagram socket of its own fails in no other way.
                Err(_) => break,
            }
        }
        self.ready && !before
    }
}

fn says_ready(datagram: &[u8]) -> bool {
    datagram.split(|byte| *byte == b'\n').any(|l| l == READY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_is_a_line_of_its_own() {
        for text in ["READY=1", "READY=1\n", "STATUS=up\nREADY=1\nX=2"] {
            assert!(says_ready(text.as_bytes()), "{text}");
        }
        for text in ["", "READY=0", "READY=10", "STATUS=READY=1", "NOTREADY=1"] {
            assert!(!says_ready(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn everything_is_read_and_readiness_is_told_once() {
        let (theirs, ours) = UnixDatagram::pair().unwrap();
        let mut notify = Notify {
            socket: ours.into(),
            ready: false,
        };
        theirs.set_nonblocking(true).unwrap();
        assert!(!notify.read());
        theirs.send(b"STATUS=1").unwrap();
        assert!(!notify.read());
        theirs.send(b"READY=1").unwrap();
        assert!(notify.read());
        for _ in 0..100 {
            while theirs.send(b"READY=1").is_ok() {}
            assert!(!notify.read());
        }
    }
}
