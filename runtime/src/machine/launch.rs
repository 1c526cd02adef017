//! What a machine is made from.

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use protocol::Overlay;

use super::disk::BlockDevice;
use super::share::Share;
use super::view::Target;
use crate::control::Preserved;
use crate::error::{Doing, SystemError};
use crate::ids::Ids;
use crate::report::Report;
use crate::state::{Labels, Network, Pinned};
use crate::sys::MemoryPolicy;

/// All that a machine is made from.
pub(crate) struct Launch<'a> {
    /// The container's id.
    pub(crate) id: &'a str,
    /// The bytes of config.json.
    pub(crate) config: &'a str,
    /// The bundle's absolute path.
    pub(crate) bundle: &'a str,
    /// What the guest must know besides config.json.
    pub(crate) overlay: Overlay,
    /// AppArmor is active in the guest's kernel.
    pub(crate) apparmor: bool,
    /// The compiled AppArmor policy of the init's profile; empty if it has none.
    pub(crate) policy: Vec<u8>,
    /// What SELinux is to know of the machine process and of what it writes to.
    pub(crate) labels: Labels,
    /// The container's cgroup in the guest: the path below the root of the hierarchy.
    pub(crate) guest_cgroup: String,
    /// The container has a pid namespace of its own.
    pub(crate) own_pids: bool,
    /// The container gets a socket for sd_notify(3).
    pub(crate) notify: bool,
    /// Guest RAM in bytes, a multiple of 2 MiB.
    pub(crate) memory: u64,
    /// Number of vCPUs.
    pub(crate) vcpus: u8,
    /// What the machine shares with the rest of the host.
    pub(crate) isolation: Isolation,
    /// The files the guest sees.
    pub(crate) shares: Vec<Share>,
    /// The mounts of the container, where a process of the host is to see them in the machine's mount namespace.
    pub(crate) view: Option<Vec<Target>>,
    /// The block devices the guest has.
    pub(crate) disks: Vec<BlockDevice>,
    /// The network namespace the machine process lives in.
    pub(crate) network: Network,
    /// The namespaces of a pod, for whose machine this is: the machine process lives in them, and as long as it lives
    /// nobody else gets their numbers. Such a machine is given none of the caller's streams.
    pub(crate) pinned: Option<&'a Pinned>,
    /// From which of the host's memory nodes the machine takes its memory.
    pub(crate) memory_policy: Option<MemoryPolicy>,
    /// `/proc/<pid>/oom_score_adj` of the machine process; as inherited if `None`.
    pub(crate) oom_score_adj: Option<i32>,
    /// As whom it may run.
    pub(crate) ids: Ids,
    /// The container's state directory, for the control socket and the journal.
    pub(crate) state_dir: BorrowedFd<'a>,
    /// The container's cgroup v2 directory.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// Where the boot timeline goes when the container's program runs.
    pub(crate) timeline: Option<File>,
    /// The slave of the host's pseudo-terminal, raw, in place of the standard streams: `process.terminal`.
    pub(crate) terminal: Option<OwnedFd>,
    /// Descriptors besides the standard streams.
    pub(crate) preserved: Vec<Preserved>,
    /// The caller's log, which the machine process writes to as well, if there is one.
    pub(crate) report: &'a Report,
    /// CLOCK_MONOTONIC at the start of the verb.
    pub(crate) begun: Duration,
}

/// What the machine shares with the rest of the host, where there is a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Isolation {
    /// On shares besides the root filesystem there may be files made that give privileges to whoever executes them.
    pub(crate) volume_privileges: bool,
    /// Large files of read-only mounts are mapped from the host's page cache.
    pub(crate) dax: bool,
    /// No others run on the sibling threads of a core meanwhile.
    pub(crate) core_scheduling: bool,
}

/// What the machine process has of the host's `/dev`. It is opened before that process is in the container's cgroup:
/// the device rules there (a client's, or those of a cgroup above) are for containers, and may deny it.
pub(super) struct Devices {
    pub(super) kvm: OwnedFd,
    pub(super) null: OwnedFd,
}

impl Devices {
    pub(super) fn open() -> Result<Devices, SystemError> {
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
        Ok(Devices {
            kvm: open("/dev/kvm", flags, Mode::empty()).doing("open /dev/kvm")?,
            null: open("/dev/null", flags, Mode::empty()).doing("open /dev/null")?,
        })
    }
}
