//! PID 1 of the guest: serves the host, from the boot to the end of the guest.

mod agent;
mod boot;
mod cgroup;
mod container;
mod containers;
mod control;
mod device;
mod errand;
mod names;
mod network;
mod notify;
mod place;
mod process;
mod spawn;
mod stream;
mod token;
mod watcher;

use crate::error::Result;

/// Boots the guest and serves the host until it goes away or something breaks; both are the end of
/// the guest.
pub(crate) fn run() -> Result<()> {
    boot::boot().and_then(agent::Agent::run)
}
