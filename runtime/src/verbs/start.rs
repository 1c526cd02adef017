//! `start`.

use super::ask::{done, open};
use super::context::Context;
use super::delete::destroy;
use super::error::Error;
use crate::config::Config;
use crate::control;
use crate::error::Doing;
use crate::host::cgroup::Cgroup;
use crate::host::hooks::{Hooks, Kind};
use crate::host::network::{self, Joined};
use crate::host::notify::NotifySocket;
use crate::plan;
use crate::report::Report;
use crate::state::{self, Record, StateDir, Verb, process};

/// Executes the program of a created container.
pub(crate) fn start(context: &Context<'_>, id: &str) -> Result<(), Error> {
    let dir = open(context.root, id)?;
    let lock = dir.lock()?;
    let record = dir.record()?;
    dir.status(record.as_ref())?.allows(Verb::Start, dir.id())?;
    let Some(record) = record else {
        return Err(state::Error::NotFound.into());
    };
    let notify = NotifySocket::of_environment();
    if notify.is_some() && !record.notify {
        return Err(Error::NoNotifySocket);
    }
    let result = start_created(&dir, &record, context.report);
    if let Err(Error::Hook(_)) = result {
        // runtime.md, Lifecycle: when a poststart hook fails the container is destroyed. That it failed is what the
        // caller must know.
        if let Err(e) = destroy(&dir, Some(&record), lock, context.report) {
            context
                .report
                .warn(&format!("what is left of the container: {e}"));
        }
        return result;
    }
    result?;
    if let (Some(notify), Some(machine)) = (notify, record.machine) {
        // It may be long before the container is ready.
        drop(lock);
        notify.attend(dir.path(), machine.pid)?;
    }
    Ok(())
}

/// Executes the program of a container whose status and lock the caller has seen to.
pub(super) fn start_created(dir: &StateDir, record: &Record, report: &Report) -> Result<(), Error> {
    let config = Config::load(dir.path())?;
    let hooks = Hooks::of(&config.spec, record);
    let machine = record.machine.ok_or(Error::NotRunning)?;
    let Joined { network, taps } = match record.network.slots() {
        0 => Joined::default(),
        slots => {
            let process = machine.open().doing("open the machine process")?;
            let process = process.ok_or(Error::NotRunning)?;
            let names = network::names::are_asked(&config.spec);
            network::join(process, &record.net_devices, names, slots, report)?
        }
    };
    for interface in &network.interfaces {
        report.debug(&format!("network interface {} joined", interface.name));
    }
    if let Some(path) = &record.cgroup {
        let limits = plan::limits_of_speed(&config.spec);
        Cgroup::existing(path.clone()).set_all(&limits)?;
    }
    done(control::start(dir.path(), network, &taps)?)?;
    report.debug("container started");
    hooks.run(Kind::Poststart, machine.pid).map_err(|e| {
        // As with runc the container does not outlive it.
        if let Ok(Some(pidfd)) = machine.open() {
            let _ = process::kill(&pidfd);
        }
        e.into()
    })
}
