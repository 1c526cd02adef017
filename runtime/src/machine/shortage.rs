//! A lack of memory in the guest, repeated on the host for those who look there: containerd and Docker take a container
//! for killed by a lack of memory when `memory.events` of its cgroup on the host says so.
//!
//! A machine process that is to end by SIGKILL, because the guest's kernel killed the container's first process, or one
//! whose end that process reports, takes memory until it meets its own limit. Then the host's kernel kills it and
//! counts it. Nothing else of the host can be harmed: the limit is that of its own cgroup.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use protocol::Exit;

use crate::sys;

/// The file of a cgroup that has its limit of memory.
pub(crate) const LIMIT: &str = "memory.max";

/// What a shell says of a program that SIGKILL has ended.
const KILLED: u8 = 128 + Signal::SIGKILL as u8;

/// Bytes that are taken at a time.
const STEP: usize = 16 << 20;

/// The limit of memory of the machine's cgroup.
pub(super) struct Limit(File);

impl Limit {
    /// Opens it; `None` where the cgroup has none.
    pub(super) fn open(cgroup: BorrowedFd<'_>) -> io::Result<Option<Limit>> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        match openat(cgroup, LIMIT, flags, Mode::empty()) {
            Err(Errno::ENOENT) => Ok(None),
            file => Ok(Some(Limit(File::from(file?)))),
        }
    }

    /// Takes memory until the host's kernel ends this process, if it is to end as if killed. Returns where there is no
    /// limit, and where the kernel does not kill.
    pub(super) fn meet(&self, exit: Exit) {
        if !matches!(exit, Exit::Code(KILLED) | Exit::Signal(libc::SIGKILL)) {
            return;
        }
        let Some(limit) = self.read() else {
            return;
        };
        // The process has some of it already.
        for _ in 0..=limit / STEP {
            if sys::take_memory(STEP).is_err() {
                return;
            }
        }
    }

    /// In bytes; `None` if there is none, or it cannot be read.
    fn read(&self) -> Option<usize> {
        let mut text = [0; 32];
        let length = (&self.0).read(&mut text).ok()?;
        str::from_utf8(text.get(..length)?)
            .ok()?
            .trim()
            .parse()
            .ok()
    }
}

impl AsFd for Limit {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_limit_nothing_is_taken() {
        let cgroup = tempfile::tempdir().unwrap();
        let directory = File::open(cgroup.path()).unwrap();
        let open = || Limit::open(directory.as_fd()).unwrap();
        assert!(open().is_none());
        std::fs::write(cgroup.path().join(LIMIT), "max\n").unwrap();
        assert_eq!(open().unwrap().read(), None);
        open().unwrap().meet(Exit::Code(KILLED));
        std::fs::write(cgroup.path().join(LIMIT), "67108864\n").unwrap();
        assert_eq!(open().unwrap().read(), Some(64 << 20));
        open().unwrap().meet(Exit::Code(1));
    }
}
