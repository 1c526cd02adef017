//! The inodes of the guest and their descriptors: opening, re-opening, eviction.
//!
//! Locking: the table's lock is held for bookkeeping only, never over a system call. A request that
//! changes names holds the inodes concerned ([`Inodes::hold`]) over its system call, so that nobody
//! needs their old names while the new ones are not recorded yet.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::errno::{Errno, Result};
use crate::identity::{Facts, Route, Stat, examine, refuse_reflections};
use crate::mounts::{Mounts, Parting};
use crate::sys;
use crate::table::{Entry, Found, Limits, Opened, Place, Released, Table};

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
    /// By which mount it is open.
    pub(crate) mount: Route,
    opened: Arc<Opened>,
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.opened.as_fd()
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
    mounts: RwLock<Mounts>,
}

impl Inodes {
    /// The root alone.
    pub(crate) fn new(root: Opened, facts: Facts, limits: Limits, mounts: Mounts) -> Self {
        Self {
            table: RwLock::new(Table::new(root, facts, limits)),
            mounts: RwLock::new(mounts),
        }
    }

    /// [`crate::Server::set_mounts`].
    pub(crate) fn set_mounts(&self, mounts: Mounts) {
        *self.mounts.write().unwrap_or_else(PoisonError::into_inner) = mounts;
    }

    /// [`crate::Server::part_with`].
    pub(crate) fn part_with(&self, parting: &[Parting]) -> bool {
        self.change(|table, released| {
            let left = parting.iter().map(|mount| table.part_with(mount, released));
            left.fold(false, std::ops::BitOr::bitor)
        })
    }

    /// The attributes and the facts of the object `fd` that was found in a directory on `dir`.
    pub(crate) fn examine(&self, fd: BorrowedFd<'_>, dir: &Route) -> Result<(Stat, Facts, Route)> {
        examine(fd, |stat| {
            if stat.mount() == dir.id {
                return Ok(dir.below());
            }
            let file_system = refuse_reflections(fd)?;
            let mounts = self.mounts.read().unwrap_or_else(PoisonError::into_inner);
            Ok(Route {
                id: stat.mount(),
                traits: mounts.of(stat.mount()),
                is_root: true,
                file_system,
            })
        })
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
        let (kind, opened) = {
            let table = self.read();
            let entry = table
                .get(id)
                .filter(|entry| entry.is_known())
                .ok_or(STALE)?;
            (entry.facts.kind, entry.touch())
        };
        let opened = match opened {
            Some(opened) => opened,
            None => self.open_again(id)?,
        };
        Ok(Node {
            id,
            kind,
            mount: opened.route,
            opened,
        })
    }

    fn open_again(&self, id: u64) -> Result<Arc<Opened>> {
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
    fn open_chain(&self, id: u64) -> Result<Arc<Opened>> {
        let mut chain = Vec::new();
        let mut dir = {
            let table = self.read();
            let mut at = id;
            loop {
                let entry = table.get(at).ok_or(STALE)?;
                if let Some(opened) = entry.touch() {
                    break opened;
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
    fn open_step(&self, id: u64, dir: &Opened) -> Result<Arc<Opened>> {
        let (name, expected) = {
            let table = self.read();
            let entry = table.get(id).ok_or(STALE)?;
            if let Some(opened) = entry.touch() {
                return Ok(opened);
            }
            let (_, name) = entry.place.as_ref().ok_or(STALE)?;
            (name.clone(), entry.facts.clone())
        };
        let fd = open_path(dir.as_fd(), &name).map_err(|errno| match errno.0 {
            libc::ENOENT | libc::ENOTDIR => STALE,
            _ => errno,
        })?;
        let (_, facts, route) = self.examine(fd.as_fd(), &dir.route)?;
        if !facts.is_same_as(&expected) {
            return Err(STALE);
        }
        let opened = Arc::new(Opened::new(fd, route));
        // One whose name is about to change has to stay open, wherever it is.
        let held = { self.read().get(id).is_some_and(Entry::is_held) };
        if !held && !facts.keeps(&route) {
            return Ok(opened);
        }
        let opened = self.write().install(id, opened);
        // After each step, so that a long chain is not open all at once.
        self.evict_surplus();
        opened
    }

    /// Closes descriptors of inodes that were not used lately, down to the limit.
    fn evict_surplus(&self) {
        // Each round evicts one, or finds one in use; the bound only guards against the latter.
        for _ in 0..64 {
            let Some((id, opened)) = ({ self.write().victim() }) else {
                return;
            };
            // What it is recognised by later is read now: an overlay file system that has copied
            // the object up meanwhile reports another time of birth than at first.
            let Ok((stat, facts, _)) = examine(opened.as_fd(), |_| Ok(opened.route)) else {
                return;
            };
            let facts = (stat.links() > 0).then_some(facts);
            let mut released = Released::new();
            self.write().evict(id, &opened, facts, &mut released);
            drop(released);
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Table, &mut Released) -> T) -> T {
        let mut released = Released::new();
        let outcome = change(&mut self.write(), &mut released);
        drop(released);
        outcome
    }

    /// Counts a lookup of the object with `facts` that was found at `place` (`None`: nowhere) by `route`; its
    /// nodeid. `fd`: its `O_PATH` descriptor.
    pub(crate) fn admit(
        &self,
        place: Option<Place<'_>>,
        fd: OwnedFd,
        facts: Facts,
        route: Route,
    ) -> Result<u64> {
        // What has no name could not be opened again.
        let keeps = place.is_none() || facts.keeps(&route);
        // One that is not kept stays open until the object is known.
        let (fd, passing) = if keeps {
            (Some(fd), None)
        } else {
            (None, Some(fd))
        };
        let found = Found { facts, route, fd };
        let id = self.change(|table, released| table.admit(place, found, released))?;
        if passing.is_none() {
            self.evict_surplus();
        }
        Ok(id)
    }

    /// The same for an object that was not opened. EXDEV where it has to be.
    pub(crate) fn glance(&self, place: Place<'_>, facts: Facts, route: Route) -> Result<u64> {
        self.change(|table, released| table.glance(place, facts, route, released))
    }

    /// What is open of the object recorded at `place`, if it was come by on the mount `mount`, below its root.
    pub(crate) fn open_at(&self, place: Place<'_>, mount: u64) -> Option<Arc<Opened>> {
        self.read().open_at(place, mount)
    }

    /// Counts a lookup of what is recorded at `place`; its nodeid, if it is the object with `facts`, of which `opened` is
    /// open.
    pub(crate) fn confirm(
        &self,
        place: Place<'_>,
        facts: &Facts,
        opened: &Arc<Opened>,
    ) -> Option<u64> {
        self.write().confirm(place, facts, opened)
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
                if table.get(id).is_some_and(|entry| !entry.keeps()) {
                    table.close(id, released);
                }
            });
        }
    }
}
