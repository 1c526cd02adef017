//! Sequences of what requests do to the table, and the invariants of the table after each.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;

use proptest::prelude::*;

use super::*;
use crate::identity::examine;

const LIMITS: Limits = Limits {
    cached: 3,
    pinned: 2,
    entries: 8,
};

/// Objects of the host that there are.
const OBJECTS: usize = 10;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// An inode is chosen among those in the table, a place by its directory and the index of a name.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// An object is looked up, opened or not.
    Admit(usize, (usize, usize), bool),
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
    /// Closes what was not used lately; what is looked at may have lost its name.
    Evict(bool),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let one = 0..16_usize;
    let place = (0..16_usize, 0..NAMES.len());
    prop_oneof![
        8 => (0..OBJECTS, place.clone(), any::<bool>()).prop_map(|(object, place, open)| Step::Admit(object, place, open)),
        1 => Just(Step::Unnamed),
        2 => (one.clone(), place.clone()).prop_map(|(id, place)| Step::Link(id, place)),
        4 => (one.clone(), prop::option::of(place)).prop_map(|(id, place)| Step::Place(id, place)),
        6 => (one.clone(), prop_oneof![0..3_u64, Just(u64::MAX)]).prop_map(|(id, count)| Step::Forget(id, count)),
        2 => one.clone().prop_map(Step::Hold),
        2 => one.clone().prop_map(Step::Release),
        2 => one.clone().prop_map(Step::Install),
        1 => one.prop_map(Step::Close),
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
            let facts = examine(file.as_fd()).unwrap().1;
            (file, facts)
        };
        let root = tempfile::tempdir().unwrap();
        let root = File::open(root.path()).unwrap();
        let facts = examine(root.as_fd()).unwrap().1;
        Model {
            table: Table::new(Arc::new(root.into()), facts, LIMITS),
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

    fn fd() -> Arc<OwnedFd> {
        Arc::new(File::open("/dev/null").unwrap().into())
    }

    fn step(&mut self, step: Step) {
        let mut released = Released::new();
        let place = |(directory, name): (usize, usize)| {
            let name = CString::new(NAMES[name]).unwrap();
            (self.id(directory), name)
        };
        match step {
            Step::Admit(object, at, open) => {
                let (directory, name) = place(at);
                self.admit(object, (directory, &name), open.then(Model::fd));
            }
            Step::Unnamed => {
                let object = tempfile::tempfile().unwrap();
                let facts = examine(object.as_fd()).unwrap().1;
                let before = self.table.counts();
                match self
                    .table
                    .admit(None, Some(Model::fd()), facts, &mut released)
                {
                    Ok(id) => *self.lookups.entry(id).or_default() += 1,
                    Err(_) => assert!(before.1 >= LIMITS.pinned || before.2 >= LIMITS.entries),
                }
                // It stays, so that its number is not another's.
                self.objects.push((object, self.objects[0].1.clone()));
            }
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
                assert_eq!(self.table.install(id, Model::fd()).is_ok(), possible);
            }
            Step::Close(id) => {
                let id = self.id(id);
                self.table.close(id, &mut released);
            }
            Step::Evict(named) => self.evict(named, &mut released),
            Step::Reset => {
                drop(self.table.reset());
                self.lookups.clear();
                self.held.clear();
            }
        }
    }

    fn admit(&mut self, object: usize, at: Place<'_>, fd: Option<Arc<OwnedFd>>) {
        let facts = self.objects[object].1.clone();
        if self.is_below(at.0, self.table.find(&facts)) {
            return;
        }
        let before = self.table.entries.len();
        match self.table.admit(Some(at), fd, facts, &mut Released::new()) {
            Ok(id) => *self.lookups.entry(id).or_default() += 1,
            Err(errno) => assert!(errno.0 == libc::ENFILE && before >= LIMITS.entries),
        }
    }

    fn evict(&mut self, named: bool, released: &mut Released) {
        for _ in 0..64 {
            let Some((id, fd)) = self.table.victim() else {
                break;
            };
            let facts = self.table.entries[&id].facts.clone();
            self.table.evict(id, &fd, named.then_some(facts), released);
        }
        let held = self.table.entries.values().filter(|entry| entry.holds > 0);
        let most = LIMITS.cached.max(held.count());
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
