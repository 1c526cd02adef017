//! The process of this host that has a machine follow its container's network.
//!
//! ```text
//!  verb                                        machine process
//!   start ──────────────the network──────────────>  joins it, executes the program
//!   clone into the container's cgroup ──> watcher
//!   ends                                   │  hears of a change in the network namespace, makes taps,
//!                                          ├────what has changed────> does it to the guest's network
//!                                          │  <───────done───────────
//!                                          └── ends with the machine
//! ```
//! A machine process has no privilege in the namespace, and is to have none. A watcher has CAP_NET_ADMIN, a file system
//! that holds /dev/net/tun alone, a uid that no other process has and the system calls of its kind
//! (`system-calls.md`). It takes nothing from the machine process but whether a change was made: it may have been taken
//! over. What the kernel says of the namespace is root's doing on this host, not the guest's, whose frames do not get to
//! the host's stack.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::stat::{Mode, SFlag, mkdirat, mknodat, stat};
use nix::unistd::{chdir, setsid};
use rustix::mount::MountAttrFlags;
use rustix::thread::{CapabilitySet, set_name};

use super::attendant::{self, Attendant};
use super::network::{TUN, Tell, Watch};
use super::selinux::Transition;
use crate::control::{Connection, Control, ControlReply, Error, NetworkChange};
use crate::error::{Doing, SystemError};
use crate::filter;
use crate::ids::Ids;
use crate::sys::{self, MountChange, close_all_but};

/// The name by which `/proc` tells a watcher from a stub.
pub(crate) const NAME: &str = "network";

/// What it has of root's privileges.
pub(crate) const CAPABILITIES: CapabilitySet = CapabilitySet::NET_ADMIN;

/// Maximum number of its descriptors: three standard streams, two sockets to the kernel and a file of its, the connection;
/// and the taps of a change.
const DESCRIPTORS_MAX: u64 = 8 + crate::control::DESCRIPTORS_MAX as u64;

/// Where a watcher lives, and as what.
pub(crate) struct Place<'a> {
    /// The pidfd of a process in the network namespace.
    pub(crate) process: BorrowedFd<'a>,
    /// The container's cgroup v2 directory, if the watcher can do its work there; else it stays in the caller's.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// As whom it may run.
    pub(crate) ids: Ids,
    /// Its SELinux label.
    pub(crate) label: Option<&'a str>,
}

/// Makes the watcher of a container, whose machine it tells by the connection.
pub(crate) fn make(
    watch: Watch,
    connection: &Connection,
    place: &Place<'_>,
) -> io::Result<Attendant> {
    // Taken by the process that is made.
    let watch = Cell::new(Some(watch));
    let attempt = |cgroup| {
        let settle = |null: &OwnedFd, sync: &UnixStream| {
            let watch = watch.take().ok_or(Errno::EALREADY).doing("watch")?;
            settle(connection, &watch, null, place, sync)?;
            Ok(watch)
        };
        Attendant::new(cgroup, settle, |watch| live(watch, connection))
    };
    match attempt(place.cgroup) {
        // A cgroup may deny all devices, as that of a pod of Podman's does.
        Err(_) if place.cgroup.is_some() => attempt(None),
        made => made,
    }
}

/// The life of a watcher.
fn live(mut watch: Watch, connection: &Connection) {
    let mut tell = |change, taps: &[OwnedFd]| tell(connection, change, taps);
    while attend(&mut watch, connection, &mut tell).is_some() {}
}

/// Waits for a change, and has the machine follow it. Nothing: there is no machine any more.
fn attend(watch: &mut Watch, connection: &Connection, tell: &mut Tell<'_>) -> Option<()> {
    let mut polled = [
        PollFd::new(connection.as_fd(), PollFlags::POLLIN),
        PollFd::new(watch.events(), PollFlags::POLLIN),
    ];
    match poll(&mut polled, PollTimeout::NONE) {
        Err(Errno::EINTR) => return Some(()),
        Err(_) => return None,
        Ok(_) => {}
    }
    // A machine says nothing that it has not been asked for.
    if polled[0].any() == Some(true) {
        return None;
    }
    watch.look(tell)
}

/// Asks the machine for a change, and waits for its answer however long that takes: a container that is paused follows
/// when it goes on.
fn tell(
    connection: &Connection,
    change: NetworkChange,
    taps: &[OwnedFd],
) -> Option<Result<(), String>> {
    let taps: Vec<BorrowedFd<'_>> = taps.iter().map(AsFd::as_fd).collect();
    match connection.ask_with(&Control::Network(change), &taps) {
        Ok(()) => {}
        Err(e @ Error::TooLarge { .. }) => return Some(Err(e.to_string())),
        Err(_) => return None,
    }
    match connection.receive() {
        Ok(Some(ControlReply::Done)) => Some(Ok(())),
        Ok(Some(ControlReply::Failed(text))) => Some(Err(text)),
        Ok(_) | Err(_) => None,
    }
}

/// Leaves the caller: its session, directory, descriptors and all privileges but one.
fn settle(
    connection: &Connection,
    watch: &Watch,
    null: &OwnedFd,
    place: &Place<'_>,
    sync: &UnixStream,
) -> Result<(), SystemError> {
    setsid().doing("start a session")?;
    chdir("/").doing("leave the directory")?;
    set_name(&std::ffi::CString::new(NAME).unwrap_or_default()).doing("take a name")?;
    setns(place.process, CloneFlags::CLONE_NEWNET)
        .doing("enter the container's network namespace")?;
    attendant::replace_standard_streams(null).doing("replace the standard streams")?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let own = [
        stdin.as_fd(),
        stdout.as_fd(),
        stderr.as_fd(),
        connection.as_fd(),
        sync.as_fd(),
    ];
    let keep: Vec<BorrowedFd<'_>> = own.into_iter().chain(watch.descriptors()).collect();
    #[allow(unsafe_code, reason = "only here are the descriptors known")]
    // SAFETY: this process is a copy that never returns into the verb's code, so the verb's values are neither used nor
    // dropped here; of the arguments the descriptors are kept.
    unsafe { close_all_but(&keep) }.doing("close inherited descriptors")?;
    let transition = Transition::to(place.label)?;
    // Who wants it to end sends SIGKILL, or ends the machine.
    let all = SigSet::all();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None).doing("block signals")?;
    let id = place.ids.own();
    files(id)
        .and_then(|files| attendant::leave_files(&files))
        .doing("leave the host's files")?;
    attendant::drop_privileges(id, CAPABILITIES, DESCRIPTORS_MAX).doing("drop privileges")?;
    transition.map_or(Ok(()), Transition::take)?;
    filter::set(filter::WATCH).doing("filter system calls")
}

/// A detached mount of a file system that holds /dev/net/tun alone, for a user.
fn files(id: u32) -> io::Result<OwnedFd> {
    let files = attendant::detached_files(MountAttrFlags::empty())?;
    let device = stat(TUN)?.st_rdev;
    let tun = TUN.trim_start_matches('/');
    let (directory, _) = tun.rsplit_once('/').unwrap_or_default();
    for (end, _) in directory.match_indices('/').chain([(directory.len(), "")]) {
        mkdirat(&files, &directory[..end], Mode::from_bits_truncate(0o755))?;
    }
    let mode = Mode::from_bits_truncate(0o600);
    mknodat(&files, tun, SFlag::S_IFCHR, mode, device)?;
    // Whether it can be had is to be known now.
    openat(&files, tun, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    nix::unistd::fchownat(
        &files,
        tun,
        Some(id.into()),
        None,
        nix::fcntl::AtFlags::empty(),
    )?;
    let read_only = MountChange {
        set: libc::MOUNT_ATTR_RDONLY,
        ..MountChange::default()
    };
    sys::mount_setattr(files.as_fd(), &read_only, false)?;
    Ok(files)
}
