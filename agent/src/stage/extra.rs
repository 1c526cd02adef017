//! The descriptors that a process has beside its standard streams: numbers 3 and following, from the begin of the stage on, so that
//! whatever is opened later gets another number.

use std::os::fd::{OwnedFd, RawFd};

use protocol::Extra;

use super::{Wire, adopt};
use crate::control;
use crate::error::{During, Error, Result};
use crate::sys;

/// The first number.
const FIRST: RawFd = 3;

/// Puts each of `extra` in its place. `pipes` are the numbers of the pipes among them; the sockets are connected here.
pub(super) fn place(extra: &[Extra], pipes: &[String], wire: &mut Wire) -> Result<()> {
    if extra.is_empty() {
        return Ok(());
    }
    let what = || "place a descriptor";
    let behind = FIRST + RawFd::try_from(extra.len()).unwrap_or(RawFd::MAX - FIRST);
    let lift = |fd: &OwnedFd| sys::duplicate_above(fd, behind).during(what);
    wire.0 = lift(&wire.0)?;
    let mut pipes = pipes.iter();
    let mut next_pipe = || {
        let number = pipes.next();
        number.ok_or_else(|| Error::Config("stage: a pipe is missing".into()))
    };
    let mut lifted = Vec::new();
    for extra in extra {
        let fd = match *extra {
            Extra::In(_) | Extra::Out(_) => adopt(Some(next_pipe()?))?,
            Extra::Both(ports) => control::connect_now(ports)?,
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
