//! The descriptors that a stage inherits, and those that the container's process has in addition to
//! its standard streams: numbers 3 and following, from the beginning of the stage on, so that
//! whatever is opened later gets another number.

use std::os::fd::{OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use protocol::Extra;

use super::wire::Wire;
use crate::error::{During, Error, Result};
use crate::sys;
use crate::vsock;

/// The first number.
const FIRST: RawFd = 3;

/// Takes over a descriptor that PID 1 has passed by its number, which must be done once for each.
pub(super) fn adopt(number: Option<&String>) -> Result<OwnedFd> {
    let number: Option<RawFd> = number.and_then(|number| number.parse().ok());
    let number = number.filter(|number| *number > 2);
    let number = number.ok_or_else(|| Error::Config("stage: bad descriptor number".into()))?;
    let fd = sys::adopt(number).during(|| "adopt a descriptor")?;
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).during(|| "set close-on-exec")?;
    Ok(fd)
}

/// Puts each of `extra` in its place. `pipes` are the numbers of the pipes among them; the sockets are connected here.
pub(super) fn place<'a>(
    extra: &[Extra],
    mut pipes: impl Iterator<Item = &'a String>,
    wire: &mut Wire,
) -> Result<()> {
    if extra.is_empty() {
        return Ok(());
    }
    let what = || "place a descriptor";
    let behind = FIRST + RawFd::try_from(extra.len()).unwrap_or(RawFd::MAX - FIRST);
    let lift = |fd: &OwnedFd| sys::duplicate_above(fd, behind).during(what);
    wire.0 = lift(&wire.0)?;
    let mut next_pipe = || {
        let number = pipes.next();
        number.ok_or_else(|| Error::Config("stage: a pipe is missing".into()))
    };
    let mut lifted = Vec::new();
    for extra in extra {
        let fd = match *extra {
            Extra::In(_) | Extra::Out(_) => adopt(Some(next_pipe()?))?,
            Extra::Both(ports) => vsock::connect_now(ports)?,
        };
        // The original stays where it is until all have been taken from where others belong.
        lifted.push((lift(&fd)?, fd));
    }
    let lifted: Vec<OwnedFd> = lifted.into_iter().map(|(lifted, _)| lifted).collect();
    for (number, fd) in (FIRST..).zip(&lifted) {
        sys::place(fd, number).during(what)?;
    }
    Ok(())
}

/// Lets the program have them.
pub(super) fn pass_on(count: usize) -> Result<()> {
    for number in (FIRST..).take(count) {
        sys::keep_on_exec(number).during(|| "pass a descriptor on")?;
    }
    Ok(())
}
