//! One connection of somebody on the host to localhost in the container's network namespace. The host
//! has its own side of it, and a stream to here; this process connects to where the container's
//! programs listen, and passes on in both directions what comes.
//!
//! ```text
//!   on the host ── TCP ── the machine process ── vsock: `host` ── this process ── TCP: `guest` ── a program
//! ```
//! What ends in order is shut down. Anything else is a reset: of `host` by the end of this process,
//! which closes it in both directions at once, and of `guest` explicitly.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{MsgFlags, Shutdown as Half, send, setsockopt, shutdown, sockopt};

use crate::error::{During, Result};
use crate::sys;
use crate::vsock::{STREAM_PATIENCE, connected};

/// Bytes that are passed on at once.
const PIECE: usize = 64 << 10;

/// Passes on all that comes on `host`, a connection that is on its way, and on one to `address` in a
/// network namespace.
pub(super) fn relay(address: SocketAddr, host: OwnedFd, namespace: OwnedFd) -> Result<()> {
    await_connection(&host)?;
    setns(namespace, CloneFlags::CLONE_NEWNET).during(|| "join a network namespace")?;
    // What comes to nothing is told by the end of the stream, and no fault of anybody's here.
    if let Ok(guest) = dial(address) {
        let _ = pass_on(&File::from(host), &guest);
    }
    Ok(())
}

fn await_connection(host: &OwnedFd) -> Result<()> {
    let what = || "wait for the host";
    let mut polled = [PollFd::new(host.as_fd(), PollFlags::POLLOUT)];
    poll(&mut polled, PollTimeout::NONE).during(what)?;
    connected(host)?;
    fcntl(host, FcntlArg::F_SETFL(OFlag::empty())).during(what)?;
    Ok(())
}

/// Who connects to localhost tries one address and then the other, if there is nobody. On the host
/// there always is.
fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let other = match address {
        SocketAddr::V4(_) => Ipv6Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv4Addr::LOCALHOST.into(),
    };
    let other = SocketAddr::new(other, address.port());
    let connect = |address| TcpStream::connect_timeout(&address, STREAM_PATIENCE);
    let guest = match connect(address) {
        Err(refused) if refused.kind() == ErrorKind::ConnectionRefused => {
            connect(other).map_err(|_| refused)?
        }
        result => result?,
    };
    guest.set_nodelay(true)?;
    Ok(guest)
}

/// Returns when both directions have ended in order; an error of either is the end of this process.
fn pass_on(host: &File, guest: &TcpStream) -> io::Result<()> {
    let (from, to) = (host.try_clone()?, guest.try_clone()?);
    let all_sent = Arc::new(AtomicBool::new(false));
    let its = Arc::clone(&all_sent);
    let there = move || {
        if to_the_guest(&from, &to, &its).is_err() {
            reset(&to);
            sys::exit(1);
        }
    };
    let there = thread::Builder::new().spawn(there)?;
    to_the_host(guest, host, &all_sent).inspect_err(|_| reset(guest))?;
    there
        .join()
        .map_err(|_| io::Error::other("it has panicked"))
}

fn to_the_guest(host: &File, guest: &TcpStream, all_sent: &AtomicBool) -> io::Result<()> {
    copy(host, guest)?;
    // A stream that the host has reset seems to have ended, but takes nothing any more. One that was
    // shut down here does not either: then nobody can tell.
    let takes = send(host.as_raw_fd(), &[], MsgFlags::MSG_NOSIGNAL);
    if !all_sent.load(Ordering::SeqCst) {
        takes?;
    }
    guest.shutdown(Shutdown::Write)
}

fn to_the_host(guest: &TcpStream, host: &File, all_sent: &AtomicBool) -> io::Result<()> {
    copy(guest, host)?;
    all_sent.store(true, Ordering::SeqCst);
    Ok(shutdown(host.as_raw_fd(), Half::Write)?)
}

fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&piece[..count])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Has the connection reset when it is closed, which the end of this process does.
fn reset(guest: &TcpStream) {
    let at_once = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // Otherwise it is closed as if all were well, no worse.
    let _ = setsockopt(guest, sockopt::Linger, &at_once);
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A listener at an address, and the same port at the other one.
    fn listener(address: &str, other: &str) -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, SocketAddr::new(other.parse().unwrap(), port))
    }

    #[test]
    fn localhost_is_found_at_either_address() {
        for (address, other) in [("127.0.0.1", "::1"), ("::1", "127.0.0.1")] {
            let (listener, other) = listener(address, other);
            let connection = dial(other).unwrap();
            assert_eq!(
                connection.peer_addr().unwrap(),
                listener.local_addr().unwrap()
            );
            drop(listener);
            let error = dial(other).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
    }

    #[test]
    fn each_direction_ends_by_itself() {
        let (listener, address) = listener("127.0.0.1", "127.0.0.1");
        let (mut client, host) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let mut question = Vec::new();
            connection.read_to_end(&mut question).unwrap();
            connection.write_all(&question.repeat(2)).unwrap();
        });
        let guest = dial(address).unwrap();
        let relay = thread::spawn(move || pass_on(&File::from(OwnedFd::from(host)), &guest));
        let question = vec![7; 3 * PIECE];
        client.write_all(&question).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert!(answer == question.repeat(2));
        relay.join().unwrap().unwrap();
        server.join().unwrap();
    }

    #[test]
    fn a_reset_is_an_error() {
        let (listener, address) = listener("127.0.0.1", "127.0.0.1");
        let (mut client, host) = UnixStream::pair().unwrap();
        let guest = dial(address).unwrap();
        let (connection, _) = listener.accept().unwrap();
        reset(&connection);
        drop(connection);
        client.write_all(b"x").unwrap();
        assert!(
            to_the_host(
                &guest,
                &File::from(OwnedFd::from(host)),
                &AtomicBool::new(false)
            )
            .is_err()
        );
    }
}
