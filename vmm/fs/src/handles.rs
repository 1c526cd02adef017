//! The files and directories the guest has open.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::directory::Stream;
use crate::errno::{Errno, Result};

/// One OPEN, CREATE, TMPFILE or OPENDIR, until its RELEASE or RELEASEDIR.
pub(crate) struct Handle {
    nodeid: u64,
    fd: OwnedFd,
    /// Where reading stands, for a directory.
    pub(crate) stream: Option<Mutex<Stream>>,
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// All of them, by the number the guest was given (`fh`). Numbers are never given twice.
pub(crate) struct Handles {
    open: RwLock<HashMap<u64, Arc<Handle>>>,
    next: AtomicU64,
    limit: usize,
}

impl Handles {
    /// None yet, and `limit` at most.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            open: RwLock::default(),
            next: AtomicU64::new(1),
            limit,
        }
    }

    /// Fails with ENFILE if there are as many as there may be.
    pub(crate) fn check_room(&self) -> Result<()> {
        let count = self
            .open
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len();
        if count < self.limit {
            Ok(())
        } else {
            Err(Errno(libc::ENFILE))
        }
    }

    /// Keeps `fd` open for the guest; the number. `directory`: it is one.
    pub(crate) fn insert(&self, nodeid: u64, fd: OwnedFd, directory: bool) -> Result<u64> {
        let stream = directory.then(Mutex::default);
        let handle = Arc::new(Handle { nodeid, fd, stream });
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= self.limit {
            drop(open);
            return Err(Errno(libc::ENFILE));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        open.insert(number, handle);
        Ok(number)
    }

    /// The handle `number` of the inode `nodeid`; EBADF if there is none, or it is another's.
    pub(crate) fn get(&self, nodeid: u64, number: u64) -> Result<Arc<Handle>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&number)
            .filter(|handle| handle.nodeid == nodeid)
            .cloned()
            .ok_or(Errno(libc::EBADF))
    }

    /// As [`Handles::get`], of a regular file.
    pub(crate) fn file(&self, nodeid: u64, number: u64) -> Result<Arc<Handle>> {
        self.get(nodeid, number)
            .and_then(|handle| match handle.stream {
                None => Ok(handle),
                Some(_) => Err(Errno(libc::EISDIR)),
            })
    }

    /// Gives the handle up; EBADF as in [`Handles::get`].
    pub(crate) fn remove(&self, nodeid: u64, number: u64) -> Result<()> {
        let handle = {
            let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
            if open
                .get(&number)
                .is_none_or(|handle| handle.nodeid != nodeid)
            {
                return Err(Errno(libc::EBADF));
            }
            open.remove(&number)
        };
        // Closing the last descriptor of an unlinked file frees its blocks: not under the lock.
        drop(handle);
        Ok(())
    }

    /// Gives all of them up.
    pub(crate) fn clear(&self) {
        let all = std::mem::take(&mut *self.open.write().unwrap_or_else(PoisonError::into_inner));
        drop(all);
    }
}
