//! The machine process: the virtual machine of one container, and the process that callers know as the container.
//!
//! ```text
//! create verb (short-lived)                       machine process
//!   spawn ──clone3 into the cgroup──────────────> own session, network namespace, jail tree; then the user namespace
//!   namespaces_ready(pid)  <──────MapIds───────── (builds the VM meanwhile)
//!   write uid_map, gid_map
//!          ────────────────────────Mapped───────> drops capabilities; first KVM_RUN; the guest prepares the container
//!   Spawned <──────────────────────Created──────── waits
//!   state.json, pid file; Spawned::commit ───────> serves control.sock until the container has ended
//! ```
//! Until it is committed the machine ends when the verb does, so a verb that fails or is killed leaves no machine behind. From then on
//! it depends on nobody.

mod agent;
mod clients;
mod container;
mod disk;
mod execs;
mod jail;
mod life;
mod log;
mod mountinfo;
mod names;
mod process;
mod requests;
mod share;
mod streams;
mod sync;
mod timeline;

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use protocol::Overlay;
use sync::{FromMachine, SyncSocket, ToMachine};

use crate::control::Preserved;
use crate::report::Report;
use crate::state::Network;
use crate::sys::{self, Cloned, MemoryPolicy};

pub(crate) use disk::Disk;
pub(crate) use share::{IdMap, IdRange, Share};
pub(crate) use timeline::now;

/// All that a machine is made from.
pub(crate) struct Launch<'a> {
    /// The container's id.
    pub(crate) id: &'a str,
    /// The bytes of config.json.
    pub(crate) config: &'a str,
    /// The bundle's absolute path.
    pub(crate) bundle: &'a str,
    /// What the guest must know beside config.json.
    pub(crate) overlay: Overlay,
    /// Guest RAM in bytes, a multiple of 2 MiB.
    pub(crate) memory: u64,
    /// Number of vCPUs.
    pub(crate) vcpus: u8,
    /// The files the guest sees.
    pub(crate) shares: Vec<Share>,
    /// The block devices the guest has.
    pub(crate) disks: Vec<Disk>,
    /// The network namespace the machine process lives in.
    pub(crate) network: Network,
    /// From which of the host's memory nodes the machine takes its memory.
    pub(crate) memory_policy: Option<MemoryPolicy>,
    /// `/proc/<pid>/oom_score_adj` of the machine process; as inherited if `None`.
    pub(crate) oom_score_adj: Option<i32>,
    /// The container's state directory, for the control socket and the journal.
    pub(crate) state_dir: BorrowedFd<'a>,
    /// The container's cgroup v2 directory.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// Where the boot timeline goes when the container's program runs.
    pub(crate) timeline: Option<File>,
    /// The slave of the host's pseudo-terminal, raw, in place of the standard streams: `process.terminal`.
    pub(crate) terminal: Option<OwnedFd>,
    /// Descriptors beside the standard streams.
    pub(crate) preserved: Vec<Preserved>,
    /// The caller's log, which the machine process writes to as well, if there is one.
    pub(crate) report: &'a Report,
    /// CLOCK_MONOTONIC at the start of the verb.
    pub(crate) begun: Duration,
}

/// What goes wrong while a machine starts or is spoken to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A system call failed.
    #[error("cannot {doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The machine process could not get the container ready; its own words.
    #[error("{0}")]
    Refused(String),
    /// The machine process ended without a word.
    #[error("the machine process ended unexpectedly ({0})")]
    Died(String),
    /// What the verb does when the namespaces are there failed; its own words.
    #[error(transparent)]
    NamespacesReady(Box<dyn std::error::Error + Send + Sync>),
    /// The container's machine answers no control requests.
    #[error("container not running")]
    NotRunning,
    /// The machine process broke the control protocol.
    #[error("invalid reply of the machine process")]
    Protocol(#[source] protocol::Error),
}

/// Adds what was being done to a system call's error.
pub(crate) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: &'static str) -> Result<T, Error> {
        self.map_err(|e| Error::System {
            doing,
            source: e.into(),
        })
    }
}

/// A machine whose container is created, and that ends with this value unless it is committed.
pub(crate) struct Spawned {
    pid: Pid,
    sync: Option<SyncSocket>,
}

/// Called with the machine process's pid when it is in the container's network namespace and in a jail of files, and before the guest's
/// first instruction. The machine waits for its return; after an error there is none.
pub(crate) type NamespacesReady<'a> =
    dyn FnMut(i32) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + 'a;

/// What the machine process has of the host's `/dev`. It is opened before that process is in the container's cgroup: the device rules there
/// (a client's, or those of a cgroup above) are for containers, and may deny it.
struct Devices {
    kvm: OwnedFd,
    null: OwnedFd,
}

impl Devices {
    fn open() -> Result<Devices, Error> {
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
        Ok(Devices {
            kvm: open("/dev/kvm", flags, Mode::empty()).doing("open /dev/kvm")?,
            null: open("/dev/null", flags, Mode::empty()).doing("open /dev/null")?,
        })
    }
}

/// Starts a machine and waits until the guest has prepared the container.
///
/// # Errors
/// When any step fails, with nothing left of the machine.
pub(crate) fn spawn(
    launch: Launch<'_>,
    namespaces_ready: &mut NamespacesReady<'_>,
) -> Result<Spawned, Error> {
    let (ours, theirs) = SyncSocket::pair().doing("create a socket pair")?;
    let devices = Devices::open()?;
    match sys::clone_process(launch.cgroup).doing("clone the machine process")? {
        Cloned::Child => {
            drop(ours);
            process::main(launch, devices, theirs)
        }
        Cloned::Parent(pid) => {
            drop((theirs, devices));
            let spawned = Spawned {
                pid: Pid::from_raw(pid),
                sync: Some(ours),
            };
            spawned.await_created(namespaces_ready)?;
            for share in launch.shares.iter().filter(|share| share.sealed) {
                share::seal(pid, &share.name).doing("make the root filesystem read-only")?;
            }
            Ok(spawned)
        }
    }
}

impl Spawned {
    /// The pid of the machine process.
    #[must_use]
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// From here on the machine lives until its container ends.
    ///
    /// # Errors
    /// When the machine has ended meanwhile.
    pub(crate) fn commit(mut self) -> Result<(), Error> {
        if let Some(sync) = &self.sync {
            sync.send(&ToMachine::Commit).doing("commit the machine")?;
        }
        self.sync = None;
        Ok(())
    }

    fn await_created(&self, namespaces_ready: &mut NamespacesReady<'_>) -> Result<(), Error> {
        let Some(sync) = &self.sync else {
            return Ok(());
        };
        loop {
            match sync
                .receive::<FromMachine>()
                .doing("hear from the machine process")?
            {
                Some(FromMachine::MapIds) => {
                    namespaces_ready(self.pid()).map_err(Error::NamespacesReady)?;
                    self.map_ids()?;
                    sync.send(&ToMachine::Mapped)
                        .doing("answer the machine process")?;
                }
                Some(FromMachine::Created) => return Ok(()),
                Some(FromMachine::Failed(text)) => return Err(Error::Refused(text)),
                None => return Err(Error::Died(self.end())),
            }
        }
    }

    /// Maps every id of the machine's user namespace to itself: files keep their owners, and capabilities are worth nothing outside.
    fn map_ids(&self) -> Result<(), Error> {
        for map in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{}/{map}", self.pid), "0 0 4294967295\n")
                .doing("map the ids of the machine's user namespace")?;
        }
        Ok(())
    }

    /// Kills and reaps the machine; how it ended.
    fn end(&self) -> String {
        let _ = nix::sys::signal::kill(self.pid, Signal::SIGKILL);
        loop {
            match waitpid(self.pid, None) {
                Err(Errno::EINTR) => {}
                Ok(WaitStatus::Exited(_, code)) => return format!("exit code {code}"),
                Ok(WaitStatus::Signaled(_, signal, _)) => return signal.to_string(),
                Ok(other) => return format!("{other:?}"),
                Err(errno) => return errno.to_string(),
            }
        }
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if self.sync.is_some() {
            self.end();
        }
    }
}
