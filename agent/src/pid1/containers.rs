//! The containers of the machine.
//!
//! ```text
//!  (new number) ──create──> in the table ──its end has been told, its cgroup is empty──> gone
//! ```
//! Invariants: a number names one container for the life of the guest; no two containers have a
//! cgroup in common; of one that is gone nothing is left but its number.
//!
//! The machine has been made for [`FIRST`], whose network is the machine's and with which it ends:
//! that one stays in the table, and no time is spent on removing what is left of it. What a
//! further container does not get: kernel parameters that are not its namespaces' own, for these are
//! the guest's and it would take them from the others.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use protocol::{CONTAINERS_MAX, ContainerId, Create, FIRST, Joined};
use specification::namespace;

use super::container::{Container, Event};
use crate::error::{Error, Result};
use crate::hierarchy;
use crate::paths::CONTAINERS;
use crate::sys::Reaped;

/// Maximum number of containers at a time.
const AT_A_TIME: usize = 64;

/// The table.
#[derive(Default)]
pub(crate) struct Containers {
    table: BTreeMap<ContainerId, Container>,
    /// The numbers that have been used. They come in any order: several containers are created at the same time.
    used: BTreeSet<ContainerId>,
    /// Those that are gone and whose removal the host has asked for, by requests.
    removed: Vec<(ContainerId, u64)>,
}

impl Containers {
    /// Begins to create a container, for `request`.
    ///
    /// # Errors
    /// The number has been used, there are too many containers, the cgroup is another container's
    /// or the hierarchy's root, or no process can be started.
    pub(crate) fn create(
        &mut self,
        number: ContainerId,
        request: u64,
        create: &Create,
    ) -> Result<&Container> {
        let root = Path::new(hierarchy::ROOT);
        let cgroup = hierarchy::below(root, &create.cgroup)?;
        if cgroup == root {
            return Err(Error::Config("linux.cgroupsPath: names no cgroup".into()));
        }
        let joins = self.joined(&create.joins)?;
        self.admit(number, &cgroup)?;
        let directory = Path::new(CONTAINERS).join(number.to_string());
        let container = Container::create(request, directory, cgroup, create, joins)?;
        Ok(self.table.entry(number).or_insert(container))
    }

    /// The processes that lead to the namespaces of other containers, with the `CLONE_NEW*` bits of those.
    fn joined(&self, joins: &[Joined]) -> Result<Vec<(i32, i32)>> {
        let all = namespace::ALL.map(namespace::flag).into_iter();
        let all = all.fold(0, |all, flag| all | flag) & !libc::CLONE_NEWNS;
        let one = |joined: &Joined| {
            if joined.namespaces & !all != 0 {
                return Err(Error::Config("namespaces that cannot be joined".into()));
            }
            let init = self.get(joined.container).and_then(Container::init);
            let gone = || {
                Error::Config("the container whose namespaces are to be joined has ended".into())
            };
            Ok((init.ok_or_else(gone)?, joined.namespaces))
        };
        joins.iter().map(one).collect()
    }

    /// Checks whether there may be one more container with this number and cgroup. From here on the
    /// number is used.
    fn admit(&mut self, number: ContainerId, cgroup: &Path) -> Result<()> {
        let refuse = |text: &str| Err(Error::Config(text.to_owned()));
        if number >= CONTAINERS_MAX || !self.used.insert(number) {
            return refuse("the container's number has been used before, or is out of range");
        }
        if self.table.len() >= AT_A_TIME {
            return refuse("there are too many containers in this machine");
        }
        let mut others = self.table.values().map(Container::cgroup_directory);
        if others.any(|other| other.starts_with(cgroup) || cgroup.starts_with(other)) {
            return refuse("linux.cgroupsPath: another container of this machine has it");
        }
        Ok(())
    }

    /// A container.
    pub(crate) fn get(&self, number: ContainerId) -> Option<&Container> {
        self.table.get(&number)
    }

    /// A container, to be asked for something or to be told what has happened.
    pub(crate) fn get_mut(&mut self, number: ContainerId) -> Option<&mut Container> {
        self.table.get_mut(&number)
    }

    /// All containers, likewise.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (ContainerId, &mut Container)> {
        let containers = self.table.iter_mut();
        containers.map(|(number, container)| (*number, container))
    }

    /// Gives up a container that cannot be served.
    pub(crate) fn forget(&mut self, number: ContainerId) {
        self.table.remove(&number);
    }

    /// Those that are gone and whose removal the host has asked for, with its requests; once.
    pub(crate) fn take_removed(&mut self) -> Vec<(ContainerId, u64)> {
        std::mem::take(&mut self.removed)
    }

    /// Notes the end of a child.
    pub(crate) fn reaped(&mut self, child: &Reaped) {
        // Stage processes are nobody's.
        let _ = self.table.values_mut().any(|c| c.reaped(child));
    }

    /// A container whose kills for lack of memory the host must be told of.
    pub(crate) fn take_out_of_memory(&mut self) -> Option<ContainerId> {
        self.iter_mut()
            .find_map(|(number, container)| container.take_out_of_memory().then_some(number))
    }

    /// Moves what can be moved and takes the steps that have become possible. Returns what the host
    /// must be told of them, and whether there is more to move at once.
    pub(crate) fn turn(&mut self) -> (Vec<(ContainerId, Event)>, bool) {
        let mut events = Vec::new();
        let mut more = false;
        for (number, container) in self.iter_mut() {
            let (news, again) = container.turn();
            events.extend(news.into_iter().map(|event| (number, event)));
            more |= again;
        }
        (events, more)
    }

    /// Removes the containers whose end has been told, but for [`FIRST`]. Returns what is left to be
    /// told.
    pub(crate) fn sweep(&mut self) -> Vec<(ContainerId, Event)> {
        let further = self.table.range(FIRST + 1..);
        let over = further.filter(|(_, container)| container.is_over());
        let over: Vec<ContainerId> = over.map(|(number, _)| *number).collect();
        let mut events = Vec::new();
        for number in over {
            if let Some(container) = self.table.remove(&number) {
                self.removed
                    .extend(container.removal().map(|id| (number, id)));
                let left = container.bury().into_iter();
                events.extend(left.map(|event| (number, event)));
            }
        }
        events
    }
}
