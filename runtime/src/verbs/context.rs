//! What the global flags say.

use std::path::Path;
use std::time::Duration;

use crate::report::Report;

/// What the global flags say.
pub(crate) struct Context<'a> {
    pub(crate) root: &'a Path,
    pub(crate) report: &'a Report,
    pub(crate) systemd_cgroup: bool,
    /// The container is to have no cgroup on this host.
    pub(crate) no_cgroup: bool,
    pub(crate) rootless: bool,
    pub(crate) timeline: Option<&'a Path>,
    /// CLOCK_MONOTONIC at the start of the program.
    pub(crate) begun: Duration,
}
