//! How a stage makes the container's process.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::wire::{Wire, wait_for_byte};
use crate::error::{During, Error, Result};
use crate::sys;
use crate::task::Report;

/// A process that waits for the stage.
pub(super) struct Born {
    pub(super) pid: i32,
    go: OwnedFd,
}

impl Born {
    pub(super) fn go(self) -> Result<()> {
        nix::unistd::write(&self.go, &[0])
            .during(|| "release the process")
            .map(drop)
    }
}

/// Clones the process into its cgroup and tells the agent of it. The process runs `run`, which
/// returns only to fail, when the stage lets it go.
pub(super) fn clone(
    namespaces: i32,
    cgroup: BorrowedFd<'_>,
    wire: &Wire,
    run: impl FnOnce() -> Error,
) -> Result<Born> {
    let (reader, go) = pipe2(OFlag::O_CLOEXEC).during(|| "create a pipe")?;
    let pid =
        sys::clone_sibling(namespaces, Some(cgroup)).during(|| "clone the container's process")?;
    if pid == 0 {
        drop(go);
        // A stage that fails has said so itself.
        if wait_for_byte(&reader, "the stage").is_err() {
            sys::exit(1);
        }
        drop(reader);
        wire.fail(&run());
        sys::exit(1);
    }
    wire.send(&Report::Child(pid), None)?;
    Ok(Born { pid, go })
}
