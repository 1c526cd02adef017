//! What a verb does in the mount namespace of a machine process, which has given up the right to do it itself.

use std::io;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::sys::{self, Cloned};

/// Runs `act` in the mount namespace of `pid`, in a process of its own, which leaves this one its namespace, root and
/// working directory. There `/` is what was mounted last on the root of the exported tree.
///
/// # Errors
/// Those of `act`, of which the error number alone is known, and those of getting there.
pub(super) fn inside(pid: i32, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let path = format!("/proc/{pid}/ns/mnt");
    let namespace = open(
        path.as_str(),
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let enter = || Ok(setns(&namespace, CloneFlags::CLONE_NEWNS)?);
    match sys::clone_process(None)? {
        Cloned::Child => {
            let result: io::Result<()> = enter().and_then(|()| act());
            let errno = result.err().map(|e| e.raw_os_error().unwrap_or(libc::EIO));
            sys::exit_now(errno.map_or(0, |errno| u8::try_from(errno).unwrap_or(u8::MAX)))
        }
        Cloned::Parent(pid) => match waitpid(Pid::from_raw(pid), None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(Errno::EINTR.into()),
        },
    }
}
