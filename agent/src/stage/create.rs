//! The creation of a container: what the stage does before its init is born, and while that waits.

use std::fmt::Write as _;
use std::fs;
use std::os::fd::AsFd;

use nix::sched::{CloneFlags, unshare};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use protocol::Setup;

use super::birth::clone;
use super::configuration::Configuration;
use super::devices::{self, Disks};
use super::ids::{give_stdio, write_maps};
use super::wire::Wire;
use super::{apparmor, cgroup, init, mounts, process, sysctl};
use crate::error::{During, Error, Result};
use crate::task::Create;

/// The stage process: makes the container's init and lets it go.
pub(super) fn set_up(create: &Create, setup: Setup, wire: &Wire) -> Result<()> {
    let configuration = Configuration::new(setup)?;
    let process = configuration.spec.process().as_ref();
    let process = process.ok_or_else(|| Error::Config("process is missing".into()))?;
    apparmor::load(process, &create.policy)?;
    let disks = Disks::find(&configuration.setup.overlay)?;
    let cgroup = cgroup::create(&configuration.spec, &create.cgroup, &disks)?;
    let devices = devices::configured(&configuration, &disks, &create.directory)?;
    let sources = mounts::Sources::take(&configuration, create)?;
    give_stdio(&configuration.spec, process, create.stdio)?;
    sysctl::inherit(&configuration.setup.overlay.parameters)?;
    sysctl::set(&configuration.spec, sysctl::Moment::Before)?;
    if configuration.has(LinuxNamespaceType::Time) {
        new_time(&configuration.spec)?;
    }
    if configuration.has(LinuxNamespaceType::User) {
        process::make_room(process, &configuration.setup.overlay.limits)?;
    }
    let born = clone(configuration.clone_flags(), cgroup.as_fd(), wire, || {
        init::run(&configuration, create, sources, &devices, wire)
    })?;
    if configuration.has(LinuxNamespaceType::User) {
        write_maps(&configuration.spec, born.pid)?;
    }
    born.go()
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
