//! `events`.

use std::path::Path;

use crate::cli;
use crate::error::Error;

/// Prints statistics and out-of-memory events.
pub(crate) fn events(_root: &Path, _args: &cli::Events) -> Result<(), Error> {
    Err(Error::Unsupported("events"))
}
