//! The state of a thread that serves requests: working directory, umask, credentials.
//!
//! ```text
//! plain thread --enter_worker_thread--> worker <--assume / drop of Assumed--> worker as (uid, gid)
//! ```
//! Invariants of a worker between two requests: fsuid and fsgid are 0; its umask is that of
//! the request that has made a file last; its permitted capabilities are [`NEEDED`] at most; `CAP_FSETID` is *not*
//! effective.
//!
//! Why not: without it the host kernel clears set-user-ID, set-group-ID and file capabilities when a
//! worker writes to or truncates a file, as `FUSE_HANDLE_KILLPRIV_V2` asks, at no cost per write.
//! (In a user namespace the kernel clears them anyway: it asks for the capability in the initial
//! one.) The operations that must keep a set-group-ID bit the guest kernel has allowed (chmod and
//! creation) raise the capability for their one system call.

use std::cell::Cell;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::thread::CapabilitySet;

use crate::errno::{Errno, Result};
use crate::error::Error;
use crate::sys;

/// What serving needs, the same set that the jail leaves.
const NEEDED: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// What a umask can hold back.
const MASKED: u32 = 0o777;

#[derive(Clone, Copy)]
struct Worker {
    permitted: CapabilitySet,
    /// Whether the effective capabilities follow the file system uid (`capabilities(7)`).
    fixup: bool,
    /// The descriptor whose directory is the working directory, once one is.
    directory: Option<RawFd>,
    umask: u32,
}

thread_local! {
    static WORKER: Cell<Option<Worker>> = const { Cell::new(None) };
}

/// Makes the calling thread one that may call [`crate::Server::serve`]: a working directory and
/// umask of its own (umask 0), and no capability but those that serving needs.
///
/// Must be called once at the start of every such thread, after the process has been jailed:
/// credentials belong to threads, so a thread made earlier keeps what the jail has dropped.
///
/// # Errors
/// [`Error::Worker`] if the kernel refuses one of these steps; the thread must not serve then.
pub fn enter_worker_thread() -> std::result::Result<(), Error> {
    let enter = || {
        sys::unshare_fs()?;
        sys::umask(0);
        // Files belong to root unless a request says otherwise, whoever this process is.
        sys::setfsgid(0);
        sys::setfsuid(0);
        if sys::setfsuid(u32::MAX) != 0 || sys::setfsgid(u32::MAX) != 0 {
            return Err(Errno(libc::EPERM));
        }
        let permitted = sys::permitted()? & NEEDED;
        let fixup = !sys::no_setuid_fixup()?;
        sys::capset(permitted - CapabilitySet::FSETID, permitted)?;
        WORKER.set(Some(Worker {
            permitted,
            fixup,
            directory: None,
            umask: 0,
        }));
        Ok(())
    };
    enter().map_err(|errno: Errno| Error::Worker(errno.into()))
}

/// Whether this thread has been made a worker.
pub(crate) fn is_worker() -> bool {
    WORKER.get().is_some()
}

fn current() -> Result<Worker> {
    WORKER.get().ok_or(Errno(libc::EIO))
}

/// Makes `proc` (`/proc/self/fd`) the working directory, which the extended attribute calls need:
/// they take a path only.
pub(crate) fn stand_in(proc: BorrowedFd<'_>) -> Result<()> {
    let worker = current()?;
    let directory = Some(sys::number(proc));
    if worker.directory != directory {
        sys::fchdir(proc)?;
        WORKER.set(Some(Worker {
            directory,
            ..worker
        }));
    }
    Ok(())
}

/// Makes `umask` what new files do not get: the host's kernel leaves it out where the directory's default access list
/// decides.
pub(crate) fn mask(umask: u32) -> Result<()> {
    let worker = current()?;
    let umask = umask & MASKED;
    if worker.umask != umask {
        sys::umask(umask);
        WORKER.set(Some(Worker { umask, ..worker }));
    }
    Ok(())
}

/// The credentials of a request's caller, worn until dropped.
#[must_use = "the credentials are given back when this is dropped"]
pub(crate) struct Assumed {
    worker: Worker,
    ids: bool,
    raised: bool,
}

/// Creates in the name of `uid`:`gid`, still able to pass any permission check (the guest kernel has
/// made them). `fsetid`: a set-group-ID bit in the mode is kept, whatever groups this thread is in.
pub(crate) fn assume(uid: u32, gid: u32, fsetid: bool) -> Result<Assumed> {
    let worker = current()?;
    if uid == u32::MAX || gid == u32::MAX {
        return Err(Errno(libc::EINVAL));
    }
    let mut assumed = Assumed {
        worker,
        ids: false,
        raised: false,
    };
    if (uid, gid) != (0, 0) {
        assumed.ids = true;
        sys::setfsgid(gid);
        sys::setfsuid(uid);
        // The calls do not fail; asking for the impossible id tells what they have done.
        if sys::setfsuid(u32::MAX) != uid || sys::setfsgid(u32::MAX) != gid {
            return Err(Errno(libc::EOVERFLOW));
        }
    }
    if fsetid || (assumed.ids && worker.fixup) {
        assumed.raised = true;
        let effective = match fsetid {
            true => worker.permitted,
            false => worker.permitted - CapabilitySet::FSETID,
        };
        sys::capset(effective, worker.permitted)?;
    }
    Ok(assumed)
}

/// Keeps set-group-ID bits that the guest kernel has allowed, in the server's own name.
pub(crate) fn keep_set_id() -> Result<Assumed> {
    assume(0, 0, true)
}

impl Drop for Assumed {
    fn drop(&mut self) {
        let mut restored = true;
        if self.ids {
            sys::setfsuid(0);
            sys::setfsgid(0);
            restored = sys::setfsuid(u32::MAX) == 0 && sys::setfsgid(u32::MAX) == 0;
        }
        if self.raised || (self.ids && self.worker.fixup) {
            let effective = self.worker.permitted - CapabilitySet::FSETID;
            restored &= sys::capset(effective, self.worker.permitted).is_ok();
        }
        if !restored {
            // Serving on with another user's credentials would give files to the wrong owner.
            std::process::abort();
        }
    }
}
