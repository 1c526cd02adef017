//! From the kernel to a guest that can serve: as little as possible.

use std::fs;
use std::path::Path;

use nix::fcntl::AT_FDCWD;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{chroot, fchdir, mkdir};

use super::control::Control;
use crate::clock::now;
use crate::error::{During, Result};
use crate::hierarchy;
use crate::paths::{CONTAINERS, SHARE};
use crate::sys;
use crate::vsock;

/// What PID 1 starts with.
pub(crate) struct Booted {
    /// CLOCK_MONOTONIC at the agent's begin, in ns.
    pub(crate) started: u64,
    /// The stream to the host, perhaps still connecting.
    pub(crate) control: Control,
    /// Readable when a child has ended.
    pub(crate) signals: SignalFd,
}

/// Descriptors of PID 1: ten for each of some thousand processes, or more for fewer ones.
const FILES: u64 = 16 << 10;

/// Boots the guest. The host is dialled first, so that it answers while the mounts are made.
pub(crate) fn boot() -> Result<Booted> {
    let started = now();
    let control = Control::new(vsock::dial(protocol::CONTROL_PORTS, vsock::PATIENCE)?);
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block().during(|| "block SIGCHLD")?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .during(|| "create a signalfd")?;
    // For the streams of all processes that there may be at a time.
    sys::set_rlimit(libc::RLIMIT_NOFILE, FILES, FILES).during(|| "raise RLIMIT_NOFILE")?;
    leave_initial_root()?;
    mounts()?;
    // The kernel's default has kcompactd look at the fragmentation twice a second, the only thing
    // that wakes an idle guest so often. Compaction on demand is not concerned
    // (Documentation/admin-guide/sysctl/vm.rst).
    fs::write("/proc/sys/vm/compaction_proactiveness", "0")
        .during(|| "stop proactive compaction")?;
    sys::loopback_up().during(|| "bring the loopback interface up")?;
    Ok(Booted {
        started,
        control,
        signals,
    })
}

/// The directories are there: the initramfs brings them.
fn mounts() -> Result<()> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let none = MsFlags::empty();
    file_system("proc", "/proc", safe, None)?;
    file_system("sysfs", "/sys", safe, None)?;
    file_system("devtmpfs", "/dev", MsFlags::MS_NOSUID, Some("mode=755"))?;
    file_system("tmpfs", "/run", MsFlags::MS_NOSUID, Some("mode=755"))?;
    file_system("cgroup2", hierarchy::ROOT, safe, None)?;
    hierarchy::delegate(Path::new(hierarchy::ROOT))?;
    for (directory, mode) in [(SHARE, 0o700), (CONTAINERS, 0o755)] {
        let mode = nix::sys::stat::Mode::from_bits_retain(mode);
        mkdir(directory, mode).during(|| format!("create {directory}"))?;
    }
    // The source of a virtio-fs mount is the tag of the device.
    mount(
        Some(protocol::SHARE_TAG),
        SHARE,
        Some("virtiofs"),
        none,
        None::<&str>,
    )
    .during(|| "mount the share")
}

fn file_system(kind: &str, target: &str, flags: MsFlags, data: Option<&str>) -> Result<()> {
    mount(Some(kind), target, Some(kind), flags, data).during(|| format!("mount {target}"))
}

/// Puts a second mount of the root over the first. pivot_root(2) cannot leave the initial root,
/// since no mount is below it to be pivoted against. Before any other mount, so that none is doubled.
fn leave_initial_root() -> Result<()> {
    let what = || "leave the initial root";
    let copy = sys::open_tree(AT_FDCWD, c"/", libc::OPEN_TREE_CLONE).during(what)?;
    let root = sys::open_tree(AT_FDCWD, c"/", 0).during(what)?;
    sys::attach(&copy, root).during(what)?;
    fchdir(&copy).during(what)?;
    chroot(".").during(what)
}
