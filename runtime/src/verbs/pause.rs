//! `pause` and `resume`.

use std::path::Path;

use super::ask::{done, open};
use super::error::Error;
use crate::control::{self, Control, control};
use crate::state::Verb;

/// Suspends a container.
pub(crate) fn pause(root: &Path, id: &str) -> Result<(), Error> {
    ask(root, id, Verb::Pause, &Control::Pause).inspect_err(|e| {
        // A process that waits for the host, for instance for a file system that stands still, cannot be frozen. The
        // others are: they go on, and nothing happens later on that the caller no longer waits for.
        if matches!(e, Error::Control(control::Error::Unanswered(_)))
            && let Ok(dir) = open(root, id)
        {
            let _ = control(dir.path(), &Control::Resume);
        }
    })
}

/// Resumes a container.
pub(crate) fn resume(root: &Path, id: &str) -> Result<(), Error> {
    ask(root, id, Verb::Resume, &Control::Resume)
}

fn ask(root: &Path, id: &str, verb: Verb, request: &Control) -> Result<(), Error> {
    let dir = open(root, id)?;
    let record = dir.record()?;
    dir.status(record.as_ref())?.allows(verb, dir.id())?;
    done(control(dir.path(), request)?)
}
