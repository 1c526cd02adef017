//! `update`.

use std::path::Path;

use crate::cli;
use crate::error::Error;

/// Changes the limits of a container.
pub(crate) fn update(
    _root: &Path,
    _args: &cli::Update,
    _report: &crate::report::Report,
) -> Result<(), Error> {
    Err(Error::Unsupported("update"))
}
