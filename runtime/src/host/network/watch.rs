//! A network namespace that is watched while its container runs.
//!
//! ```text
//!  events ──> read the namespace ──> interfaces that are gone ──> told ──┐
//!                 ^                                                      v
//!                 └── without one that cannot be joined <── taps for those that are new ──> what is different: told
//! ```
//! Invariant: what was told last is what the guest has, as far as it does what it is told. So what changes while it is
//! looked at is found the next time, of which there is an event.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use protocol::Network;

use super::change::{Change, between, gone, without};
use super::names::Listeners;
use super::netlink::Socket;
use super::plan::{NetworkPlan, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, is_made, plan};
use super::scan::{self, ROUTE, Scan};
use super::{Error, is_ours, joint};
use crate::control::NetworkChange;
use crate::error::{Doing, one_line};

/// What is heard of: links, addresses, routes and rules, as bits of `RTNLGRP_*` (linux/rtnetlink.h).
const GROUPS: u32 = 1 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18;

/// Message types (linux/rtnetlink.h); the opposite of each is one more.
const RTM_DELLINK: u16 = RTM_NEWLINK + 1;
const RTM_DELROUTE: u16 = RTM_NEWROUTE + 1;

/// A namespace that is watched.
pub(crate) struct Watch {
    events: Socket,
    socket: Socket,
    /// Interfaces that are carried over by name.
    wanted: Vec<String>,
    slots: usize,
    /// Who listens there, as long as the guest has no name server and may get one.
    listeners: Option<Listeners>,
    /// What the guest has.
    network: Network,
    /// What was said of it the last time.
    notes: Vec<String>,
}

/// Who does what is told: the machine. An error is something that the log is to say; without a value there is nobody any
/// more.
pub(crate) type Tell<'a> = dyn FnMut(NetworkChange, &[OwnedFd]) -> Option<Result<(), String>> + 'a;

impl Watch {
    /// Hears of changes from now on in the namespace that the calling thread is in.
    pub(super) fn begin(wanted: &[String], slots: usize) -> Result<Watch, Error> {
        Ok(Watch {
            events: Socket::listen(GROUPS).doing("listen to changes of the network")?,
            socket: Socket::open().doing("create a netlink socket")?,
            wanted: wanted.to_owned(),
            slots,
            listeners: None,
            network: Network::default(),
            notes: Vec::new(),
        })
    }

    /// Takes what the guest gets as what it has. With `listeners` it may get a name server later.
    pub(super) fn of(self, network: Network, listeners: Option<Listeners>) -> Watch {
        Watch {
            listeners: listeners.filter(|_| !network.names),
            network,
            ..self
        }
    }

    /// Readable when something may have changed.
    pub(crate) fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// All that it has open.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let listeners = self.listeners.iter().map(AsFd::as_fd);
        [self.events.as_fd(), self.socket.as_fd()]
            .into_iter()
            .chain(listeners)
    }

    /// Looks at what has changed, and tells it. Nothing: there is nobody any more who could be told.
    pub(crate) fn look(&mut self, tell: &mut Tell<'_>) -> Option<()> {
        let mut matters = false;
        let heard = self
            .events
            .heard(|kind, body| matters |= is_of_interest(kind, body));
        match heard {
            Ok(lost) if !(matters || lost) => return Some(()),
            Ok(_) => {}
            Err(e) => self.say(
                vec![format!("cannot hear of changes of the network: {e}")],
                tell,
            )?,
        }
        match scan::scan(&self.socket).doing("read the container's network namespace") {
            Ok(scan) => self.follow(scan, tell),
            Err(e) => self.say(vec![one_line(&e)], tell),
        }
    }

    fn follow(&mut self, mut scan: Scan, tell: &mut Tell<'_>) -> Option<()> {
        let mut notes = Vec::new();
        loop {
            let now = match self.plan(&mut scan, &mut notes) {
                Ok(now) => now,
                Err(e) => return self.say(vec![one_line(&e)], tell),
            };
            // First, so that the names of their taps are free.
            self.let_go(gone(&self.network, &now.network), tell)?;
            let mut change = between(&self.network, &now.network);
            let taps = match self.taps(&change) {
                Ok(taps) => taps,
                Err((index, e)) => {
                    notes.push(one_line(&e));
                    scan.links.retain(|link| link.index != index);
                    continue;
                }
            };
            notes.extend(now.warnings);
            self.network = now.network;
            change.new.names = !taps.is_empty() && self.has_name_server();
            if change.new.names {
                self.listeners = None;
            }
            return self.told(change, notes, &taps, tell);
        }
    }

    /// What the guest is to have; interfaces that it cannot have are taken out.
    fn plan(&self, scan: &mut Scan, notes: &mut Vec<String>) -> Result<NetworkPlan, Error> {
        let joined: Vec<i32> = self
            .network
            .interfaces
            .iter()
            .map(|its| its.index)
            .collect();
        loop {
            match plan(scan, &self.wanted, &joined, self.slots) {
                Err(Error::Interface(name, why)) => {
                    scan.links.retain(|link| link.name != name);
                    notes.push(Error::Interface(name, why).to_string());
                }
                result => return result,
            }
        }
    }

    /// Whether there is a name server by now that the guest does not have. One comes before the interface of its network.
    fn has_name_server(&self) -> bool {
        let mut listeners = self.listeners.iter();
        listeners.any(|listeners| listeners.at_name_server().unwrap_or(false))
    }

    fn let_go(&mut self, gone: Vec<i32>, tell: &mut Tell<'_>) -> Option<()> {
        if gone.is_empty() {
            return Some(());
        }
        self.network = without(std::mem::take(&mut self.network), &gone);
        let change = NetworkChange {
            gone,
            ..NetworkChange::default()
        };
        self.answered(tell(change, &[])?, tell)
    }

    /// The taps of the interfaces that are new, or the index of one that cannot be joined.
    fn taps(&self, change: &Change) -> Result<Vec<OwnedFd>, (i32, Error)> {
        let new = change.new.interfaces.iter();
        let join = |interface| joint::make(&self.socket, interface);
        new.map(|interface| join(interface).map_err(|e| (interface.index, e)))
            .collect()
    }

    fn told(
        &mut self,
        change: Change,
        notes: Vec<String>,
        taps: &[OwnedFd],
        tell: &mut Tell<'_>,
    ) -> Option<()> {
        let new_notes = self.unsaid(notes);
        if change.is_none() && new_notes.is_empty() {
            return Some(());
        }
        let Change { undone, new } = change;
        let change = NetworkChange {
            gone: Vec::new(),
            undone,
            new,
            notes: new_notes,
        };
        self.answered(tell(change, taps)?, tell)
    }

    /// Has the log say something.
    fn say(&mut self, notes: Vec<String>, tell: &mut Tell<'_>) -> Option<()> {
        self.told(Change::default(), notes, &[], tell)
    }

    fn answered(&mut self, answer: Result<(), String>, tell: &mut Tell<'_>) -> Option<()> {
        let Err(text) = answer else { return Some(()) };
        let notes = vec![format!("cannot follow a change of the network: {text}")];
        let change = NetworkChange {
            notes,
            ..NetworkChange::default()
        };
        // What cannot be said either is lost.
        tell(change, &[]).map(drop)
    }

    /// What was not said the last time.
    fn unsaid(&mut self, notes: Vec<String>) -> Vec<String> {
        let before = std::mem::replace(&mut self.notes, notes);
        let new = self.notes.iter().filter(|note| !before.contains(note));
        new.cloned().collect()
    }
}

/// Whether a message may be about something that the guest is to have. Taps and what a kernel makes of addresses are
/// not.
fn is_of_interest(kind: u16, body: &[u8]) -> bool {
    match kind {
        RTM_NEWLINK | RTM_DELLINK => scan::link(body).is_none_or(|link| !is_ours(&link.name)),
        RTM_NEWROUTE | RTM_DELROUTE => {
            scan::entry(body, ROUTE).is_some_and(|route| !is_made(&route))
        }
        kind => kind >= RTM_NEWADDR,
    }
}
