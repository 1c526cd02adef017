//! The name server that an engine has put into the container's network namespace on the host, at
//! the same address in the guest: a process that passes on to the host what comes to it there.
//!
//! It knows nothing of names. Each datagram gets a connection to the host of its own, on which one
//! comes back; each connection gets one. What nobody answers is given up after a while, and what is
//! too much is dropped: whoever has asked asks again.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use protocol::{NAMES_DATAGRAM_PORT, NAMES_MAX, NAMES_STREAM_PORT};

use crate::error::{self, During, Result};
use crate::vsock::connect_from_anywhere;

/// How long an answer may take, in s: longer than those who ask wait (`timeout` of resolv.conf(5) is 5 s).
const PATIENCE: i64 = 20;

/// Longest datagram.
const DATAGRAM_MAX: usize = 4096;

/// Bytes of each thread's stack.
const STACK: usize = 64 << 10;

/// Serves for as long as there is a guest.
pub(super) fn serve([datagrams, connections]: [OwnedFd; 2]) -> Result<()> {
    let connections = TcpListener::from(connections);
    background(move || accept(&connections));
    let datagrams = Arc::new(UdpSocket::from(datagrams));
    let busy = Arc::new(());
    loop {
        let mut query = [0; DATAGRAM_MAX];
        let (length, from) = datagrams
            .recv_from(&mut query)
            .during(|| "wait for a datagram")?;
        let Some(token) = another(&busy) else {
            continue;
        };
        let datagrams = Arc::clone(&datagrams);
        background(move || {
            // Without an answer the question is asked again.
            let _ = answer(&datagrams, &query[..length], from);
            drop(token);
        });
    }
}

fn accept(connections: &TcpListener) {
    let busy = Arc::new(());
    for connection in connections.incoming() {
        let connection = match connection {
            Ok(connection) => connection,
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
            Err(error) => return error::log(&format!("name server: {error}")),
        };
        if let Some(token) = another(&busy) {
            background(move || {
                // Either end has gone.
                let _ = relay(&connection);
                drop(token);
            });
        }
    }
}

/// One more of those that hold `busy`, if there may be one.
fn another(busy: &Arc<()>) -> Option<Arc<()>> {
    (Arc::strong_count(busy) <= NAMES_MAX).then(|| Arc::clone(busy))
}

/// Runs something in a thread; not at all if memory for one has run out.
fn background(work: impl FnOnce() + Send + 'static) {
    drop(thread::Builder::new().stack_size(STACK).spawn(work));
}

fn answer(datagrams: &UdpSocket, query: &[u8], from: SocketAddr) -> Result<()> {
    let what = || "pass a datagram on";
    let mut host = File::from(connect_from_anywhere(NAMES_DATAGRAM_PORT)?);
    setsockopt(&host, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE)).during(what)?;
    host.write_all(query).during(what)?;
    let mut reply = [0; DATAGRAM_MAX];
    let length = host.read(&mut reply).during(what)?;
    datagrams.send_to(&reply[..length], from).during(what)?;
    Ok(())
}

/// Passes bytes on in both directions until the host has no more.
fn relay(connection: &TcpStream) -> Result<()> {
    let what = || "pass a connection on";
    let host = File::from(connect_from_anywhere(NAMES_STREAM_PORT)?);
    let (mut from, mut to) = (
        connection.try_clone().during(what)?,
        host.try_clone().during(what)?,
    );
    background(move || {
        // Its end is the host's to hear of, who then ends as well.
        let _ = std::io::copy(&mut from, &mut to);
        let _ = nix::sys::socket::shutdown(to.as_raw_fd(), nix::sys::socket::Shutdown::Write);
    });
    let copied = std::io::copy(&mut &host, &mut &*connection);
    connection.shutdown(Shutdown::Both).during(what)?;
    copied.during(what).map(drop)
}
