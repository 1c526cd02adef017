//! The host's side of sd_notify(3): what a container says of its readiness is passed on to whoever waits for it at
//! NOTIFY_SOCKET.
//!
//! As with runc: READY=1, then MAINPID=, then a barrier, so that the manager has seen both before this process ends.

use std::env;
use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::control::{self, Address, Connection, Control, ControlReply};
use crate::error::{Doing, SystemError};

/// Why nobody was told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Control(#[from] control::Error),
    #[error(transparent)]
    System(#[from] SystemError),
}

/// Where the container finds its socket, as with runc.
const IN_CONTAINER: &str = "NOTIFY_SOCKET=/run/notify/notify.sock";

/// How long the manager may take to see what it is told; runc's.
const BARRIER: Duration = Duration::from_secs(30);

/// Whoever waits for a container's readiness, by the address of its socket.
#[derive(Debug)]
pub(crate) struct NotifySocket(OsString);

impl NotifySocket {
    /// The one that NOTIFY_SOCKET names, if it does.
    pub(crate) fn of_environment() -> Option<NotifySocket> {
        let name = env::var_os("NOTIFY_SOCKET")?;
        (!name.is_empty()).then_some(NotifySocket(name))
    }

    /// What the container's process is told.
    pub(crate) fn environment() -> String {
        IN_CONTAINER.to_owned()
    }

    /// Waits until the container is ready and says so, with `pid` as the process to be watched. Returns without a word
    /// when the container ends before.
    pub(crate) fn attend(&self, address: &Address, pid: i32) -> Result<(), Error> {
        let connection = match Connection::open(address) {
            Err(control::Error::NotRunning) => return Ok(()),
            connection => connection?,
        };
        match connection
            .ask(&Control::Ready)
            .and_then(|()| connection.receive())
        {
            Ok(Some(ControlReply::Done)) => Ok(self
                .tell(pid)
                .doing("tell NOTIFY_SOCKET of the readiness")?),
            Ok(_) | Err(control::Error::NotRunning) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn tell(&self, pid: i32) -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        // systemd.exec(5): a name that starts with @ is one of the abstract name space.
        let address = match self.0.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&self.0)?,
        };
        socket.connect_addr(&address)?;
        socket.send(b"READY=1\n")?;
        socket.send(format!("MAINPID={pid}\n").as_bytes())?;
        barrier(&socket)
    }
}

/// Waits until all that was sent before has been seen: the receiver closes the descriptor then (sd_notify_barrier(3)).
fn barrier(socket: &UnixDatagram) -> io::Result<()> {
    let (reader, writer) = io::pipe()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let passed = [writer.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&passed));
    let text = [IoSlice::new(b"BARRIER=1")];
    sendmsg(socket, &text, &mut ancillary, SendFlags::NOSIGNAL)?;
    drop(writer);
    let timeout = PollTimeout::try_from(BARRIER).unwrap_or(PollTimeout::MAX);
    let mut polled = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    // One that does not know barriers closes nothing: it has had its time.
    while poll(&mut polled, timeout) == Err(Errno::EINTR) {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use std::os::fd::{AsRawFd, RawFd};

    use super::*;

    #[test]
    fn a_manager_is_told_in_the_order_of_runc() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("chiton-unit-notify-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        for (socket, address) in [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (
                UnixDatagram::bind_addr(&abstract_address).unwrap(),
                format!("@{name}").into(),
            ),
        ] {
            let telling = thread::spawn(move || NotifySocket(address).tell(42).unwrap());
            let mut text = [0; 64];
            for expected in ["READY=1\n", "MAINPID=42\n"] {
                let length = socket.recv(&mut text).unwrap();
                assert_eq!(&text[..length], expected.as_bytes());
            }
            let mut space = nix::cmsg_space!([RawFd; 1]);
            let mut slices = [std::io::IoSliceMut::new(&mut text)];
            let flags = MsgFlags::empty();
            let message =
                recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags).unwrap();
            let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() else {
                panic!("no descriptor came");
            };
            assert!(!telling.is_finished());
            drop(crate::sys::received(fds[0]));
            telling.join().unwrap();
        }
    }
}
