//! The verbs, one file each.

mod create;
mod delete;
mod kill;
mod list;
mod run;
mod spec;
mod start;
mod state;

use std::path::Path;

pub(crate) use create::{Context, create};
pub(crate) use delete::delete;
pub(crate) use kill::kill;
pub(crate) use list::list;
pub(crate) use run::run;
pub(crate) use spec::spec;
pub(crate) use start::start;
pub(crate) use state::state;

use crate::error::Error;
use crate::state::StateDir;

/// Opens an existing container.
fn open(root: &Path, id: &str) -> Result<StateDir, Error> {
    StateDir::open(root, &id.parse()?)
}
