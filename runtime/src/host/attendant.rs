//! A process of this host that stays behind when its verb has ended: it attends a container, from a jail of its own.
//!
//! ```text
//!  verb
//!   clone into the container's cgroup ──> attendant
//!         <──────────ready───────────────   has settled in its jail
//!         ───────────commit──────────────>  lives
//!   ends
//! ```
//! Invariant: one that is not committed ends when its verb does.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{
    Pid, chroot, dup2_stderr, dup2_stdin, dup2_stdout, fchdir, setgroups, setresgid, setresuid,
};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

use crate::error::SystemError;
use crate::sys::{Cloned, clone_process, exit_now};

/// What one says when it is ready. Anything else is the text of an error.
const READY: &[u8] = b"ready";

/// Maximum length of the text of an error, in bytes.
const TEXT_MAX: u64 = 4096;

/// An attendant that ends with this value unless it is committed.
pub(crate) struct Attendant {
    pid: Pid,
    sync: Option<UnixStream>,
}

impl Attendant {
    /// Makes one in a cgroup v2 directory. `settle`, which is given /dev/null and the socket to keep until it is
    /// committed, puts it into its jail; `live` is what it does from then on, until it ends.
    pub(super) fn new<T>(
        cgroup: Option<BorrowedFd<'_>>,
        settle: impl FnOnce(&OwnedFd, &UnixStream) -> Result<T, SystemError>,
        live: impl FnOnce(T),
    ) -> io::Result<Attendant> {
        let (ours, theirs) = UnixStream::pair()?;
        // Opened before it is in the cgroup, whose device rules may deny it.
        let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
        match clone_process(cgroup)? {
            Cloned::Child => {
                drop(ours);
                let settled = begin(theirs, |sync| settle(&null, sync));
                let code = u8::from(settled.is_none());
                if let Some(settled) = settled {
                    live(settled);
                }
                exit_now(code)
            }
            Cloned::Parent(pid) => {
                drop(theirs);
                let attendant = Attendant {
                    pid: Pid::from_raw(pid),
                    sync: Some(ours),
                };
                attendant.await_ready()?;
                Ok(attendant)
            }
        }
    }

    /// Its process id.
    #[must_use]
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// From here on it lives as long as it has something to attend.
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

impl Drop for Attendant {
    fn drop(&mut self) {
        if self.sync.is_some() {
            let _ = kill(self.pid, Signal::SIGKILL);
            while waitpid(self.pid, None) == Err(Errno::EINTR) {}
        }
    }
}

/// What has settled, once it is committed; nothing if it could not settle or its verb has gone, and with it the wish for
/// it.
fn begin<T>(
    mut sync: UnixStream,
    settle: impl FnOnce(&UnixStream) -> Result<T, SystemError>,
) -> Option<T> {
    match settle(&sync) {
        Ok(settled) => {
            let ready = sync.write_all(READY);
            let committed = ready.and_then(|()| sync.read_exact(&mut [0]));
            committed.is_ok().then_some(settled)
        }
        Err(e) => {
            // Long enough to be told from the word for readiness.
            let _ = write!(sync, "cannot {e}: {}", e.source);
            None
        }
    }
}

/// Has nothing of the caller's standard streams.
pub(super) fn replace_standard_streams(null: &OwnedFd) -> io::Result<()> {
    dup2_stdin(null)?;
    dup2_stdout(null)?;
    dup2_stderr(null)?;
    Ok(())
}

/// Makes a mount the root that is mounted nowhere. Without the capability to there is no way back, nor a descriptor of a
/// directory.
pub(super) fn leave_files(root: &OwnedFd) -> io::Result<()> {
    fchdir(root)?;
    Ok(chroot(".")?)
}

/// A detached mount of an empty file system that stays so.
pub(super) fn empty_files() -> io::Result<OwnedFd> {
    detached_files(MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV)
}

/// A detached mount of an empty file system, without programs.
pub(super) fn detached_files(attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let fs = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(fs.as_fd())?;
    let attributes =
        attributes | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// Has no id that another process has, no capability but these, no more than `descriptors` open at a time, and nothing
/// of what is counted by user.
pub(super) fn drop_privileges(id: u32, keep: CapabilitySet, descriptors: u64) -> io::Result<()> {
    for resource in [
        Resource::RLIMIT_CORE,
        Resource::RLIMIT_FSIZE,
        Resource::RLIMIT_MEMLOCK,
        Resource::RLIMIT_MSGQUEUE,
        Resource::RLIMIT_NPROC,
    ] {
        setrlimit(resource, 0, 0)?;
    }
    setrlimit(Resource::RLIMIT_NOFILE, descriptors, descriptors)?;
    if !keep.is_empty() {
        prctl::set_keepcaps(true)?;
    }
    setgroups(&[])?;
    setresgid(id.into(), id.into(), id.into())?;
    setresuid(id.into(), id.into(), id.into())?;
    let sets = CapabilitySets {
        effective: keep,
        permitted: keep,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets)?;
    set_no_new_privs(true)?;
    // The signal that ends it leaves no dump of it.
    Ok(prctl::set_dumpable(false)?)
}
