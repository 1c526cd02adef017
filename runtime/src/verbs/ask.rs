//! What most verbs begin and end with: a container by its id, and a question to its machine process.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::Error;
use crate::control::{Connection, Control, ControlReply};
use crate::error::Doing;
use crate::state::StateDir;

/// How long the guest may take with an answer that something on the host waits for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Opens an existing container.
pub(super) fn open(root: &Path, id: &str) -> Result<StateDir, Error> {
    Ok(StateDir::open(root, &id.parse()?)?)
}

/// The error of a request that can only be done or not.
pub(super) fn done(reply: ControlReply) -> Result<(), Error> {
    match reply {
        ControlReply::Done => Ok(()),
        ControlReply::NotRunning => Err(Error::NotRunning),
        ControlReply::Paused => Err(Error::Paused),
        ControlReply::Failed(text) => Err(Error::Reply(text)),
        _ => Err(invalid_reply()),
    }
}

/// A reply that does not belong to the request.
pub(super) fn invalid_reply() -> Error {
    Error::Reply("invalid reply of the machine process".to_owned())
}

/// Asks the machine process, and waits no longer for the guest than it may take.
pub(super) fn ask(state_dir: &Path, request: &Control) -> Result<ControlReply, Error> {
    let connection = Connection::open(state_dir)?;
    connection.ask(request)?;
    let end = Instant::now() + PATIENCE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, timeout) {
            Err(Errno::EINTR) => {}
            Ok(0) => return Err(Error::Unanswered(PATIENCE)),
            result => {
                result.doing("wait for the guest")?;
                let reply = connection.receive()?;
                return reply.ok_or(Error::NotRunning);
            }
        }
    }
}
