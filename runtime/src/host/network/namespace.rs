//! Work in another network namespace.

use std::fs::File;
use std::os::fd::AsFd;

use nix::sched::{CloneFlags, setns};

use super::Error;
use super::netlink::Socket;
use crate::error::Doing;

/// Does some work in a network namespace, given by its file or by a process that lives in it, with a socket to its
/// configuration, and comes back.
///
/// # Errors
/// Those of the work; others when the namespace cannot be entered or left, of which the latter counts more.
pub(super) fn inside<T>(
    namespace: impl AsFd,
    work: impl FnOnce(&Socket) -> Result<T, Error>,
) -> Result<T, Error> {
    let own = File::open("/proc/thread-self/ns/net").doing("open this network namespace")?;
    let network = CloneFlags::CLONE_NEWNET;
    setns(namespace, network).doing("enter the container's network namespace")?;
    let socket = Socket::open().doing("create a netlink socket");
    let result = socket.map_err(Error::from);
    let result = result.and_then(|socket| work(&socket));
    setns(own, network).doing("return to this host's network namespace")?;
    result
}
