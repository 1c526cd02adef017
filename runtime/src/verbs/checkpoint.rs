//! `checkpoint` and `restore`.

use std::path::Path;

use crate::cli;
use crate::error::Error;

/// Refuses.
pub(crate) fn checkpoint(_root: &Path, _args: &cli::Checkpoint) -> Result<(), Error> {
    Err(Error::Unsupported("checkpoint"))
}

/// Refuses.
pub(crate) fn restore(_root: &Path, _args: &cli::Restore) -> Result<(), Error> {
    Err(Error::Unsupported("restore"))
}
