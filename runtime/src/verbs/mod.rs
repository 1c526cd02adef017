//! The verbs, one file each.

mod ask;
mod attempt;
mod audit;
mod check;
mod checkpoint;
mod context;
mod create;
mod delete;
mod error;
mod events;
mod exec;
mod explain;
mod facts;
mod features;
#[cfg(fuzzing)]
#[path = "../../../tests/fuzz/runtime/verbs.rs"]
pub mod fuzz;
mod join;
mod kill;
mod list;
mod pause;
mod pod;
mod ps;
mod run;
mod spec;
mod start;
mod state;
mod streams;
mod update;

pub(crate) use audit::audit;
pub(crate) use check::check;
pub(crate) use checkpoint::{checkpoint, restore};
pub(crate) use context::Context;
pub(crate) use create::create;
pub(crate) use delete::delete;
pub(crate) use error::Error;
pub(crate) use events::events;
pub(crate) use exec::exec;
pub(crate) use explain::explain;
pub(crate) use features::features;
pub(crate) use kill::kill;
pub(crate) use list::list;
pub(crate) use pause::{pause, resume};
pub(crate) use ps::ps;
pub(crate) use run::run;
pub(crate) use spec::spec;
pub(crate) use start::start;
pub(crate) use state::state;
pub(crate) use update::update;
