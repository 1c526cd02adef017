//! `start`.

use std::os::fd::{AsFd, BorrowedFd};

use super::ask::{done, open};
use super::context::Context;
use super::delete::destroy;
use super::error::Error;
use crate::config::Config;
use crate::control::Connection;
use crate::error::Doing;
use crate::host::attendant::Attendant;
use crate::host::cgroup::{Cgroup, Limit};
use crate::host::hooks::{Hooks, Kind};
use crate::host::network::{self, Joined, NameServer, Watch};
use crate::host::notify::NotifySocket;
use crate::host::watcher::{self, Place};
use crate::ids::Ids;
use crate::plan;
use crate::report::Report;
use crate::state::{self, Record, StateDir, Verb, process as processes};

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
    if let (Some(notify), Some(process)) = (notify, record.process) {
        // It may be long before the container is ready.
        drop(lock);
        notify.attend(&dir.address(Some(&record)), process.pid)?;
    }
    Ok(())
}

/// Executes the program of a container whose status and lock the caller has seen to.
pub(super) fn start_created(dir: &StateDir, record: &Record, report: &Report) -> Result<(), Error> {
    let config = Config::load(dir.path())?;
    let hooks = Hooks::of(&config.spec, record);
    let process = record.process.ok_or(Error::NotRunning)?;
    let pidfd = process.open().doing("open the container's process")?;
    let pidfd = pidfd.ok_or(Error::NotRunning)?;
    let Joined {
        network,
        taps,
        watch,
    } = match record.network.slots() {
        0 => Joined::default(),
        slots => {
            let server = NameServer {
                asked: network::names::are_asked(&config.spec),
                in_reach: record.member.is_none(),
            };
            network::join(&pidfd, &record.net_devices, server, slots, report)?
        }
    };
    if network.names && record.member.is_some() {
        let text = "the name server in the container's network namespace is out of reach of the machine, which is that of \
                    another container";
        return Err(Error::Invalid(text.to_owned()));
    }
    for interface in &network.interfaces {
        report.debug(&format!("network interface {} joined", interface.name));
    }
    let cgroup = record.cgroup.clone().map(Cgroup::existing);
    let limits = plan::limits_of_speed(&config.spec);
    // That of processor time has been in force in the guest since the container was prepared. On the host it would slow
    // down the guest's kernel, which has little to do for the program and much for the machine.
    let (late, early): (Vec<_>, Vec<_>) = limits.into_iter().partition(Limit::is_of_processors);
    if let Some(cgroup) = &cgroup {
        cgroup.set_all(&early)?;
    }
    let connection = Connection::open(&dir.address(Some(record)))?;
    let watcher = watch.map(|watch| watcher(watch, &connection, pidfd.as_fd(), record));
    let watcher = watcher.transpose()?;
    done(connection.start(network, &taps)?)?;
    report.debug("container started");
    if let Some(watcher) = watcher {
        watcher
            .commit()
            .doing("commit the watcher of the network")?;
    }
    let set = cgroup.map_or(Ok(()), |cgroup| cgroup.set_all(&late));
    let set = set.map_err(Error::from);
    let run = set.and_then(|()| Ok(hooks.run(Kind::Poststart, process.pid)?));
    // As with runc the container does not outlive a hook that fails.
    if run.is_err()
        && let Ok(Some(pidfd)) = process.open()
    {
        let _ = processes::kill(&pidfd);
    }
    run
}

/// Makes the process that has the container's machine follow its network.
fn watcher(
    watch: Watch,
    connection: &Connection,
    process: BorrowedFd<'_>,
    record: &Record,
) -> Result<Attendant, Error> {
    let cgroup = record.cgroup.clone().map(Cgroup::existing);
    let cgroup = cgroup.map(|cgroup| cgroup.open()).transpose()?;
    let place = Place {
        process,
        cgroup: cgroup.as_ref().map(AsFd::as_fd),
        ids: Ids::of_host()?,
        label: record.labels.process.as_deref(),
    };
    let made = watcher::make(watch, connection, &place);
    Ok(made.doing("start the process that watches the network")?)
}
