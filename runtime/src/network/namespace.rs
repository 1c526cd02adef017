//! Work in another network namespace.

use std::fs::File;
use std::os::fd::AsFd;

use nix::sched::{CloneFlags, setns};

use super::{Doing, Error};

/// Does some work in a network namespace, given by its file or by a process that lives in it, and comes back.
///
/// # Errors
/// Those of the work; others when the namespace cannot be entered or left, of which the latter counts more.
pub(super) fn inside<T>(
    namespace: impl AsFd,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let own = File::open("/proc/thread-self/ns/net").doing(|| "open this network namespace")?;
    let network = CloneFlags::CLONE_NEWNET;
    setns(namespace, network).doing(|| "enter the container's network namespace")?;
    let result = work();
    setns(own, network).doing(|| "return to this host's network namespace")?;
    result
}
