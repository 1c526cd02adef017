//! Pods of pinned namespaces (see [`Pinned`]): a state directory for the pod, and in it the machine's own container and
//! the list of those that belong to the pod.
//!
//! ```text
//!  <root>/ns:<inode of uts>/   as of a container, which is number 0 of the machine
//!      bundle/                 of that: an empty root
//!      members/<id>            an empty file for each container that belongs to the pod
//!
//!  create of a container: its record names the pod ──> the pod's lock: listed; the machine made, if none lives
//!  delete: the pod's lock: with the last that is listed the machine ends and the directory goes
//! ```
//! Invariants: a container's record names the pod before there is anything of it, so its `delete` finds the pod,
//! whatever was killed when; who is listed has a record that names this pod, or does not count; the machine lives no
//! longer than the last that counts.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::ask::open;
use super::attempt::Attempt;
use super::context::Context;
use super::create::{Created, Prepared, create_pod, scope};
use super::delete::{destroy, destroy_unrecorded};
use super::error::Error;
use super::{facts, start::start_created};
use crate::config::{CONFIG, Config};
use crate::error::Doing;
use crate::host::cgroup::Cgroup;
use crate::host::{pinned as found, surroundings};
use crate::plan::Holder;
use crate::report::Report;
use crate::state::{self, Lock, Pinned, Pins, Record, StateDir, Status};

/// The list of those that belong to a pod.
const MEMBERS: &str = "members";

/// Lists a container with its pod, whose machine is made if none lives; the pod with its record, and its lock.
pub(super) fn enter(
    context: &Context<'_>,
    prepared: &Prepared,
    pinned: &Pinned,
) -> Result<(StateDir, Record, Lock), Error> {
    let id = pinned.pins.pod();
    let (dir, record, lock) = loop {
        let dir = match StateDir::create(context.root, &id) {
            Err(state::Error::Exists) => StateDir::open(context.root, &id),
            made => made,
        };
        let dir = match dir {
            Err(state::Error::NotFound) => continue,
            dir => dir?,
        };
        // Whoever has made it, what is in it under the lock is what counts.
        let lock = match dir.lock() {
            Err(state::Error::NotFound) => continue,
            lock => lock?,
        };
        match dir.record() {
            Ok(None) => {
                list(&dir, prepared.id.as_str())?;
                let made = make(context, (dir, lock), prepared, pinned)?;
                break (made.dir, made.record, made.lock);
            }
            Ok(Some(record)) if record.lives() => {
                if record.pins != Some(pinned.pins) {
                    return Err(Error::OtherPins(pinned.uts.clone()));
                }
                list(&dir, prepared.id.as_str())?;
                break (dir, record, lock);
            }
            // A pod whose machine has ended before its members, or an earlier one with the same number.
            _ => end(&dir, lock, context.report)?,
        }
    };
    // Whoever has made the machine may not have come that far.
    if dir.status(Some(&record))? == Status::Created {
        start_created(&dir, &record, context.report)?;
    }
    Ok((dir, record, lock))
}

fn list(dir: &StateDir, id: &str) -> Result<(), Error> {
    let members = dir.path().join(MEMBERS);
    match fs::create_dir(&members) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.doing_to("create", &members)?,
    }
    let own = members.join(id);
    File::create(&own).doing_to("create", &own)?;
    Ok(())
}

/// Makes the pod's machine, for the container that comes first.
fn make(
    context: &Context<'_>,
    (dir, lock): (StateDir, Lock),
    prepared: &Prepared,
    pinned: &Pinned,
) -> Result<Created, Error> {
    let attempt = Attempt::of(dir, lock, context.report);
    for other in StateDir::pods(context.root)? {
        if let Ok(Some(other)) = other.record()
            && other.pins.is_some_and(|pins| pins.ipc == pinned.pins.ipc)
            && other.lives()
        {
            return Err(Error::OtherPins(pinned.ipc.clone()));
        }
    }
    let found = found::look(pinned).doing("look into the pod's namespaces")?;
    let holder = Holder {
        spec: &prepared.config.spec,
        pinned,
        systemd: context.systemd_cgroup,
        names: (&found.hostname, &found.domainname),
        parameters: &found.parameters,
    };
    let dir = attempt.dir()?;
    let bundle = dir.path().join("bundle");
    // The mount points: the root is read-only.
    for directory in ["rootfs/proc", "rootfs/dev"] {
        let directory = bundle.join(directory);
        fs::create_dir_all(&directory).doing_to("create", &directory)?;
    }
    let text = holder.configuration().to_string();
    let config = Config::parse(text, bundle.join(CONFIG))?;
    dir.write_config(config.text.as_bytes())?;
    let mut plan = facts::decide(context, &config, &bundle)?.plan?;
    plan.overlay.parameters = surroundings::parameters().doing("read the kernel's parameters")?;
    let id = pinned.pins.pod();
    let scope = scope(context, &plan, &id, &prepared.config)?;
    let prepared = Prepared {
        id,
        bundle,
        config,
        plan,
        scope,
        timeline: None,
        slave: None,
        preserved: Vec::new(),
        notify: false,
        pinned: Some(pinned.clone()),
    };
    create_pod(context, attempt, prepared, pinned.pins)
}

/// Ends the machine of a pod that is being made for this container alone, and so the create that waits for it.
pub(super) fn interrupt(root: &Path, pins: &Pins, id: &str) -> Result<(), Error> {
    let Ok(dir) = StateDir::open(root, &pins.pod()) else {
        return Ok(());
    };
    let listed = dir.path().join(MEMBERS).join(id).exists();
    if let Ok(Some(record)) = dir.record()
        && let (None, Some(path)) = (record.process, record.cgroup)
        && listed
        && !has_others(&dir, id)?
    {
        Cgroup::existing(path).kill()?;
    }
    Ok(())
}

/// Takes a container that is to be no more off the list of its pod, and ends the pod with the last.
pub(super) fn leave(root: &Path, pins: &Pins, id: &str, report: &Report) -> Result<(), Error> {
    let dir = match StateDir::open(root, &pins.pod()) {
        Err(state::Error::NotFound) => return Ok(()),
        dir => dir?,
    };
    let lock = match dir.lock() {
        Err(state::Error::NotFound) => return Ok(()),
        lock => lock?,
    };
    if has_others(&dir, id)? {
        let own = dir.path().join(MEMBERS).join(id);
        return match fs::remove_file(&own) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => Ok(removed.doing_to("remove", own)?),
        };
    }
    end(&dir, lock, report)
}

/// The same for a container whose record cannot be read: whichever pod has it on its list.
pub(super) fn leave_any(root: &Path, id: &str, report: &Report) -> Result<(), Error> {
    for dir in StateDir::pods(root)? {
        if dir.path().join(MEMBERS).join(id).exists()
            && let Ok(Some(record)) = dir.record()
            && let Some(pins) = record.pins
        {
            leave(root, &pins, id, report)?;
        }
    }
    Ok(())
}

/// Whether there are others than this container that belong to the pod.
fn has_others(dir: &StateDir, id: &str) -> Result<bool, Error> {
    let members = dir.path().join(MEMBERS);
    let listed = match fs::read_dir(&members) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        listed => listed.doing_to("read", &members)?,
    };
    let belongs = |record: Option<Record>| {
        let pins = record.as_ref().and_then(Record::pod);
        pins.is_some_and(|pins| pins.pod().as_str() == dir.id())
    };
    for entry in listed {
        let name = entry.doing_to("read", &members)?.file_name();
        let other = name.to_str().filter(|name| *name != id);
        let other = other.and_then(|name| open(dir.root(), name).ok());
        // One whose record cannot be read may be one.
        if other.is_some_and(|other| other.record().map_or(true, belongs)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Ends a pod and removes all that is left of it.
fn end(dir: &StateDir, lock: Lock, report: &Report) -> Result<(), Error> {
    match dir.record() {
        Ok(record) => destroy(dir, record.as_ref(), lock, report),
        Err(_) => destroy_unrecorded(dir, lock),
    }
}
