//! The creation of a container: what the stage does before its init is born, and while that waits.

use std::fmt::Write as _;
use std::fs;
use std::os::fd::AsFd;

use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use protocol::Setup;

use super::birth::clone;
use super::configuration::Configuration;
use super::devices::{self, Disks};
use super::ids::{self, give_stdio, write_maps};
use super::wire::Wire;
use super::{apparmor, cgroup, init, mounts, process, sysctl};
use crate::error::{During, Error, Result};
use crate::sys;
use crate::task::Create;

/// The stage process: makes the container's init and lets it go.
pub(super) fn set_up(create: &Create, setup: Setup, wire: &Wire) -> Result<()> {
    let joined = create.joins.iter().fold(0, |all, (_, flags)| all | flags);
    let mut configuration = Configuration::new(setup)?.joining(joined);
    if let Some((process, _)) = joining_users(&create.joins) {
        ids::take_maps(&mut configuration.spec, *process)?;
    }
    let configuration = configuration;
    let process = configuration.spec.process().as_ref();
    let process = process.ok_or_else(|| Error::Config("process is missing".into()))?;
    apparmor::load(process, &create.policy)?;
    let disks = Disks::find(&configuration.setup.overlay)?;
    let (cgroup, speed) = cgroup::create(&configuration.spec, &create.cgroup, &disks)?;
    let devices = devices::configured(&configuration, &disks, &create.directory)?;
    let sources = mounts::Sources::take(&configuration, create)?;
    give_stdio(&configuration.spec, process, create.stdio)?;
    sysctl::inherit(&configuration.setup.overlay.parameters)?;
    sysctl::set(&configuration.spec, sysctl::Moment::Before)?;
    if configuration.makes(LinuxNamespaceType::Time) {
        new_time(&configuration.spec)?;
    }
    process::set_oom_score(process)?;
    if configuration.has(LinuxNamespaceType::User) {
        process::make_room(process, &configuration.setup.overlay.limits)?;
    }
    join(&create.joins)?;
    let born = clone(configuration.clone_flags(), cgroup.as_fd(), wire, || {
        init::run(&configuration, create, (sources, speed), &devices, wire)
    })?;
    if configuration.makes(LinuxNamespaceType::User) {
        write_maps(&configuration.spec, born.pid)?;
    }
    born.go()
}

/// Whose user namespace is joined, if any is.
fn joining_users(joins: &[(i32, i32)]) -> Option<&(i32, i32)> {
    let mut joins = joins.iter();
    joins.find(|(_, namespaces)| namespaces & libc::CLONE_NEWUSER != 0)
}

/// Joins namespaces of other containers, each by a process that is in it. That of users is the last: before it there is
/// a right to all others, and those that are made from then on belong to it.
fn join(joins: &[(i32, i32)]) -> Result<()> {
    let one = |process: i32, namespaces: i32| {
        let process = sys::pidfd_open(process).during(|| "open a process of another container")?;
        setns(process, CloneFlags::from_bits_retain(namespaces))
            .during(|| "join the namespaces of another container")
    };
    for (process, namespaces) in joins {
        let namespaces = namespaces & !libc::CLONE_NEWUSER;
        if namespaces != 0 {
            one(*process, namespaces)?;
        }
    }
    match joining_users(joins) {
        Some((process, _)) => one(*process, libc::CLONE_NEWUSER),
        None => Ok(()),
    }
}

/// Creates the time namespace that init will be born into, with its offsets (time_namespaces(7)).
fn new_time(spec: &Spec) -> Result<()> {
    unshare(CloneFlags::from_bits_retain(libc::CLONE_NEWTIME))
        .during(|| "create a time namespace")?;
    let offsets = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.time_offsets().as_ref());
    let mut text = String::new();
    for (clock, offset) in offsets.into_iter().flatten() {
        let (secs, nanosecs) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        let _ = writeln!(text, "{clock} {secs} {nanosecs}");
    }
    if text.is_empty() {
        return Ok(());
    }
    fs::write("/proc/self/timens_offsets", text).during(|| "set linux.timeOffsets")
}
