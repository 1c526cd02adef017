//! `checkpoint` and `restore`: refused, by one error for all their flags.

use std::path::Path;

use super::ask::open;
use super::error::Error;
use crate::cli;
use crate::state::ContainerId;

/// Refuses.
pub(crate) fn checkpoint(root: &Path, args: &cli::Checkpoint) -> Result<(), Error> {
    open(root, &args.criu.id)?;
    Err(Error::Unsupported("checkpoint"))
}

/// Refuses.
pub(crate) fn restore(args: &cli::Restore) -> Result<(), Error> {
    args.criu.id.parse::<ContainerId>()?;
    Err(Error::Unsupported("restore"))
}
