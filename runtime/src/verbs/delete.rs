//! `delete`: works with everything else dead, and again.

use std::path::Path;
use std::time::Duration;

use super::open;
use crate::cgroup::Cgroup;
use crate::cli;
use crate::error::{Error, SystemContext};
use crate::process;
use crate::state::{Lock, Record, StateDir, Verb};

/// How long the kernel may take to end a process after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Removes a container.
pub(crate) fn delete(root: &Path, args: &cli::Delete) -> Result<(), Error> {
    let verb = if args.force {
        Verb::DeleteForce
    } else {
        Verb::Delete
    };
    match delete_as(verb, root, args) {
        Err(Error::NotFound) if args.force => Ok(()),
        result => result,
    }
}

fn delete_as(verb: Verb, root: &Path, args: &cli::Delete) -> Result<(), Error> {
    let dir = open(root, &args.id)?;
    let lock = lock(&dir, verb)?;
    // Without a record there is no machine, so a damaged one stops the careful only.
    let record = match dir.record() {
        Err(Error::Damaged { .. }) if verb == Verb::DeleteForce => None,
        record => record?,
    };
    if let Ok(status) = dir.status(record.as_ref()) {
        status.allows(verb, dir.id())?;
    } else if verb != Verb::DeleteForce {
        dir.status(record.as_ref())?;
    }
    destroy(&dir, record.as_ref(), lock)
}

/// The lock. Who is told to use force ends a machine that is being created, and so the create that waits for it.
fn lock(dir: &StateDir, verb: Verb) -> Result<Lock, Error> {
    if let Some(lock) = dir.try_lock()? {
        return Ok(lock);
    }
    if verb == Verb::DeleteForce {
        if let Some(path) = dir.record().ok().flatten().and_then(|record| record.cgroup) {
            Cgroup::existing(path).kill()?;
        }
    }
    dir.lock()
}

/// Ends the machine and removes all that is left of the container.
pub(super) fn destroy(dir: &StateDir, record: Option<&Record>, _lock: Lock) -> Result<(), Error> {
    if let Some(machine) = record.and_then(|record| record.machine) {
        if let Some(pidfd) = machine.open().system("open the machine process")? {
            process::kill(&pidfd).system("kill the machine process")?;
            let waiting = "wait for the machine process";
            if !process::ends_within(&pidfd, KILL_TIMEOUT).system(waiting)? {
                return Err(Error::Unkillable(machine.pid));
            }
        }
    }
    if let Some(path) = record.and_then(|record| record.cgroup.clone()) {
        Cgroup::existing(path).remove()?;
    }
    dir.remove()
}
