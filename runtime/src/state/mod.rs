//! What is known of a container on this host: one directory below `--root` for each, 0700.
//!
//! | file | written | by |
//! |---|---|---|
//! | `lock` | held exclusively by create, start, run and delete | |
//! | `config.json` | once, the configuration that is in force | create |
//! | `state.json` | atomically, before and after the machine is started | create |
//! | `journal`, `control.sock` | see [`crate::machine`] | the machine process |
//!
//! Making the directory is what makes an id unique. Readers take no lock: every file is whole or absent.

mod dir;
mod record;
mod status;

pub(crate) use dir::{Lock, StateDir, write_atomically};
pub(crate) use record::Record;
pub(crate) use status::{Status, Verb};
