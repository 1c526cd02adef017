//! The files and directories the guest has open.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::errno::{Errno, Result};
use crate::stream::Stream;

/// One OPEN, CREATE, TMPFILE or OPENDIR, until its RELEASE or RELEASEDIR or, if the guest may keep it, until its inode
/// is forgotten.
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
    open: RwLock<Open>,
    next: AtomicU64,
    limit: usize,
}

#[derive(Default)]
struct Open {
    handles: foldhash::HashMap<u64, Arc<Handle>>,
    /// By nodeid, the handle that the guest may keep when it closes the file: one of an inode.
    kept: foldhash::HashMap<u64, u64>,
}

impl Open {
    fn remove(&mut self, number: u64) -> Option<Arc<Handle>> {
        let handle = self.handles.remove(&number)?;
        if self.kept.get(&handle.nodeid) == Some(&number) {
            self.kept.remove(&handle.nodeid);
        }
        Some(handle)
    }
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

    fn read(&self) -> RwLockReadGuard<'_, Open> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Open> {
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails with ENFILE if there are as many as there may be.
    pub(crate) fn check_room(&self) -> Result<()> {
        if self.read().handles.len() < self.limit {
            Ok(())
        } else {
            Err(Errno(libc::ENFILE))
        }
    }

    /// Keeps `fd` open for the guest; the number. `directory`: it is one.
    pub(crate) fn insert(&self, nodeid: u64, fd: OwnedFd, directory: bool) -> Result<u64> {
        let stream = directory.then(Mutex::default);
        let handle = Arc::new(Handle { nodeid, fd, stream });
        let mut open = self.write();
        if open.handles.len() >= self.limit {
            drop(open);
            return Err(Errno(libc::ENFILE));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        open.handles.insert(number, handle);
        Ok(number)
    }

    /// Whether the guest may keep the handle `number` of the inode `nodeid` beyond its last close. It may keep one of
    /// an inode, and a quarter of all that there can be.
    pub(crate) fn keep(&self, nodeid: u64, number: u64) -> bool {
        let mut open = self.write();
        let may = open.kept.len() < self.limit / 4 && !open.kept.contains_key(&nodeid);
        if may {
            open.kept.insert(nodeid, number);
        }
        may
    }

    /// The handle of the inode `nodeid` that the guest may keep.
    pub(crate) fn kept(&self, nodeid: u64) -> Option<u64> {
        self.read().kept.get(&nodeid).copied()
    }

    /// The handle `number` of the inode `nodeid`; EBADF if there is none, or it is another's.
    pub(crate) fn get(&self, nodeid: u64, number: u64) -> Result<Arc<Handle>> {
        self.read()
            .handles
            .get(&number)
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
            let mut open = self.write();
            let known = open.handles.get(&number);
            if known.is_none_or(|handle| handle.nodeid != nodeid) {
                return Err(Errno(libc::EBADF));
            }
            open.remove(number)
        };
        // Closing the last descriptor of an unlinked file frees its blocks: not under the lock.
        drop(handle);
        Ok(())
    }

    /// Gives all of them up.
    pub(crate) fn clear(&self) {
        let all = std::mem::take(&mut *self.write());
        drop(all);
    }
}
