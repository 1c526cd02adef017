//! `delete`: works with everything else dead, and again.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use super::ask::open;
use super::error::Error;
use super::pod;
use crate::cli;
use crate::config::{self, Config};
use crate::control;
use crate::error::Doing;
use crate::host::cgroup::{self, Cgroup};
use crate::host::hooks::Hooks;
use crate::host::network;
use crate::machine;
use crate::report::Report;
use crate::state::{self, Identity, Lock, Network, Record, StateDir, Verb, index, process};

/// How long the kernel may take to end a process after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Removes a container.
pub(crate) fn delete(root: &Path, args: &cli::Delete, report: &Report) -> Result<(), Error> {
    let verb = if args.force {
        Verb::DeleteForce
    } else {
        Verb::Delete
    };
    match delete_as(verb, root, args, report) {
        Err(Error::State(state::Error::NotFound)) if args.force => Ok(()),
        result => result,
    }
}

fn delete_as(verb: Verb, root: &Path, args: &cli::Delete, report: &Report) -> Result<(), Error> {
    let dir = open(root, &args.id)?;
    let lock = lock(&dir, verb)?;
    let force = verb == Verb::DeleteForce;
    let record = match dir.record() {
        Err(state::Error::Damaged { .. }) if force => {
            pod::leave_any(root, dir.id(), report)?;
            return destroy_unrecorded(&dir, lock);
        }
        record => record?,
    };
    match dir.status(record.as_ref()) {
        // A journal that cannot be read.
        Err(_) if force => {}
        status => status?.allows(verb, dir.id())?,
    }
    destroy(&dir, record.as_ref(), lock, report)
}

/// The lock. Who is told to use force ends a machine that is being created, and so the create that waits for it.
fn lock(dir: &StateDir, verb: Verb) -> Result<Lock, Error> {
    if let Some(lock) = dir.try_lock()? {
        return Ok(lock);
    }
    let record = if verb == Verb::DeleteForce {
        dir.record().ok().flatten()
    } else {
        None
    };
    if let Some(pins) = record.as_ref().and_then(Record::pod) {
        pod::interrupt(dir.root(), pins, dir.id())?;
    }
    if let Some(path) = record.and_then(|record| record.cgroup) {
        Cgroup::existing(path).kill()?;
    }
    Ok(dir.lock()?)
}

/// Ends the container's process, removes all that is left of the container, and runs the hooks for that.
pub(super) fn destroy(
    dir: &StateDir,
    record: Option<&Record>,
    _lock: Lock,
    report: &Report,
) -> Result<(), Error> {
    let hooks = record.map(|record| {
        let stored = Config::load(dir.path())?;
        Ok::<_, config::Error>(Hooks::of(&stored.spec, record))
    });
    if let Some(record) = record
        && let Some(process) = record.process
    {
        let_end(record);
        end(process)?;
        index::forget(dir.root(), process.pid, dir.id());
    }
    if let Some(seat) = record.and_then(|record| record.member.as_ref()) {
        machine::leave(&dir.address(record), seat)?;
    }
    if let Some(groups) = record.and_then(|record| record.resctrl.as_ref()) {
        groups.remove()?;
    }
    if let Some(Network::Path(path)) = record.map(|record| &record.network)
        && let Err(e) = network::release(path)
    {
        // The namespace is somebody else's; what is left in it leads nowhere, and the next machine that gets it takes
        // it away.
        report.warn(&format!("{:#}", anyhow::Error::from(e)));
    }
    if let Some(record) = record
        && let Some(path) = record.cgroup.clone()
    {
        Cgroup::existing(path)
            .of_unit(record.scope.clone())
            .remove()?;
    }
    if let Some(pins) = record.and_then(Record::pod) {
        pod::leave(dir.root(), pins, dir.id(), report)?;
    }
    dir.remove()?;
    match hooks {
        Some(Ok(hooks)) => hooks.run_poststop(report),
        Some(Err(e)) => report.warn(&format!(
            "no poststop hooks are run: read the container's hooks: {e}"
        )),
        None => {}
    }
    Ok(())
}

/// The same without a record. The machine is the process that listens on the control socket; its cgroup is removed if
/// it is empty then, for it may be one that the container shares with others.
pub(super) fn destroy_unrecorded(dir: &StateDir, _lock: Lock) -> Result<(), Error> {
    if let Some(pid) = control::listener(dir.as_fd())
        && let Some(machine) = Identity::of(pid)
    {
        let cgroup = cgroup::of(machine.pid);
        end(machine)?;
        let _ = cgroup.map(std::fs::remove_dir);
    }
    Ok(dir.remove()?)
}

/// Lets a machine that is to end take its time of the processor.
pub(super) fn let_end(record: &Record) {
    if let Some(path) = &record.cgroup {
        Cgroup::existing(path.clone()).let_end();
    }
}

/// Kills the process that stands for a container and waits until it has ended.
fn end(identity: Identity) -> Result<(), Error> {
    let Some(pidfd) = identity.open().doing("open the container's process")? else {
        return Ok(());
    };
    process::kill(&pidfd).doing("kill the container's process")?;
    if process::ends_within(&pidfd, KILL_TIMEOUT).doing("wait for the container's process")? {
        Ok(())
    } else {
        Err(Error::Unkillable(identity.pid))
    }
}
