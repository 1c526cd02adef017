//! What the verbs do on this host. Each module has an error of its own.
//!
//! | module | what it does |
//! |---|---|
//! | [`cgroup`], [`resctrl`] | bounds the machine |
//! | [`network`] | joins the interfaces of the container's network namespace to the machine |
//! | [`apparmor`], [`selinux`] | know the profiles and the labels |
//! | [`pinned`] | looks into the namespaces that are pinned for a pod |
//! | [`hooks`] | runs the caller's programs |
//! | [`terminal`], [`relay`], [`signals`] | the terminal of a process, and the caller's terminal and signals lent to it |
//! | [`surroundings`] | what a container has of the host and of the caller where its configuration says nothing |
//! | [`preserved`], [`notify`] | passes on the caller's descriptors, and the container's readiness |
//! | [`attendant`] | what stays behind of a verb, in a jail of its own: |
//! | [`stub`] | the process that stands for an exec'd one |
//! | [`watcher`] | the process that has the machine follow its network |

pub(crate) mod apparmor;
pub(crate) mod attendant;
pub(crate) mod cgroup;
pub(crate) mod hooks;
pub(crate) mod network;
pub(crate) mod notify;
pub(crate) mod pinned;
pub(crate) mod preserved;
pub(crate) mod relay;
pub(crate) mod resctrl;
pub(crate) mod selinux;
pub(crate) mod signals;
pub(crate) mod stub;
pub(crate) mod surroundings;
pub(crate) mod terminal;
pub(crate) mod watcher;
