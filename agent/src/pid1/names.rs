//! The name server's place in the guest: its address in the container's network namespace, and the
//! process that serves there ([`names`](crate::stage)).

use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use protocol::NAMES_ADDRESS;

use super::spawn::{Inheritance, spawn_stage};
use crate::error::{During, Result};
use crate::task::Task;

/// Takes the address in this network namespace.
pub(crate) fn bind() -> Result<[OwnedFd; 2]> {
    let what = || format!("be the name server at {NAMES_ADDRESS}");
    let datagrams = UdpSocket::bind(NAMES_ADDRESS).during(what)?;
    let connections = TcpListener::bind(NAMES_ADDRESS).during(what)?;
    Ok([datagrams.into(), connections.into()])
}

/// Starts the process that serves there.
pub(crate) fn start(sockets: &[OwnedFd; 2]) -> Result<()> {
    let inheritance = Inheritance {
        others: sockets,
        ..Inheritance::silent(None)
    };
    // It has nothing to say.
    spawn_stage(&Task::Names, inheritance).map(drop)
}
