//! `pause` and `resume`.

use std::path::Path;

use crate::error::Error;

/// Suspends a container.
pub(crate) fn pause(_root: &Path, _id: &str) -> Result<(), Error> {
    Err(Error::Unsupported("pause"))
}

/// Resumes a container.
pub(crate) fn resume(_root: &Path, _id: &str) -> Result<(), Error> {
    Err(Error::Unsupported("resume"))
}
