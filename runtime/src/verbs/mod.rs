//! The verbs, one file each.

mod checkpoint;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod kill;
mod list;
mod pause;
mod ps;
mod run;
mod spec;
mod start;
mod state;
mod update;

use std::path::Path;

pub(crate) use checkpoint::{checkpoint, restore};
pub(crate) use create::{Context, create};
pub(crate) use delete::delete;
pub(crate) use events::events;
pub(crate) use exec::exec;
pub(crate) use features::features;
pub(crate) use kill::kill;
pub(crate) use list::list;
pub(crate) use pause::{pause, resume};
pub(crate) use ps::{PsError, ps};
pub(crate) use run::run;
pub(crate) use spec::spec;
pub(crate) use start::start;
pub(crate) use state::state;
pub(crate) use update::update;

use crate::error::Error;
use crate::machine::ControlReply;
use crate::state::StateDir;

/// Opens an existing container.
fn open(root: &Path, id: &str) -> Result<StateDir, Error> {
    StateDir::open(root, &id.parse()?)
}

/// The error of a request that can only be done or not.
fn done(reply: ControlReply) -> Result<(), Error> {
    match reply {
        ControlReply::Done => Ok(()),
        ControlReply::NotRunning => Err(Error::NotRunning),
        ControlReply::Paused => Err(Error::Paused),
        ControlReply::Failed(text) => Err(Error::Reply(text)),
        _ => Err(Error::Reply(
            "invalid reply of the machine process".to_owned(),
        )),
    }
}
