//! The table of inodes known to the guest: pure bookkeeping, no system call.
//!
//! ```text
//!             admit                     evict
//!   (none) ----------> placed, cached ---------> placed, evicted
//!                        |   ^  |  ^ <---------------  |
//!         name lost      |   |  |  |     re-opened     | name lost
//!         (unlink,       v   |  |  +-- name found      v
//!          replaced)   pinned     (link, lookup)     stale (every use is ESTALE)
//!
//!   any --nlookup 0 and no child placed in it--> (none)
//! ```
//! Invariants:
//! * *placed*: the entry has a parent and a name, and `parent.names[name]` is this entry.
//! * `cached` counts entries with a descriptor and a place, `pinned` those with a descriptor and
//!   none; the root is in neither. `cached` is brought back under its limit by eviction after every
//!   insertion, `pinned` never exceeds its own.
//! * A descriptor that an entry holds was come by as its route says. The root of a mount of a class stays open: the
//!   name that it has below another mount of the class may go.
//! * `keys[key]` is the newest entry with that key. An entry with a descriptor keeps its inode number
//!   from being reused; one without is recognised by its witness too.
//! * An entry whose `nlookup` is 0 is there only as the parent of others (or is held by a request);
//!   the guest cannot name it.
//!
//! Nodeids are counted up here and keys are the host's numbers: hashed by foldhash, with a seed of this process. A guest
//! sees neither hashes nor the order of a table; if it had the host number files so that some collide, it would only
//! keep its own server busy. Names are the guest's to choose, and hashed by std.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::errno::{Errno, Result};
use crate::identity::{Facts, Key, Route};
use crate::mounts::Parting;
use crate::protocol::ROOT_ID;

/// A directory's nodeid, and a name in it.
pub(crate) type Place<'a> = (u64, &'a CStr);

/// A descriptor, and how it was come by.
pub(crate) struct Opened {
    fd: OwnedFd,
    pub(crate) route: Route,
}

impl Opened {
    pub(crate) fn new(fd: OwnedFd, route: Route) -> Self {
        Self { fd, route }
    }
}

impl AsFd for Opened {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An object that was looked up.
pub(crate) struct Found {
    pub(crate) facts: Facts,
    pub(crate) route: Route,
    /// Its descriptor, where it may be kept.
    pub(crate) fd: Option<OwnedFd>,
}

/// Descriptors that are given up; to be dropped when no lock is held, because closing the last one
/// of an unlinked file frees its blocks.
pub(crate) type Released = Vec<Arc<Opened>>;

/// How much may be kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Descriptors of inodes that can be re-opened.
    pub(crate) cached: usize,
    /// Descriptors of inodes that cannot.
    pub(crate) pinned: usize,
    /// Inodes.
    pub(crate) entries: usize,
}

/// One inode.
pub(crate) struct Entry {
    pub(crate) fd: Option<Arc<Opened>>,
    pub(crate) facts: Facts,
    pub(crate) place: Option<(u64, Arc<CStr>)>,
    nlookup: u64,
    /// The entries placed in this directory.
    names: HashMap<Arc<CStr>, u64>,
    /// Requests that are about to change this inode's names: it keeps its descriptor meanwhile.
    holds: u32,
    /// Whether it is the root of a mount of a class.
    stays: bool,
    used: AtomicBool,
    queued: bool,
}

#[derive(PartialEq, Eq)]
enum Class {
    Closed,
    Cached,
    Pinned,
}

impl Entry {
    fn class(&self) -> Class {
        match (&self.fd, &self.place) {
            (None, _) => Class::Closed,
            (Some(_), Some(_)) => Class::Cached,
            (Some(_), None) => Class::Pinned,
        }
    }

    /// Whether the guest may name it.
    pub(crate) fn is_known(&self) -> bool {
        self.nlookup > 0
    }

    /// Whether a request is about to change its names.
    pub(crate) fn is_held(&self) -> bool {
        self.holds > 0
    }

    /// Its descriptor, noted as used.
    pub(crate) fn touch(&self) -> Option<Arc<Opened>> {
        self.used.store(true, Ordering::Relaxed);
        self.fd.clone()
    }

    /// Whether the descriptor that it has, if any, may be kept.
    pub(crate) fn keeps(&self) -> bool {
        let keeps = |opened: &Arc<Opened>| self.facts.keeps(&opened.route);
        self.fd.as_ref().is_none_or(keeps)
    }

    /// Whether no request holds it, and it has a name to be opened by again.
    fn can_be_closed(&self) -> bool {
        self.place.is_some() && self.holds == 0
    }

    fn is_needless(&self) -> bool {
        self.nlookup == 0 && self.names.is_empty() && self.holds == 0
    }
}

/// All of them.
pub(crate) struct Table {
    entries: foldhash::HashMap<u64, Entry>,
    keys: foldhash::HashMap<Key, u64>,
    /// The second-chance queue of what can be evicted; may hold numbers of entries long gone.
    clock: VecDeque<u64>,
    cached: usize,
    pinned: usize,
    next: u64,
    limits: Limits,
}

impl Table {
    /// The root alone.
    pub(crate) fn new(root: Opened, facts: Facts, limits: Limits) -> Self {
        let mut table = Self {
            entries: foldhash::HashMap::default(),
            keys: foldhash::HashMap::default(),
            clock: VecDeque::new(),
            cached: 0,
            pinned: 0,
            next: ROOT_ID + 1,
            limits,
        };
        table.keys.insert(facts.key, ROOT_ID);
        table
            .entries
            .insert(ROOT_ID, Self::entry(Some(Arc::new(root)), facts));
        table
    }

    fn entry(fd: Option<Arc<Opened>>, facts: Facts) -> Entry {
        Entry {
            fd,
            facts,
            place: None,
            nlookup: 1,
            names: HashMap::new(),
            holds: 0,
            stays: false,
            used: AtomicBool::new(true),
            queued: false,
        }
    }

    /// Forgets all but the root. Numbers are not used again.
    pub(crate) fn reset(&mut self) -> Released {
        let mut released = Released::new();
        let entries = std::mem::take(&mut self.entries);
        self.keys.clear();
        self.clock.clear();
        (self.cached, self.pinned) = (0, 0);
        for (id, entry) in entries {
            if id == ROOT_ID {
                self.keys.insert(entry.facts.key, ROOT_ID);
                let fresh = Self::entry(entry.fd, entry.facts);
                self.entries.insert(ROOT_ID, fresh);
            } else {
                released.extend(entry.fd);
            }
        }
        released
    }

    /// The entry `id`.
    pub(crate) fn get(&self, id: u64) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// The entry placed at `place`.
    pub(crate) fn at(&self, place: Place<'_>) -> Option<u64> {
        self.entries.get(&place.0)?.names.get(place.1).copied()
    }

    /// Fails with ENFILE if no further inode may be kept; `unnamed`: one without a name.
    pub(crate) fn check_room(&self, unnamed: bool) -> Result<()> {
        let full = self.entries.len() >= self.limits.entries
            || (unnamed && self.pinned >= self.limits.pinned);
        if full {
            Err(Errno(libc::ENFILE))
        } else {
            Ok(())
        }
    }

    /// Changes an entry and keeps the counts right.
    fn change(&mut self, id: u64, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let before = entry.class();
        change(entry);
        let after = entry.class();
        if id == ROOT_ID {
            return;
        }
        if after == Class::Cached && !entry.queued {
            entry.queued = true;
            self.clock.push_back(id);
        }
        self.count(&before, &after);
        if self.clock.len() > 2 * self.limits.cached.max(self.cached) + 64 {
            self.sweep_clock();
        }
    }

    /// Takes out of the queue what cannot be evicted, so that it stays as short as what can.
    fn sweep_clock(&mut self) {
        let entries = &mut self.entries;
        self.clock.retain(|id| {
            entries.get_mut(id).is_some_and(|entry| {
                entry.queued = entry.class() == Class::Cached;
                entry.queued
            })
        });
    }

    fn count(&mut self, before: &Class, after: &Class) {
        for (class, count) in [
            (Class::Cached, &mut self.cached),
            (Class::Pinned, &mut self.pinned),
        ] {
            match (*before == class, *after == class) {
                (false, true) => *count += 1,
                (true, false) => *count -= 1,
                _ => {}
            }
        }
    }

    /// Counts one more lookup of the object `found`, known or new, at `place`. The caller has it open. EXDEV if it comes
    /// without a descriptor and one is held that allows less.
    pub(crate) fn admit(
        &mut self,
        place: Option<Place<'_>>,
        found: Found,
        released: &mut Released,
    ) -> Result<u64> {
        if place.is_some_and(|(parent, _)| !self.entries.contains_key(&parent)) {
            return Err(Errno(libc::ESTALE));
        }
        let (id, moves) = match self.find(&found.facts) {
            Some(id) => (id, self.meet(id, found, released)?),
            None => {
                self.check_room(place.is_none())?;
                let id = self.next;
                self.next += 1;
                let Found { facts, route, fd } = found;
                self.keys.insert(facts.key, id);
                self.entries.insert(id, Self::entry(None, facts));
                self.change(id, |entry| {
                    entry.stays = route.begins_class();
                    entry.fd = fd.map(|fd| Arc::new(Opened::new(fd, route)));
                });
                (id, true)
            }
        };
        if place.is_some() && moves {
            self.place(id, place, released);
        }
        Ok(id)
    }

    /// Counts one more lookup of `id`; whether where it was found becomes its place.
    fn meet(&mut self, id: u64, found: Found, released: &mut Released) -> Result<bool> {
        let Found { facts, route, fd } = found;
        let entry = self.entries.get(&id).ok_or(Errno(libc::ESTALE))?;
        let named = entry.place.is_some();
        let held = entry.fd.as_ref().map(|opened| opened.route);
        let better = held.is_some_and(|held| route.is_better(&held));
        let worse = held.is_some_and(|held| held.is_better(&route));
        if better && fd.is_none() {
            return Err(Errno(libc::EXDEV));
        }
        let opened = fd.map(|fd| Arc::new(Opened::new(fd, route)));
        self.change(id, |entry| {
            entry.nlookup = entry.nlookup.saturating_add(1);
            *entry.used.get_mut() = true;
            entry.stays |= route.begins_class();
            entry.facts.witness = facts.witness;
            released.extend(match held.is_some() && !better {
                true => opened,
                false => std::mem::replace(&mut entry.fd, opened),
            });
        });
        if let Some(held) = held.filter(|_| better && facts.kind == libc::S_IFDIR) {
            self.close_reached_by(&held, released);
        }
        // The name below another mount is the one by which the guest changes names too.
        let keeps = worse || (named && route.begins_class());
        Ok(!keeps)
    }

    /// Gives up what was opened by way of a mount, so that it is opened again by way of a better one where there is one.
    fn close_reached_by(&mut self, route: &Route, released: &mut Released) {
        for id in self.reached_by(route.id) {
            self.close(id, released);
        }
    }

    /// The inodes that are open by way of a mount.
    fn reached_by(&self, mount: u64) -> Vec<u64> {
        let reached = self.entries.iter().filter(|(_, entry)| {
            let opened = entry.fd.as_ref();
            opened.is_some_and(|opened| opened.route.id == mount)
        });
        reached.map(|(id, _)| *id).collect()
    }

    /// Gives up what was opened by way of a mount that goes; whether that was not possible for some.
    pub(crate) fn part_with(&mut self, parting: &Parting, released: &mut Released) -> bool {
        for id in self.reached_by(parting.mount) {
            let opened = self.entries.get(&id).and_then(|entry| entry.fd.as_ref());
            if opened.is_some_and(|opened| opened.route.is_root) {
                let paths = parting.elsewhere.iter();
                if let Some((parent, name)) = paths.filter_map(|path| self.walk(path)).next() {
                    self.place(id, Some((parent, &name)), released);
                }
                self.change(id, |entry| entry.stays = false);
            }
            self.change(id, |entry| {
                // One that is another mount's root is opened again as well.
                if entry.can_be_closed() {
                    released.extend(entry.fd.take());
                }
            });
        }
        !self.reached_by(parting.mount).is_empty()
    }

    /// The place `path` of the tree, if its directory is known.
    fn walk(&self, path: &Path) -> Option<(u64, CString)> {
        let mut names = path
            .iter()
            .map(|name| CString::new(name.as_encoded_bytes()));
        let last = names.next_back()?.ok()?;
        let directory = names.try_fold(ROOT_ID, |at, name| self.at((at, &*name.ok()?)));
        Some((directory?, last))
    }

    /// What is open of the object recorded at `place`, if it was come by on the mount `mount`, below its root.
    pub(crate) fn open_at(&self, place: Place<'_>, mount: u64) -> Option<Arc<Opened>> {
        let opened = self.get(self.at(place)?)?.fd.as_ref()?;
        let route = &opened.route;
        (route.id == mount && !route.is_root).then(|| opened.clone())
    }

    /// Counts one more lookup of what is recorded at `place`, if it is the object with `facts` and `opened` is what is
    /// open of it.
    pub(crate) fn confirm(
        &mut self,
        place: Place<'_>,
        facts: &Facts,
        opened: &Arc<Opened>,
    ) -> Option<u64> {
        let id = self.at(place)?;
        let entry = self.entries.get_mut(&id)?;
        let is_open = entry
            .fd
            .as_ref()
            .is_some_and(|own| Arc::ptr_eq(own, opened));
        if !is_open || !entry.facts.is_same_as(facts) || self.keys.get(&facts.key) != Some(&id) {
            return None;
        }
        entry.nlookup = entry.nlookup.saturating_add(1);
        *entry.used.get_mut() = true;
        Some(id)
    }

    /// Counts one more lookup of the object with `facts` that was seen at `place` by `route`, and not opened: it may be
    /// gone since, and its number and its name another's. So what is known of others stays, and their places do too.
    /// EXDEV where the object has to be opened.
    pub(crate) fn glance(
        &mut self,
        place: Place<'_>,
        facts: Facts,
        route: Route,
        released: &mut Released,
    ) -> Result<u64> {
        let known = self.keys.get(&facts.key);
        let Some((id, entry)) = known.and_then(|id| Some((*id, self.entries.get(id)?))) else {
            if self.at(place).is_some() {
                return Err(Errno(libc::EXDEV));
            }
            let fd = None;
            return self.admit(Some(place), Found { facts, route, fd }, released);
        };
        let held = entry.fd.as_ref().map(|opened| opened.route);
        if !entry.facts.is_same_as(&facts) || held.is_some_and(|held| route.is_better(&held)) {
            return Err(Errno(libc::EXDEV));
        }
        self.change(id, |entry| {
            entry.nlookup = entry.nlookup.saturating_add(1);
            *entry.used.get_mut() = true;
        });
        Ok(id)
    }

    fn find(&self, facts: &Facts) -> Option<u64> {
        let id = *self.keys.get(&facts.key)?;
        let entry = self.entries.get(&id)?;
        let same = match entry.fd {
            Some(_) => entry.facts.kind == facts.kind,
            None => entry.facts.is_same_as(facts),
        };
        same.then_some(id)
    }

    /// Counts one more lookup of `id` under a further name, which it is placed at if it has none.
    pub(crate) fn link(&mut self, id: u64, place: Place<'_>, released: &mut Released) {
        self.change(id, |entry| entry.nlookup = entry.nlookup.saturating_add(1));
        if self
            .entries
            .get(&id)
            .is_some_and(|entry| entry.place.is_none())
        {
            self.place(id, Some(place), released);
        }
    }

    /// Places `id` anew, or takes its place away.
    pub(crate) fn place(&mut self, id: u64, to: Option<Place<'_>>, released: &mut Released) {
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        let from = entry.place.clone();
        let unchanged = match (&from, to) {
            (Some((parent, name)), Some(to)) => (*parent, &**name) == to,
            (None, None) => true,
            _ => false,
        };
        if id == ROOT_ID || unchanged {
            return;
        }
        // A place in a directory that is gone, or in itself, is none.
        let to = to.filter(|(parent, _)| *parent != id && self.entries.contains_key(parent));
        let to = to.map(|(parent, name)| {
            let name: Arc<CStr> = Arc::from(name);
            let directory = self.entries.get_mut(&parent);
            let displaced = directory.and_then(|entry| entry.names.insert(name.clone(), id));
            if let Some(displaced) = displaced.filter(|displaced| *displaced != id) {
                self.change(displaced, |entry| entry.place = None);
                self.limit_pinned(displaced, released);
            }
            (parent, name)
        });
        self.change(id, |entry| entry.place = to);
        if let Some((parent, name)) = from {
            self.remove_name(parent, &name, id);
            self.remove_needless(parent, released);
        }
        self.limit_pinned(id, released);
    }

    fn remove_name(&mut self, parent: u64, name: &CStr, id: u64) {
        let parent = self.entries.get_mut(&parent);
        if let Some(parent) = parent.filter(|parent| parent.names.get(name) == Some(&id)) {
            parent.names.remove(name);
        }
    }

    /// An inode that loses its name when too many are pinned already becomes stale.
    fn limit_pinned(&mut self, id: u64, released: &mut Released) {
        if self.pinned > self.limits.pinned {
            self.change(id, |entry| {
                if entry.place.is_none() {
                    released.extend(entry.fd.take());
                }
            });
        }
    }

    /// Gives `id` the descriptor `opened`, unless it has one; the one it has then.
    pub(crate) fn install(&mut self, id: u64, opened: Arc<Opened>) -> Result<Arc<Opened>> {
        let entry = self.entries.get(&id).ok_or(Errno(libc::ESTALE))?;
        if let Some(opened) = entry.touch() {
            return Ok(opened);
        }
        if entry.place.is_none() {
            return Err(Errno(libc::ESTALE));
        }
        self.change(id, |entry| {
            entry.stays |= opened.route.begins_class();
            entry.fd = Some(opened.clone());
        });
        Ok(opened)
    }

    /// Takes `count` lookups back, never more than there are.
    pub(crate) fn forget(&mut self, id: u64, count: u64, released: &mut Released) {
        if id == ROOT_ID {
            return;
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.nlookup = entry.nlookup.saturating_sub(count);
            self.remove_needless(id, released);
        }
    }

    /// Removes `id` if nothing needs it, then its parent if that was there only for it, and so on.
    fn remove_needless(&mut self, mut id: u64, released: &mut Released) {
        while id != ROOT_ID && self.entries.get(&id).is_some_and(Entry::is_needless) {
            let Some(entry) = self.entries.remove(&id) else {
                return;
            };
            self.count(&entry.class(), &Class::Closed);
            if self.keys.get(&entry.facts.key) == Some(&id) {
                self.keys.remove(&entry.facts.key);
            }
            released.extend(entry.fd);
            let Some((parent, name)) = entry.place else {
                return;
            };
            self.remove_name(parent, &name, id);
            id = parent;
        }
    }

    /// Keeps `id` from being evicted (or removed) until [`Table::release`].
    pub(crate) fn hold(&mut self, id: u64) {
        self.change(id, |entry| entry.holds = entry.holds.saturating_add(1));
    }

    /// Ends one [`Table::hold`].
    pub(crate) fn release(&mut self, id: u64, released: &mut Released) {
        self.change(id, |entry| entry.holds = entry.holds.saturating_sub(1));
        self.remove_needless(id, released);
    }

    /// Gives up the descriptor of `id` unless it is needed.
    pub(crate) fn close(&mut self, id: u64, released: &mut Released) {
        self.change(id, |entry| {
            if entry.can_be_closed() && !entry.stays {
                released.extend(entry.fd.take());
            }
        });
    }

    /// Fails with ENFILE if no further inode may lose its name and be kept open.
    pub(crate) fn check_pin(&self) -> Result<()> {
        if self.pinned < self.limits.pinned {
            Ok(())
        } else {
            Err(Errno(libc::ENFILE))
        }
    }

    /// The next inode to evict, if there are more open than there should be.
    pub(crate) fn victim(&mut self) -> Option<(u64, Arc<Opened>)> {
        if self.cached <= self.limits.cached {
            return None;
        }
        for _ in 0..2 * self.clock.len() {
            let id = self.clock.pop_front()?;
            let Some(entry) = self.entries.get_mut(&id) else {
                continue;
            };
            if entry.class() != Class::Cached {
                entry.queued = false;
                continue;
            }
            let recent = std::mem::take(entry.used.get_mut()) || entry.holds > 0 || entry.stays;
            let idle = entry
                .fd
                .as_ref()
                .filter(|fd| !recent && Arc::strong_count(fd) == 1);
            if let Some(fd) = idle {
                entry.queued = false;
                return Some((id, fd.clone()));
            }
            self.clock.push_back(id);
        }
        None
    }

    /// Evicts `id`, whose descriptor `fd` is just found to belong to an object with `facts`: `None`
    /// if it has no name any more. Where it is in use again, it stays.
    pub(crate) fn evict(
        &mut self,
        id: u64,
        fd: &Arc<Opened>,
        facts: Option<Facts>,
        released: &mut Released,
    ) {
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        let idle = entry.class() == Class::Cached
            && entry.holds == 0
            && !entry.stays
            && entry.fd.as_ref().is_some_and(|own| Arc::ptr_eq(own, fd))
            // The table's and the caller's: no request has it.
            && Arc::strong_count(fd) == 2;
        if !idle {
            return self.change(id, |_| {});
        }
        let Some(facts) = facts else {
            return self.place(id, None, released);
        };
        if entry.facts.key != facts.key {
            // Overlay file systems may number an object anew when it is copied up.
            if self.keys.get(&entry.facts.key) == Some(&id) {
                self.keys.remove(&entry.facts.key);
            }
            self.keys.entry(facts.key).or_insert(id);
        }
        self.change(id, |entry| {
            entry.facts = facts;
            released.extend(entry.fd.take());
        });
    }

    /// How many descriptors are kept (cached, pinned) and how many inodes.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        (self.cached, self.pinned, self.entries.len())
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
