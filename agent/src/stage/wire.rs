//! The stream from a stage, and from the process that it makes, to PID 1.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::error::{self, During, Error, Result};
use crate::task::Report;

/// The stream.
pub(super) struct Wire(pub(super) OwnedFd);

impl Wire {
    /// Sends a report, with a descriptor if there is one.
    pub(super) fn send(&self, report: &Report, descriptor: Option<&OwnedFd>) -> Result<()> {
        let frame = protocol::encode(report).map_err(|e| Error::Stream("agent", e))?;
        let raw: Vec<RawFd> = descriptor.iter().map(|fd| fd.as_raw_fd()).collect();
        let control = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() {
            &[][..]
        } else {
            &control[..]
        };
        let mut rest = &frame[..];
        while !rest.is_empty() {
            let control = if rest.len() == frame.len() {
                control
            } else {
                &[]
            };
            let slices = [IoSlice::new(rest)];
            let flags = MsgFlags::MSG_NOSIGNAL;
            let sent = sendmsg::<()>(self.0.as_raw_fd(), &slices, control, flags, None)
                .during(|| "report to the agent")?;
            rest = &rest[sent..];
        }
        Ok(())
    }

    /// Waits for the agent's word. An error when it is gone instead.
    pub(super) fn wait(&self) -> Result<()> {
        wait_for_byte(&self.0, "the agent")
    }

    /// Tells the agent and the kernel log.
    pub(super) fn fail(&self, error: &Error) {
        let failure = error.failure();
        error::log(&failure.to_string());
        if let Err(error) = self.send(&Report::Failed(failure), None) {
            error::log(&error.failure().to_string());
        }
    }
}

pub(super) fn wait_for_byte(fd: &OwnedFd, who: &'static str) -> Result<()> {
    match nix::unistd::read(fd, &mut [0]).during(|| format!("wait for {who}"))? {
        0 => Err(Error::Closed(who)),
        _ => Ok(()),
    }
}
