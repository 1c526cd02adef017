//! `start`.

use std::path::Path;

use super::{done, open};
use crate::error::Error;
use crate::machine::{Control, control};
use crate::state::{StateDir, Verb};

/// Executes the program of a created container.
pub(crate) fn start(root: &Path, id: &str) -> Result<(), Error> {
    let dir = open(root, id)?;
    let _lock = dir.lock()?;
    let record = dir.record()?;
    dir.status(record.as_ref())?.allows(Verb::Start, dir.id())?;
    start_created(&dir)
}

/// Executes the program of a container whose status and lock the caller has seen to.
pub(super) fn start_created(dir: &StateDir) -> Result<(), Error> {
    done(control(dir.path(), &Control::Start)?)
}
