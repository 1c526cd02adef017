//! Core scheduling (admin-guide/hw-vuln/core-scheduling.rst): while a thread of the machine runs, the other hardware
//! threads of its core run the machine's own or nothing.

use std::io;

use rustix::io::Errno;
use rustix::thread::{CoreSchedulingScope, create_core_scheduling_cookie};

use crate::error::{Doing, SystemError};

/// The annotation that asks for it.
pub(crate) const CORE_SCHEDULING: &str = "dev.chiton.core-scheduling";

/// Gives this process a cookie that no other has; the threads that it makes have the same.
pub(super) fn share_with_nobody() -> Result<(), SystemError> {
    create_core_scheduling_cookie(rustix::process::getpid(), CoreSchedulingScope::ThreadGroup)
        .map_err(explained)
        .doing_with(|| format!("apply annotations[{CORE_SCHEDULING}]"))
}

/// The kernel's reasons in words.
fn explained(errno: Errno) -> io::Error {
    match errno {
        Errno::INVAL => io::Error::other("this host's kernel has no CONFIG_SCHED_CORE"),
        Errno::NODEV => io::Error::other(
            "no core of this host has more than one thread in use, so its kernel has no core scheduling",
        ),
        other => other.into(),
    }
}
