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
use nix::sys::stat::Mode;
use protocol::Exit;

use crate::sys;

/// The files of a cgroup that have its limit of memory and what is in use.
pub(crate) const FILES: [&str; 2] = ["memory.max", "memory.current"];

/// Bytes that are taken at a time.
const STEP: usize = 16 << 20;

/// Most bytes that are taken: what a machine may have beside the limit of its container, and more (docs/configuration.md,
/// Memory). A limit that is farther away was not what the guest met, but one that the container has set itself.
const MOST: usize = 2 << 30;

/// The limit of memory of the machine's cgroup.
pub(super) struct Limit([File; 2]);

impl Limit {
    /// Opens it; `None` where the cgroup has none.
    pub(super) fn open(cgroup: BorrowedFd<'_>) -> io::Result<Option<Limit>> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let open = |name| Ok(File::from(openat(cgroup, name, flags, Mode::empty())?));
        match (open(FILES[0]), open(FILES[1])) {
            (Err(Errno::ENOENT), _) => Ok(None),
            (limit, used) => Ok(Some(Limit([limit?, used?]))),
        }
    }

    /// Takes memory until the host's kernel ends this process, if it is to end as if killed. Returns where there is no
    /// limit, where it is far away, and where the kernel does not kill.
    pub(super) fn meet(&self, exit: Exit) {
        if !exit.is_killed() {
            return;
        }
        let Some(left) = self.left().filter(|left| *left <= MOST) else {
            return;
        };
        for _ in 0..=left / STEP {
            if sys::take_memory(STEP).is_err() {
                return;
            }
        }
    }

    /// The descriptors, which are to survive into the jail.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd)
    }

    /// How many bytes are left; `None` if there is no limit, or it cannot be read.
    fn left(&self) -> Option<usize> {
        let [limit, used] = self.0.each_ref().map(read);
        Some(limit?.saturating_sub(used?))
    }
}

/// A number of bytes; `None` if it is none, or cannot be read.
fn read(mut file: &File) -> Option<usize> {
    let mut text = [0; 32];
    let length = file.read(&mut text).ok()?;
    str::from_utf8(text.get(..length)?)
        .ok()?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use nix::libc;

    use super::*;

    #[test]
    fn a_limit_that_is_not_there_or_far_away_is_not_met() {
        let cgroup = tempfile::tempdir().unwrap();
        let directory = File::open(cgroup.path()).unwrap();
        let open = || Limit::open(directory.as_fd()).unwrap();
        assert!(open().is_none());
        let write = |texts: [&str; 2]| {
            for (name, text) in FILES.into_iter().zip(texts) {
                std::fs::write(cgroup.path().join(name), text).unwrap();
            }
        };
        for (texts, left) in [
            (["max\n", "4096\n"], None),
            (["67108864\n", "4096\n"], Some((64 << 20) - 4096)),
            (["4096\n", "8192\n"], Some(0)),
            (["68719476736\n", "4096\n"], Some((64 << 30) - 4096)),
        ] {
            write(texts);
            assert_eq!(open().unwrap().left(), left);
        }
        // This process lives on.
        open().unwrap().meet(Exit::Code(137));
        write(["max\n", "4096\n"]);
        open().unwrap().meet(Exit::Signal(libc::SIGKILL));
        write(["67108864\n", "4096\n"]);
        open().unwrap().meet(Exit::Code(1));
    }
}
