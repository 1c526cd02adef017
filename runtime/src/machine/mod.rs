//! The machine process: the virtual machine of one container, and the process that callers know as the container.
//!
//! ```text
//! create verb (short-lived)                       machine process
//!   spawn ──clone3 into the cgroup──────────────> own session, network namespace, jail tree; then the user namespace
//!   namespaces_ready(pid)  <──────Entered──────── (builds the VM meanwhile)
//!          ────────────────────────Proceed──────> privileges, Landlock, filters; first KVM_RUN; the guest prepares the container
//!   Spawned <──────────────────────Created──────── waits
//!   state.json, pid file; Spawned::commit ───────> serves control.sock until the container has ended
//! ```
//! Until it is committed the machine ends when the verb does, so a verb that fails or is killed leaves no machine
//! behind. From then on it depends on nobody.

mod agent;
mod clients;
mod clock;
mod container;
mod cores;
mod disk;
mod error;
mod execs;
mod forwards;
#[cfg(fuzzing)]
#[path = "../../../tests/fuzz/runtime/machine.rs"]
pub mod fuzz;
mod id_map;
mod inside;
mod interfaces;
mod jail;
mod launch;
mod life;
mod log;
mod member;
mod members;
pub(crate) mod mountinfo;
mod names;
mod pins;
mod process;
mod replies;
mod requests;
mod share;
mod shortage;
mod spawn;
mod streams;
mod sync;
mod timeline;
mod tree;
mod view;

pub(crate) use cores::CORE_SCHEDULING;
pub(crate) use disk::BlockDevice;
pub(crate) use error::Error;
pub(crate) use id_map::{IdMap, IdRange, maps_of, parse as parse_ids};
pub(crate) use jail::CAPABILITIES;
pub(crate) use launch::{Isolation, Launch};
pub(crate) use member::{Admitted, admit, leave};
pub(crate) use share::Share;
pub(crate) use shortage::FILES as MEMORY_FILES;
pub(crate) use spawn::{Spawned, spawn};
pub(crate) use timeline::now;
pub(crate) use view::{Content, Target, show};
