//! What touches this host: its cgroups, networks, terminals, hooks and descriptors, for the verbs.

pub(crate) mod cgroup;
pub(crate) mod hooks;
pub(crate) mod network;
pub(crate) mod notify;
pub(crate) mod preserved;
pub(crate) mod relay;
pub(crate) mod resctrl;
pub(crate) mod signals;
pub(crate) mod stub;
pub(crate) mod terminal;
