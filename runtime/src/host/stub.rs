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

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{
    Pid, chdir, chroot, dup2_stderr, dup2_stdin, dup2_stdout, fchdir, pivot_root, setgroups,
    setresgid, setresuid, setsid,
};
use protocol::{Exit, TerminalSize};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsmount, fsopen,
    move_mount,
};
use rustix::process::ioctl_tiocsctty;
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

use super::selinux::Transition;
use super::{network, terminal};
use crate::control::{Connection, ControlReply, ExecControl};
use crate::error::{Doing, SystemError};
use crate::filter;
use crate::ids::Ids;
use crate::state::Network;
use crate::sys::{Cloned, clone_process, close_all_but, end_as, exit_now};

/// What a stub says when it is ready. Anything else is the text of an error.
const READY: &[u8] = b"ready";

/// Maximum length of the text of a stub's error, in bytes.
const TEXT_MAX: u64 = 4096;

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

/// A stub that ends with this value unless it is committed.
pub(crate) struct Stub {
    pid: Pid,
    sync: Option<UnixStream>,
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

impl Stub {
    /// Makes a stub for the process that `connection` stands for. `terminal`, the slave of the process's terminal, is
    /// its controlling terminal.
    pub(crate) fn new(
        connection: &Connection,
        terminal: Option<&OwnedFd>,
        place: &Place<'_>,
    ) -> io::Result<Stub> {
        let (ours, theirs) = UnixStream::pair()?;
        // Opened before it is in the cgroup, whose device rules may deny it.
        let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
        match clone_process(place.cgroup)? {
            Cloned::Child => {
                drop(ours);
                main(connection, terminal, &null, place, theirs)
            }
            Cloned::Parent(pid) => {
                drop(theirs);
                let stub = Stub {
                    pid: Pid::from_raw(pid),
                    sync: Some(ours),
                };
                stub.await_ready()?;
                Ok(stub)
            }
        }
    }

    /// Its process id.
    #[must_use]
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// From here on the stub lives until its process ends.
    pub(crate) fn commit(mut self) -> io::Result<()> {
        if let Some(mut sync) = self.sync.as_ref() {
            sync.write_all(&[0])?;
        }
        self.sync = None;
        Ok(())
    }

    fn await_ready(&self) -> io::Result<()> {
        let Some(sync) = self.sync.as_ref() else {
            return Ok(());
        };
        let mut word = [0; READY.len()];
        let mut text = Vec::new();
        match (&mut &*sync).read_exact(&mut word) {
            Ok(()) if word == READY => return Ok(()),
            Ok(()) => text.extend(word),
            Err(_) => return Err(io::Error::other("it ended unexpectedly")),
        }
        sync.take(TEXT_MAX).read_to_end(&mut text)?;
        Err(io::Error::other(
            String::from_utf8_lossy(&text).into_owned(),
        ))
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        if self.sync.is_some() {
            let _ = kill(self.pid, Signal::SIGKILL);
            while waitpid(self.pid, None) == Err(Errno::EINTR) {}
        }
    }
}

/// The life of a stub.
fn main(
    connection: &Connection,
    terminal: Option<&OwnedFd>,
    null: &OwnedFd,
    place: &Place<'_>,
    mut sync: UnixStream,
) -> ! {
    let signals = match settle(connection, terminal, null, place, &sync) {
        Ok(signals) => signals,
        Err(e) => {
            // Long enough to be told from the word for readiness.
            let _ = write!(sync, "cannot {e}: {}", e.source);
            exit_now(1)
        }
    };
    let committed = sync
        .write_all(READY)
        .and_then(|()| sync.read_exact(&mut [0]));
    if committed.is_err() {
        // The verb has gone, and with it the wish for the process.
        exit_now(1);
    }
    drop(sync);
    let size = || terminal.and_then(terminal::size);
    let resized = terminal.is_some().then_some(&size as &dyn Fn() -> _);
    match attend(connection, &signals, resized, |_| true) {
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
    replace_standard_streams(null).doing("replace the standard streams")?;
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
        leave_files().doing("leave the host's files")?;
    }
    drop_privileges(place.ids.own()).doing("drop privileges")?;
    transition.map_or(Ok(()), Transition::take)?;
    filter::set(filter::STUB).doing("filter system calls")?;
    Ok(signals)
}

fn replace_standard_streams(null: &OwnedFd) -> io::Result<()> {
    dup2_stdin(null)?;
    dup2_stdout(null)?;
    dup2_stderr(null)?;
    Ok(())
}

/// Makes an empty file system the root of a mount namespace of its own, in which there is nothing else.
fn leave_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    let root = empty_files()?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(root.as_fd(), c"", CWD, c"/", flags)?;
    fchdir(&root)?;
    // pivot_root(2), NOTES: both in one place, the old root on top, to be taken off.
    pivot_root(".", ".")?;
    Ok(umount2(".", MntFlags::MNT_DETACH)?)
}

/// Makes an empty file system that is mounted nowhere the root. Without the capability to there is no way back, nor a
/// descriptor of a directory.
fn leave_files() -> io::Result<()> {
    fchdir(&empty_files()?)?;
    Ok(chroot(".")?)
}

/// A detached mount of an empty file system that stays so.
fn empty_files() -> io::Result<OwnedFd> {
    let fs = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(fs.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

fn drop_privileges(id: u32) -> io::Result<()> {
    for resource in [
        Resource::RLIMIT_CORE,
        Resource::RLIMIT_FSIZE,
        Resource::RLIMIT_MEMLOCK,
        Resource::RLIMIT_MSGQUEUE,
        Resource::RLIMIT_NPROC,
    ] {
        setrlimit(resource, 0, 0)?;
    }
    // As many as are polled at once. Those that are open are more already, so that there can be no other.
    setrlimit(Resource::RLIMIT_NOFILE, 2, 2)?;
    setgroups(&[])?;
    setresgid(id.into(), id.into(), id.into())?;
    setresuid(id.into(), id.into(), id.into())?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none)?;
    set_no_new_privs(true)?;
    // The signal that ends the stub leaves no dump of it.
    Ok(nix::sys::prctl::set_dumpable(false)?)
}
