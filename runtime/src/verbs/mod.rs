//! The verbs, one file each.

mod check;
mod checkpoint;
mod create;
mod delete;
pub(crate) mod error;
mod events;
mod exec;
mod explain;
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

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub(crate) use check::check;
pub(crate) use checkpoint::{checkpoint, restore};
pub(crate) use create::{Context, create};
pub(crate) use delete::delete;
pub(crate) use events::events;
use events::statistics;
pub(crate) use exec::exec;
pub(crate) use explain::explain;
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

use crate::control::{Connection, Control, ControlReply};
use crate::machine;
use crate::state::StateDir;
use crate::verbs::error::{Error, SystemContext};

/// How long the guest may take with an answer that something on the host waits for.
const PATIENCE: Duration = Duration::from_secs(30);

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
        _ => Err(invalid_reply()),
    }
}

/// A reply that does not belong to the request.
fn invalid_reply() -> Error {
    Error::Reply("invalid reply of the machine process".to_owned())
}

/// Asks the machine process, and waits no longer for the guest than it may take.
fn ask(state_dir: &Path, request: &Control) -> Result<ControlReply, Error> {
    let connection = Connection::open(state_dir)?;
    connection.ask(request)?;
    let end = Instant::now() + PATIENCE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, timeout) {
            Err(Errno::EINTR) => {}
            Ok(0) => return Err(Error::Unanswered(PATIENCE)),
            result => {
                result.system("wait for the guest")?;
                let reply = connection.receive()?;
                return Ok(reply.ok_or(machine::Error::NotRunning)?);
            }
        }
    }
}
