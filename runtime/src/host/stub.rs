//! The process of this host that stands for a process of the guest, one that was executed or the init of a container in
//! the machine of another one: callers signal it, wait for it and read its exit status.
//!
//! ```text
//!  verb                                       machine process
//!   exec ───────────────────────────────────────> executes the program; from now on the connection stands for it
//!   clone into the container's cgroup ──> stub
//!         <──────────ready───────────────   its own session, no privilege, none of the caller's descriptors
//!   pid file
//!         ───────────commit──────────────>  attends: signals and window sizes to the machine process, until
//!   ends                                      <──────────────────────────────────── Exited
//!                                           ends the same way
//! ```
//! What the machine process says is parsed here, and it may have been taken over. So a stub has nothing else: no
//! privilege, no file system, no uid that another process has, no further descriptor, process or file. After it is
//! ready it makes these system calls and no others: `sendto`, `recvfrom`, `poll`, `read`, `ioctl(TIOCGWINSZ)`; to end,
//! `rt_sigaction`, `rt_sigprocmask`, `getpid`, `gettid`, `tgkill`, `exit_group`; `brk`, `mmap`, `munmap` for memory and
//! `close`, with `fcntl(F_GETFD)` before it in debug builds.
//!
//! Invariants: the machine process kills the program when the connection ends, so it dies with whoever holds the
//! connection: with the verb until the stub is cloned, with the stub from then on. A stub that is not committed ends
//! when its verb does. A verb that waits for the process is its stub itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{chdir, fchdir, pivot_root, setsid};
use protocol::{Exit, TerminalSize};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, move_mount};
use rustix::process::ioctl_tiocsctty;
use rustix::thread::CapabilitySet;

use super::attendant::{self, Attendant};
use super::selinux::Transition;
use super::{network, terminal};
use crate::control::{Connection, ControlReply, ExecControl};
use crate::error::{Doing, SystemError};
use crate::filter;
use crate::ids::Ids;
use crate::state::Network;
use crate::sys::{close_all_but, end_as, exit_now};

/// How a process ended.
pub(crate) struct Ended {
    pub(crate) exit: Exit,
    /// The guest's kernel has killed because memory ran out.
    short: bool,
}

/// Attends a process until it ends; how it ended. `resized` sees to the window and returns its size, for a
/// process with a terminal; `passes` says which signals the process gets.
pub(crate) fn attend(
    connection: &Connection,
    signals: &SignalFd,
    resized: Option<&dyn Fn() -> Option<TerminalSize>>,
    passes: impl Fn(i32) -> bool,
) -> io::Result<Ended> {
    let mut short = false;
    let ended = |exit, short| Ok(Ended { exit, short });
    let resize = || {
        if let Some(size) = resized.and_then(|resized| resized()) {
            tell(connection, &ExecControl::Resize(size));
        }
    };
    resize();
    loop {
        let mut polled = [
            PollFd::new(connection.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut polled, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        if polled[0].any() == Some(true) {
            match connection.receive() {
                Ok(Some(ControlReply::Exited(exit))) => return ended(exit, short),
                Ok(Some(ControlReply::OutOfMemory)) => short = true,
                // Nothing else is said while a process runs.
                Ok(Some(_)) => {}
                // The container has ended, and with it all of its processes.
                Ok(None) | Err(_) => return ended(Exit::Signal(libc::SIGKILL), short),
            }
        }
        while let Some(info) = signals.read_signal()? {
            match i32::try_from(info.ssi_signo) {
                Ok(libc::SIGWINCH) if resized.is_some() => resize(),
                Ok(signal) if passes(signal) => tell(connection, &ExecControl::Kill(signal)),
                _ => {}
            }
        }
    }
}

/// A machine process that has gone is heard of by the connection.
fn tell(connection: &Connection, request: &ExecControl) {
    let _ = connection.steer(request);
}

/// Where a stub lives, and as what.
pub(crate) struct Place<'a> {
    /// Its network namespace.
    pub(crate) network: InNetwork<'a>,
    /// The container's cgroup v2 directory.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// `/proc/<pid>/oom_score_adj`; as inherited if `None`.
    pub(crate) oom_score_adj: Option<i32>,
    /// As whom it may run.
    pub(crate) ids: Ids,
    /// Its SELinux label.
    pub(crate) label: Option<&'a str>,
    /// What it has because it is a container's init for those who look at it, if it is.
    pub(crate) init: Option<Init>,
}

/// Which network namespace a stub lives in.
#[derive(Debug, Clone, Copy)]
pub(crate) enum InNetwork<'a> {
    /// That of the process of this pidfd.
    Of(BorrowedFd<'a>),
    /// The container's own.
    Own(&'a Network),
}

/// What the stub of an init has.
pub(crate) struct Init {
    /// `memory.max` of its cgroup, in which it is alone, open for writing. Where memory has run out in the guest, it does
    /// so here: who watches the cgroup hears of it from the host's kernel.
    pub(crate) limit: Option<OwnedFd>,
}

/// Makes the stub for the process that `connection` stands for. `terminal`, the slave of the process's terminal, is its
/// controlling terminal.
pub(crate) fn make(
    connection: &Connection,
    terminal: Option<&OwnedFd>,
    place: &Place<'_>,
) -> io::Result<Attendant> {
    let settle =
        |null: &OwnedFd, sync: &UnixStream| settle(connection, terminal, null, place, sync);
    Attendant::new(place.cgroup, settle, |signals| {
        live(connection, terminal, place, &signals)
    })
}

/// The life of a stub.
fn live(
    connection: &Connection,
    terminal: Option<&OwnedFd>,
    place: &Place<'_>,
    signals: &SignalFd,
) -> ! {
    let size = || terminal.and_then(terminal::size);
    let resized = terminal.is_some().then_some(&size as &dyn Fn() -> _);
    match attend(connection, signals, resized, |_| true) {
        Ok(ended) => {
            if let Some(limit) = place.init.as_ref().and_then(|init| init.limit.as_ref())
                && ended.short
                && ended.exit.is_killed()
            {
                // With no memory allowed the kernel ends this process as it has ended the container's.
                let _ = nix::unistd::write(limit, b"0");
            }
            end_as(ended.exit)
        }
        Err(_) => exit_now(1),
    }
}

/// Leaves the caller: its session, directory, network, descriptors and privileges. Every signal that can be caught is
/// an event from now on.
fn settle(
    connection: &Connection,
    terminal: Option<&OwnedFd>,
    null: &OwnedFd,
    place: &Place<'_>,
    sync: &UnixStream,
) -> Result<SignalFd, SystemError> {
    setsid().doing("start a session")?;
    chdir("/").doing("leave the directory")?;
    match place.network {
        InNetwork::Of(process) => setns(process, CloneFlags::CLONE_NEWNET)
            .doing("enter the container's network namespace")?,
        InNetwork::Own(network) => network::enter(network)?,
    }
    attendant::replace_standard_streams(null).doing("replace the standard streams")?;
    if let Some(score) = place.oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", score.to_string()).doing("set oom_score_adj")?;
    }
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let mut keep = vec![
        stdin.as_fd(),
        stdout.as_fd(),
        stderr.as_fd(),
        connection.as_fd(),
        sync.as_fd(),
    ];
    keep.extend(terminal.map(AsFd::as_fd));
    let init = place.init.as_ref();
    let limit = init.and_then(|init| init.limit.as_ref());
    keep.extend(limit.map(AsFd::as_fd));
    #[allow(unsafe_code, reason = "only here are the descriptors known")]
    // SAFETY: this process is a copy that never returns into the verb's code, so the verb's values are neither used nor
    // dropped here; of the arguments the descriptors are kept.
    unsafe { close_all_but(&keep) }.doing("close inherited descriptors")?;

    let transition = Transition::to(place.label)?;

    let mut caught = SigSet::all();
    caught.remove(Signal::SIGCHLD);
    caught.remove(Signal::SIGPIPE);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&caught), None).doing("block signals")?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&caught, flags).doing("create a signalfd")?;
    match terminal.map(ioctl_tiocsctty) {
        // Whoever shows the terminal has already gone: the machine process tells the program.
        None | Some(Ok(()) | Err(rustix::io::Errno::IO)) => {}
        Some(Err(e)) => return Err(e).doing("take the terminal"),
    }
    // The init of a container has a mount namespace: who enters it must not find the host's files.
    if init.is_some() {
        leave_mounts().doing("leave the host's mounts")?;
    } else {
        attendant::empty_files()
            .and_then(|root| attendant::leave_files(&root))
            .doing("leave the host's files")?;
    }
    // As many as are polled at once. Those that are open are more already, so that there can be no other.
    attendant::drop_privileges(place.ids.own(), CapabilitySet::empty(), 2)
        .doing("drop privileges")?;
    transition.map_or(Ok(()), Transition::take)?;
    filter::set(filter::STUB).doing("filter system calls")?;
    Ok(signals)
}

/// Makes an empty file system the root of a mount namespace of its own, in which there is nothing else.
fn leave_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    let root = attendant::empty_files()?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(root.as_fd(), c"", CWD, c"/", flags)?;
    fchdir(&root)?;
    // pivot_root(2), NOTES: both in one place, the old root on top, to be taken off.
    pivot_root(".", ".")?;
    Ok(umount2(".", MntFlags::MNT_DETACH)?)
}
