//! `pause` and `resume`.

use std::path::Path;

use super::ask::{done, open};
use super::error::Error;
use crate::control::{Control, control};
use crate::state::Verb;

/// Suspends a container.
pub(crate) fn pause(root: &Path, id: &str) -> Result<(), Error> {
    ask(root, id, Verb::Pause, &Control::Pause)
}

/// Resumes a container.
pub(crate) fn resume(root: &Path, id: &str) -> Result<(), Error> {
    ask(root, id, Verb::Resume, &Control::Resume)
}

fn ask(root: &Path, id: &str, verb: Verb, request: &Control) -> Result<(), Error> {
    let dir = open(root, id)?;
    let record = dir.record()?;
    dir.status(record.as_ref())?.allows(verb, dir.id())?;
    done(control(&dir.address(record.as_ref()), request)?)
}
