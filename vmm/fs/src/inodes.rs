//! The inodes of the guest and their descriptors: opening, re-opening, eviction.
//!
//! Locking: the table's lock is held for bookkeeping only, never over a system call. A request that
//! changes names holds the inodes concerned ([`Inodes::hold`]) over its system call, so that nobody
//! needs their old names while the new ones are not recorded yet.

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::errno::{Errno, Result};
use crate::identity::{Facts, Witness, examine};
use crate::sys;
use crate::table::{Entry, Limits, Place, Released, Table};

/// How every inode is opened: for its identity only, and never through a symbolic link.
const OPEN_PATH: libc::c_int = libc::O_PATH | libc::O_NOFOLLOW;
/// The longest chain of evicted directories that is opened again for one request. A path that the
/// guest can name in one call has at most 2048 components (`PATH_MAX`).
const MAX_CHAIN: usize = 4096;
/// How often re-opening is tried: a name may change between reading it and using it.
const ATTEMPTS: usize = 3;

/// An inode in use by a request: it stays open as long as this lives.
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) kind: u32,
    pub(crate) mount: u64,
    fd: Arc<OwnedFd>,
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Node {
    /// Fails with ENOTDIR unless it is a directory.
    pub(crate) fn directory(self) -> Result<Self> {
        if self.kind == libc::S_IFDIR {
            Ok(self)
        } else {
            Err(Errno(libc::ENOTDIR))
        }
    }
}

/// Opens the entry `name` of `dir`, whatever it is.
pub(crate) fn open_path(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    sys::openat(dir, name, OPEN_PATH, 0)
}

/// All inodes the guest knows.
pub(crate) struct Inodes {
    table: RwLock<Table>,
    /// [`crate::Config::lasting_mounts`].
    lasting: Option<HashSet<u64>>,
}

impl Inodes {
    /// The root alone.
    pub(crate) fn new(
        root: OwnedFd,
        facts: Facts,
        limits: Limits,
        lasting: Option<HashSet<u64>>,
    ) -> Self {
        Self {
            table: RwLock::new(Table::new(Arc::new(root), facts, limits)),
            lasting,
        }
    }

    /// Whether a descriptor of the object may be kept. What could not be recognised again is kept in any case.
    fn keeps(&self, facts: &Facts) -> bool {
        facts.witness == Witness::None || self.lasts(facts.key.mount)
    }

    /// Whether nobody but this process could take the mount away.
    pub(crate) fn lasts(&self, mount: u64) -> bool {
        let lasting = self.lasting.as_ref();
        lasting.is_none_or(|mounts| mounts.contains(&mount))
    }

    /// Whether the guest may name the inode.
    pub(crate) fn knows(&self, id: u64) -> bool {
        self.read().get(id).is_some_and(Entry::is_known)
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The inode `id` as the guest names it. ESTALE if the guest does not know it, or if it is not
    /// where it was.
    pub(crate) fn get(&self, id: u64) -> Result<Node> {
        let (kind, mount, fd) = {
            let table = self.read();
            let entry = table
                .get(id)
                .filter(|entry| entry.is_known())
                .ok_or(STALE)?;
            (entry.facts.kind, entry.facts.key.mount, entry.touch())
        };
        let fd = match fd {
            Some(fd) => fd,
            None => self.open_again(id)?,
        };
        Ok(Node {
            id,
            kind,
            mount,
            fd,
        })
    }

    fn open_again(&self, id: u64) -> Result<Arc<OwnedFd>> {
        let mut outcome = Err(STALE);
        for _ in 0..ATTEMPTS {
            outcome = self.open_chain(id);
            if !matches!(outcome, Err(STALE)) {
                break;
            }
        }
        outcome
    }

    /// Opens `id`, and before it those of its ancestors that are evicted, topmost first.
    fn open_chain(&self, id: u64) -> Result<Arc<OwnedFd>> {
        let mut chain = Vec::new();
        let mut dir = {
            let table = self.read();
            let mut at = id;
            loop {
                let entry = table.get(at).ok_or(STALE)?;
                if let Some(fd) = entry.touch() {
                    break fd;
                }
                if chain.len() == MAX_CHAIN {
                    return Err(STALE);
                }
                chain.push(at);
                at = entry.place.as_ref().ok_or(STALE)?.0;
            }
        };
        while let Some(id) = chain.pop() {
            dir = self.open_step(id, &dir)?;
        }
        Ok(dir)
    }

    /// Opens `id`, whose parent is `dir`, and makes sure that it is the object it was.
    fn open_step(&self, id: u64, dir: &OwnedFd) -> Result<Arc<OwnedFd>> {
        let (name, expected) = {
            let table = self.read();
            let entry = table.get(id).ok_or(STALE)?;
            if let Some(fd) = entry.touch() {
                return Ok(fd);
            }
            let (_, name) = entry.place.as_ref().ok_or(STALE)?;
            (name.clone(), entry.facts.clone())
        };
        let fd = open_path(dir.as_fd(), &name).map_err(|errno| match errno.0 {
            libc::ENOENT | libc::ENOTDIR => STALE,
            _ => errno,
        })?;
        if !examine(fd.as_fd())?.1.is_same_as(&expected) {
            return Err(STALE);
        }
        let fd = Arc::new(fd);
        // One whose name is about to change has to stay open, wherever it is.
        let held = { self.read().get(id).is_some_and(Entry::is_held) };
        if !held && !self.keeps(&expected) {
            return Ok(fd);
        }
        let fd = self.write().install(id, fd);
        // After each step, so that a long chain is not open all at once.
        self.evict_surplus();
        fd
    }

    /// Closes descriptors of inodes that were not used lately, down to the limit.
    fn evict_surplus(&self) {
        // Each round evicts one, or finds one in use; the bound only guards against the latter.
        for _ in 0..64 {
            let Some((id, fd)) = ({ self.write().victim() }) else {
                return;
            };
            // What it is recognised by later is read now: an overlay file system that has copied
            // the object up meanwhile reports another time of birth than at first.
            let Ok((stat, facts)) = examine(fd.as_fd()) else {
                return;
            };
            let facts = (stat.links() > 0).then_some(facts);
            let mut released = Released::new();
            self.write().evict(id, &fd, facts, &mut released);
            drop(released);
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Table, &mut Released) -> T) -> T {
        let mut released = Released::new();
        let outcome = change(&mut self.write(), &mut released);
        drop(released);
        outcome
    }

    /// Counts a lookup of the object with `facts` that was found at `place` (`None`: nowhere); its
    /// nodeid. `fd`: its `O_PATH` descriptor, if there is one.
    pub(crate) fn admit(
        &self,
        place: Option<Place<'_>>,
        fd: Option<OwnedFd>,
        facts: Facts,
    ) -> Result<u64> {
        // What has no name could not be opened again.
        let keeps = place.is_none() || self.keeps(&facts);
        let fd = fd.filter(|_| keeps).map(Arc::new);
        let opened = fd.is_some();
        let id = self.change(|table, released| table.admit(place, fd, facts, released))?;
        if opened {
            self.evict_surplus();
        }
        Ok(id)
    }

    /// Counts a lookup of `id` under the further name `place`.
    pub(crate) fn link(&self, id: u64, place: Place<'_>) {
        self.change(|table, released| table.link(id, place, released));
    }

    /// Takes lookups back.
    pub(crate) fn forget(&self, each: &[(u64, u64)]) {
        self.change(|table, released| {
            for (id, count) in each {
                table.forget(*id, *count, released);
            }
        });
    }

    /// Fails with ENFILE if no further inode may be kept.
    pub(crate) fn check_room(&self, unnamed: bool) -> Result<()> {
        self.read().check_room(unnamed)
    }

    /// Keeps what is recorded at `place` open while its name is changed. `loses`: it may lose that
    /// name and has to stay open after.
    pub(crate) fn hold(&self, place: Place<'_>, loses: bool) -> Result<Hold<'_>> {
        let id = {
            let mut table = self.write();
            let known = |id: &u64| table.get(*id).is_some_and(Entry::is_known);
            let id = table.at(place).filter(known);
            if let Some(id) = id {
                if loses {
                    table.check_pin()?;
                }
                table.hold(id);
            }
            id
        };
        let hold = Hold { inodes: self, id };
        if let Some(id) = id {
            match self.get(id) {
                // What is not there any more needs no keeping.
                Ok(_) | Err(STALE) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(hold)
    }

    /// Records that `held` has lost the name `place`.
    pub(crate) fn unlinked(&self, held: &Hold<'_>, place: Place<'_>) {
        self.change(|table, released| {
            if let Some(id) = held.id.filter(|id| table.at(place) == Some(*id)) {
                table.place(id, None, released);
            }
        });
    }

    /// Records that what is held at `from` and `to` was renamed, or exchanged.
    pub(crate) fn renamed(
        &self,
        (source, from): (&Hold<'_>, Place<'_>),
        (target, to): (&Hold<'_>, Place<'_>),
        exchange: bool,
    ) {
        self.change(|table, released| {
            let source = source.id.filter(|id| table.at(from) == Some(*id));
            let target = target.id.filter(|id| table.at(to) == Some(*id));
            if let Some(target) = target {
                table.place(target, None, released);
            }
            if let Some(source) = source {
                table.place(source, Some(to), released);
            }
            if let Some(target) = target.filter(|_| exchange) {
                table.place(target, Some(from), released);
            }
        });
    }

    /// Forgets all but the root.
    pub(crate) fn reset(&self) {
        let released = self.write().reset();
        drop(released);
    }

    /// How many descriptors are kept (cached, pinned) and how many inodes.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        self.read().counts()
    }
}

const STALE: Errno = Errno(libc::ESTALE);

/// An inode whose name is being changed.
pub(crate) struct Hold<'a> {
    inodes: &'a Inodes,
    id: Option<u64>,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.inodes.change(|table, released| {
                table.release(id, released);
                let facts = table.get(id).map(|entry| &entry.facts);
                if facts.is_some_and(|facts| !self.inodes.keeps(facts)) {
                    table.close(id, released);
                }
            });
        }
    }
}
