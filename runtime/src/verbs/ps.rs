//! `ps`.

use std::path::Path;

use crate::cli;
use crate::error::Error;

/// The processes of a container, as text.
pub(crate) fn ps(_root: &Path, _args: &cli::Ps) -> Result<String, Error> {
    Err(Error::Unsupported("ps"))
}
