//! `update`.

use std::path::Path;

use crate::cli;
use crate::error::Error;

/// Changes the limits of a container.
pub(crate) fn update(_root: &Path, _args: &cli::Update) -> Result<(), Error> {
    Err(Error::Unsupported("update"))
}
