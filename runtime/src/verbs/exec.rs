//! `exec`.

use super::Context;
use crate::cli;
use crate::error::Error;

/// Executes another process in a container; the exit code for the caller.
pub(crate) fn exec(_context: &Context<'_>, _args: &cli::Exec) -> Result<u8, Error> {
    Err(Error::Unsupported("exec"))
}
