//! What most verbs begin and end with: a container by its id, and the answer of its machine process.

use std::path::Path;

use super::error::Error;
use crate::control::ControlReply;
use crate::state::StateDir;

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
