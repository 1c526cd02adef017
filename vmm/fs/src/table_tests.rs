//! Sequences of what requests do to the table, and the invariants of the table after each.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;

use proptest::prelude::*;

use super::*;
use crate::identity::{FileSystem, Stat, Witness, examine};
use crate::mounts::Mount;

const LIMITS: Limits = Limits {
    cached: 3,
    pinned: 2,
    entries: 8,
};

/// Objects of the host that there are.
const OBJECTS: usize = 10;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Mounts of a class: each shows all objects.
const MOUNTS: u64 = 4;

/// The route by a mount: one that can be written or not, of which the object is the root or not.
fn route(mount: u64) -> Route {
    Route {
        id: mount,
        traits: Mount {
            class: std::num::NonZeroU64::new(7),
            read_only: mount & 1 == 0,
            lasts: true,
            ..Mount::default()
        },
        is_root: mount & 2 == 0,
        file_system: FileSystem {
            sizes: true,
            flushes: false,
        },
    }
}

fn facts(file: &File) -> Facts {
    examine(file.as_fd(), |_: &Stat| Ok(route(1))).unwrap().1
}

/// An inode is chosen among those in the table, a place by its directory and the index of a name.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// An object is looked up by way of a mount, and its descriptor may be kept or not.
    Admit(usize, u64, (usize, usize), bool),
    /// An object is seen by way of a mount, or one before it that had its number.
    Glance(usize, u64, (usize, usize), bool),
    /// An object is seen where one is open by way of a mount.
    Confirm(usize, u64, (usize, usize)),
    /// A new object without a name is opened.
    Unnamed,
    Link(usize, (usize, usize)),
    Place(usize, Option<(usize, usize)>),
    Forget(usize, u64),
    Hold(usize),
    /// Ends a hold.
    Release(usize),
    /// An inode that is not open is opened again.
    Install(usize),
    Close(usize),
    /// A mount goes, whose root is found in another place.
    Part(u64, usize),
    /// Closes what was not used lately; what is looked at may have lost its name.
    Evict(bool),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let one = 0..16_usize;
    let place = (0..16_usize, 0..NAMES.len());
    prop_oneof![
        8 => (0..OBJECTS, 0..MOUNTS, place.clone(), any::<bool>()).prop_map(|(object, by, place, open)| Step::Admit(object, by, place, open)),
        4 => (0..OBJECTS, 0..MOUNTS, place.clone(), any::<bool>()).prop_map(|(object, by, place, gone)| Step::Glance(object, by, place, gone)),
        4 => (0..OBJECTS, 0..MOUNTS, place.clone()).prop_map(|(object, by, place)| Step::Confirm(object, by, place)),
        1 => Just(Step::Unnamed),
        2 => (one.clone(), place.clone()).prop_map(|(id, place)| Step::Link(id, place)),
        4 => (one.clone(), prop::option::of(place)).prop_map(|(id, place)| Step::Place(id, place)),
        6 => (one.clone(), prop_oneof![0..3_u64, Just(u64::MAX)]).prop_map(|(id, count)| Step::Forget(id, count)),
        2 => one.clone().prop_map(Step::Hold),
        2 => one.clone().prop_map(Step::Release),
        2 => one.clone().prop_map(Step::Install),
        1 => one.prop_map(Step::Close),
        1 => (0..MOUNTS, 0..NAMES.len()).prop_map(|(mount, name)| Step::Part(mount, name)),
        3 => any::<bool>().prop_map(Step::Evict),
        1 => Just(Step::Reset),
    ]
}

/// The table, and what is expected of it.
struct Model {
    table: Table,
    objects: Vec<(File, Facts)>,
    lookups: HashMap<u64, u64>,
    held: Vec<u64>,
}

impl Model {
    fn new() -> Model {
        let object = |_| {
            let file = tempfile::tempfile().unwrap();
            let facts = facts(&file);
            (file, facts)
        };
        let root = tempfile::tempdir().unwrap();
        let root = File::open(root.path()).unwrap();
        let facts = facts(&root);
        Model {
            table: Table::new(Opened::new(root.into(), route(1)), facts, LIMITS),
            objects: (0..OBJECTS).map(object).collect(),
            lookups: HashMap::new(),
            held: Vec::new(),
        }
    }

    fn id(&self, which: usize) -> u64 {
        let mut ids: Vec<u64> = self.table.entries.keys().copied().collect();
        ids.sort_unstable();
        ids[which % ids.len()]
    }

    /// Whether a directory is the inode itself or below it: no kernel lets it be moved there.
    fn is_below(&self, mut directory: u64, id: Option<u64>) -> bool {
        loop {
            if Some(directory) == id {
                return true;
            }
            match &self.table.entries[&directory].place {
                Some((parent, _)) => directory = *parent,
                None => return false,
            }
        }
    }

    fn fd() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn step(&mut self, step: Step) {
        let mut released = Released::new();
        let place = |(directory, name): (usize, usize)| {
            let name = CString::new(NAMES[name]).unwrap();
            (self.id(directory), name)
        };
        match step {
            Step::Admit(object, by, at, open) => {
                let (directory, name) = place(at);
                self.admit(object, by, (directory, &name), open.then(Model::fd));
            }
            Step::Glance(object, by, at, gone) => {
                let (directory, name) = place(at);
                self.glance(object, by, (directory, &name), gone);
            }
            Step::Confirm(object, by, at) => {
                let (directory, name) = place(at);
                self.confirm(object, by, (directory, &name));
            }
            Step::Unnamed => self.unnamed(&mut released),
            Step::Link(id, at) => {
                let (id, (directory, name)) = (self.id(id), place(at));
                if id != ROOT_ID && !self.is_below(directory, Some(id)) {
                    self.table.link(id, (directory, &name), &mut released);
                    *self.lookups.entry(id).or_default() += 1;
                }
            }
            Step::Place(id, at) => {
                let (id, at) = (self.id(id), at.map(place));
                if at
                    .as_ref()
                    .is_some_and(|(directory, _)| self.is_below(*directory, Some(id)))
                {
                    return;
                }
                let at = at
                    .as_ref()
                    .map(|(directory, name)| (*directory, name.as_c_str()));
                self.table.place(id, at, &mut released);
            }
            Step::Forget(id, count) => {
                let id = self.id(id);
                self.table.forget(id, count, &mut released);
                let known = self.lookups.entry(id).or_default();
                *known = known.saturating_sub(count);
            }
            Step::Hold(id) => {
                let id = self.id(id);
                self.table.hold(id);
                self.held.push(id);
            }
            Step::Release(which) => {
                if !self.held.is_empty() {
                    let id = self.held.swap_remove(which % self.held.len());
                    self.table.release(id, &mut released);
                }
            }
            Step::Install(id) => {
                let id = self.id(id);
                let entry = &self.table.entries[&id];
                let possible = entry.fd.is_some() || entry.place.is_some();
                let opened = Opened::new(Model::fd(), route(id % MOUNTS));
                assert_eq!(self.table.install(id, Arc::new(opened)).is_ok(), possible);
            }
            Step::Close(id) => self.close(self.id(id), &mut released),
            Step::Part(mount, name) => self.part(mount, NAMES[name], &mut released),
            Step::Evict(named) => self.evict(named, &mut released),
            Step::Reset => {
                drop(self.table.reset());
                self.lookups.clear();
                self.held.clear();
            }
        }
    }

    fn unnamed(&mut self, released: &mut Released) {
        let object = tempfile::tempfile().unwrap();
        let found = Found {
            facts: facts(&object),
            route: route(1),
            fd: Some(Model::fd()),
        };
        let before = self.table.counts();
        match self.table.admit(None, found, released) {
            Ok(id) => *self.lookups.entry(id).or_default() += 1,
            Err(_) => assert!(before.1 >= LIMITS.pinned || before.2 >= LIMITS.entries),
        }
        // It stays, so that its number is not another's.
        self.objects.push((object, self.objects[0].1.clone()));
    }

    fn admit(&mut self, object: usize, by: u64, at: Place<'_>, fd: Option<OwnedFd>) {
        let facts = self.objects[object].1.clone();
        let known = self.table.find(&facts);
        if self.is_below(at.0, known) {
            return;
        }
        let (before, opened) = (self.table.entries.len(), fd.is_some());
        let rank = |table: &Table, id: u64| {
            let opened = table.entries[&id].fd.as_ref();
            opened.map(|opened| opened.route.rank())
        };
        let held = known.and_then(|id| rank(&self.table, id));
        let route = route(by);
        let found = Found { facts, route, fd };
        match self.table.admit(Some(at), found, &mut Released::new()) {
            Ok(id) => {
                *self.lookups.entry(id).or_default() += 1;
                let offered = opened.then(|| route.rank());
                // `None` is less than any.
                assert_eq!(rank(&self.table, id), held.max(offered), "the best is kept");
            }
            Err(Errno(libc::EXDEV)) => {
                assert!(!opened && held.is_some_and(|held| held < route.rank()));
            }
            Err(errno) => assert!(errno.0 == libc::ENFILE && before >= LIMITS.entries),
        }
    }

    /// Only what is recorded at the place, and is open by that mount, is confirmed there.
    fn confirm(&mut self, object: usize, by: u64, at: Place<'_>) {
        let opened = self.table.open_at(at, route(by).id);
        let recorded = self.table.at(at).and_then(|id| self.table.get(id));
        let held = recorded.and_then(|entry| entry.fd.clone());
        let expected = held.filter(|held| held.route.id == by && !held.route.is_root);
        assert_eq!(opened.is_some(), expected.is_some());
        let Some(opened) = opened else {
            return;
        };
        let facts = self.objects[object].1.clone();
        let same = recorded.is_some_and(|entry| entry.facts.is_same_as(&facts));
        let found = self.table.confirm(at, &facts, &opened);
        assert_eq!(found, self.table.at(at).filter(|_| same));
        if let Some(id) = found {
            *self.lookups.entry(id).or_default() += 1;
        }
        let other = Arc::new(Opened::new(Model::fd(), route(by)));
        assert_eq!(self.table.confirm(at, &facts, &other), None);
    }

    fn glance(&mut self, object: usize, by: u64, at: Place<'_>, gone: bool) {
        let mut facts = self.objects[object].1.clone();
        if gone {
            facts.witness = Witness::Birth(1, 2);
        }
        let known = self.table.keys.get(&facts.key).copied();
        let state = |table: &Table| {
            let of = |id: u64| {
                let entry = &table.entries[&id];
                (entry.place.clone(), entry.facts.witness.clone())
            };
            let mut all: Vec<u64> = table.entries.keys().copied().collect();
            all.sort_unstable();
            all.into_iter().map(|id| (id, of(id))).collect::<Vec<_>>()
        };
        let (before, occupied) = (state(&self.table), self.table.at(at).is_some());
        let outcome = (self.table).glance(at, facts.clone(), route(by), &mut Released::new());
        let mut after = state(&self.table);
        match (outcome, known) {
            (Ok(id), None) => {
                assert!(!occupied, "a place is taken");
                *self.lookups.entry(id).or_default() += 1;
                after.retain(|(other, _)| *other != id);
            }
            (Ok(id), Some(known)) => {
                let entry = &self.table.entries[&id];
                assert!(id == known && entry.facts.is_same_as(&facts));
                *self.lookups.entry(id).or_default() += 1;
            }
            (Err(Errno(libc::EXDEV)), _) => {}
            (Err(errno), _) => assert!(errno.0 == libc::ENFILE && before.len() >= LIMITS.entries),
        }
        assert_eq!(after, before, "what was known is as it was");
    }

    fn close(&mut self, id: u64, released: &mut Released) {
        self.table.close(id, released);
        let entry = &self.table.entries[&id];
        let needed = entry.stays || entry.place.is_none() || entry.holds > 0;
        assert!(needed || entry.fd.is_none());
    }

    fn part(&mut self, mount: u64, name: &str, released: &mut Released) {
        let parting = Parting {
            mount,
            elsewhere: vec![["none", name].iter().collect(), name.into()],
        };
        let left = self.table.part_with(&parting, released);
        let reached = self.table.reached_by(mount);
        assert_eq!(left, !reached.is_empty());
        let needed = |id: &u64| !self.table.entries[id].can_be_closed();
        assert!(reached.iter().all(needed), "all else is given up");
    }

    fn evict(&mut self, named: bool, released: &mut Released) {
        let staying = |(_, entry): &(&u64, &Entry)| entry.stays && entry.fd.is_some();
        let before = self.table.entries.iter().filter(staying);
        let before: Vec<u64> = before.map(|(id, _)| *id).collect();
        for _ in 0..64 {
            let Some((id, fd)) = self.table.victim() else {
                break;
            };
            let facts = self.table.entries[&id].facts.clone();
            self.table.evict(id, &fd, named.then_some(facts), released);
        }
        for entry in before.iter().filter_map(|id| self.table.get(*id)) {
            assert!(entry.fd.is_some(), "roots stay open");
        }
        let needed = |entry: &&Entry| entry.holds > 0 || entry.stays;
        let most = LIMITS.cached + self.table.entries.values().filter(needed).count();
        assert!(
            self.table.cached <= most,
            "{} descriptors are kept",
            self.table.cached
        );
    }

    fn check(&self) {
        let table = &self.table;
        let of = |wanted: Class| {
            let others = table.entries.iter().filter(|(id, _)| **id != ROOT_ID);
            others.filter(|(_, entry)| entry.class() == wanted).count()
        };
        assert_eq!(
            (table.cached, table.pinned),
            (of(Class::Cached), of(Class::Pinned))
        );
        assert!(table.pinned <= LIMITS.pinned, "{} are pinned", table.pinned);
        assert!(
            table.entries.len() <= LIMITS.entries,
            "{} entries",
            table.entries.len()
        );
        assert!(table.clock.len() <= 2 * LIMITS.cached.max(table.cached) + 64);
        for (id, entry) in &table.entries {
            if let Some((parent, name)) = &entry.place {
                assert_eq!(
                    table.entries[parent].names.get(name),
                    Some(id),
                    "{id} is placed"
                );
            }
            for (name, child) in &entry.names {
                let place = table.entries[child].place.as_ref();
                assert_eq!(place, Some(&(*id, name.clone())), "{child} is in {id}");
            }
            assert!(*id == ROOT_ID || !entry.is_needless(), "{id} is needless");
            let holds = self.held.iter().filter(|held| *held == id).count();
            assert_eq!(entry.holds as usize, holds, "holds of {id}");
            if *id != ROOT_ID {
                let known = self.lookups.get(id).copied().unwrap_or(0);
                assert_eq!(entry.nlookup, known, "lookups of {id}");
            }
            assert!(entry.class() != Class::Cached || *id == ROOT_ID || table.clock.contains(id));
        }
        for (key, id) in &table.keys {
            assert_eq!(&table.entries[id].facts.key, key);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_whatever_is_done(steps in prop::collection::vec(step(), 0..64)) {
        let mut model = Model::new();
        for step in steps {
            model.step(step);
            model.check();
        }
        // All is given back: the root alone is left.
        let mut released = Released::new();
        for id in std::mem::take(&mut model.held) {
            model.table.release(id, &mut released);
        }
        for id in model.table.entries.keys().copied().collect::<Vec<_>>() {
            model.table.forget(id, u64::MAX, &mut released);
            model.lookups.remove(&id);
        }
        model.check();
        assert_eq!(model.table.counts(), (0, 0, 1));
    }
}
