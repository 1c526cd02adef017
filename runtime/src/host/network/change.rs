//! From what a guest was to have and what it is to have now to what is to be done. A pure function.
//!
//! Only what is different is asked for. What the container has done to its own network stays.

use protocol::{NetlinkRequest, Network, from_hex, to_hex};

use super::netlink::{ACK, EXCL, REPLACE, REQUEST, find, u16_at, u32_at};
use super::plan::{IFF_UP, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE, ifa, interfaces};
use super::scan::{ADDRESS, Entry, INET, ROUTE};

/// Where the flags of a message are, and its body (linux/netlink.h, `struct nlmsghdr`).
const FLAGS: std::ops::Range<usize> = 6..8;
const BODY: usize = 16;

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// What is to be taken back.
    pub(super) undone: Vec<NetlinkRequest>,
    /// What is new.
    pub(super) new: Network,
}

impl Change {
    pub(super) fn is_none(&self) -> bool {
        *self == Change::default()
    }
}

/// The indices of interfaces that are not there any more as what they were.
pub(super) fn gone(before: &Network, now: &Network) -> Vec<i32> {
    let its = before.interfaces.iter();
    let gone = its.filter(|interface| !now.interfaces.contains(interface));
    gone.map(|interface| interface.index).collect()
}

/// What is left of a network when interfaces are gone, as the kernel that has them sees to it.
pub(super) fn without(mut network: Network, gone: &[i32]) -> Network {
    network
        .interfaces
        .retain(|interface| !gone.contains(&interface.index));
    network.requests.retain(|request| {
        let asked = Asked::of(request);
        !gone
            .iter()
            .any(|index| asked.is_about(index.cast_unsigned()))
    });
    network
}

/// What turns one network into another, which has all its interfaces.
pub(super) fn between(before: &Network, now: &Network) -> Change {
    let old: Vec<Asked<'_>> = before.requests.iter().map(Asked::of).collect();
    let all: Vec<Asked<'_>> = now.requests.iter().map(Asked::of).collect();
    let is_new = |asked: &Asked<'_>| !old.contains(asked);
    // What is said of an interface is said in several messages, of which a later one counts.
    let is_set = |asked: &Asked<'_>| {
        let mut others = all.iter().filter(|other| is_new(other));
        asked.kind == RTM_NEWLINK
            && others.any(|other| other.kind == RTM_NEWLINK && other.index() == asked.index())
    };
    let undone = old.iter().rev().filter(|asked| !all.contains(asked));
    let undone = undone.filter(|asked| !all.iter().any(|other| asked.is_replaced_by(other)));
    let undone = undone.filter_map(Asked::undone).collect();

    let added = |name: &str| {
        let mut new = now
            .interfaces
            .iter()
            .filter(|interface| !before.interfaces.contains(interface));
        new.any(|interface| interface.name == name)
    };
    // ipv4/conf/eth0/forwarding
    let of_added = |file: &str| file.split('/').nth(2).is_some_and(added);
    let settings = now.settings.iter().filter(|(file, _)| of_added(file));
    let requests = all.iter().filter(|asked| is_new(asked) || is_set(asked));
    let requests =
        requests.map(
            |asked| match old.iter().any(|other| other.is_replaced_by(asked)) {
                true => asked.replacing(),
                false => asked.request.clone(),
            },
        );
    Change {
        undone,
        new: Network {
            interfaces: now
                .interfaces
                .iter()
                .filter(|interface| !before.interfaces.contains(interface))
                .cloned()
                .collect(),
            settings: settings.cloned().collect(),
            requests: requests.collect(),
            names: false,
        },
    }
}

/// A request, and its message.
struct Asked<'a> {
    request: &'a NetlinkRequest,
    message: Vec<u8>,
    /// The message's type.
    kind: u16,
}

/// What counts is the message.
impl PartialEq for Asked<'_> {
    fn eq(&self, other: &Asked<'_>) -> bool {
        self.message == other.message
    }
}

impl<'a> Asked<'a> {
    fn of(request: &'a NetlinkRequest) -> Asked<'a> {
        // They are of this program's own making.
        let message = from_hex(&request.message).unwrap_or_default();
        let kind = u16_at(&message, 4).unwrap_or_default();
        Asked {
            request,
            message,
            kind,
        }
    }

    fn body(&self) -> &[u8] {
        self.message.get(BODY..).unwrap_or_default()
    }

    /// The index of the interface in the fixed part, which is at the same place for links, addresses and neighbours.
    fn index(&self) -> Option<u32> {
        u32_at(self.body(), 4)
    }

    /// Whether it goes with an interface.
    fn is_about(&self, index: u32) -> bool {
        match self.kind {
            RTM_NEWLINK | RTM_NEWADDR | RTM_NEWNEIGH => self.index() == Some(index),
            RTM_NEWROUTE => match self.body().split_at_checked(ROUTE) {
                Some((fixed, attributes)) => interfaces(&Entry {
                    fixed: fixed.to_owned(),
                    attributes: attributes.to_owned(),
                })
                .contains(&index),
                None => false,
            },
            _ => false,
        }
    }

    /// An address of an interface: family, length of the prefix, interface, the address itself.
    fn address(&self) -> Option<(u8, u8, u32, &[u8])> {
        if self.kind != RTM_NEWADDR {
            return None;
        }
        let (fixed, attributes) = self.body().split_at_checked(ADDRESS)?;
        let own = find(attributes, ifa::LOCAL).filter(|_| fixed[0] == INET);
        let own = own.or_else(|| find(attributes, ifa::ADDRESS))?;
        Some((fixed[0], fixed[1], self.index()?, own))
    }

    /// Whether the other one says something else of the same thing.
    fn is_replaced_by(&self, other: &Asked<'_>) -> bool {
        self != other && self.address().is_some() && self.address() == other.address()
    }

    /// The request for what is there already.
    fn replacing(&self) -> NetlinkRequest {
        let flags = u16_at(&self.message, FLAGS.start).unwrap_or_default() & !EXCL | REPLACE;
        self.with(self.kind, flags, None)
    }

    /// The request to take it back, if that can be: an interface that is up can go down, and no more than that.
    fn undone(&self) -> Option<NetlinkRequest> {
        let flags = REQUEST | ACK;
        if self.kind != RTM_NEWLINK {
            // RTM_DEL* is one more than RTM_NEW*.
            return Some(self.with(self.kind + 1, flags, None));
        }
        let changed = u32_at(self.body(), 12);
        (changed == Some(IFF_UP)).then(|| self.with(self.kind, flags, Some(0)))
    }

    /// The same with another type and other flags; `up`, for a link, are the flags of the interface.
    fn with(&self, kind: u16, flags: u16, up: Option<u32>) -> NetlinkRequest {
        let mut message = self.message.clone();
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = message.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        put(4, &kind.to_ne_bytes());
        put(FLAGS.start, &flags.to_ne_bytes());
        if let Some(up) = up {
            put(BODY + 8, &up.to_ne_bytes());
        }
        let what = match kind == self.kind {
            true => self.request.what.clone(),
            false => format!("take back: {}", self.request.what),
        };
        NetlinkRequest {
            what,
            message: to_hex(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::plan;
    use super::super::plan::tests::{address, ip, link, number, route, usual};
    use super::super::scan::{Link, Scan};
    use super::*;

    fn network(scan: &Scan) -> Network {
        plan(scan, &[], &[], 8).unwrap().network
    }

    /// What is undone and what is asked for, in words, each with the message's type and flags.
    fn words(change: &Change) -> Vec<String> {
        let requests = change.undone.iter().chain(&change.new.requests);
        let word = |request: &NetlinkRequest| {
            let message = from_hex(&request.message).unwrap();
            let at = |at| u16_at(&message, at).unwrap();
            format!("{} {:#x} {}", at(4), at(6), request.what)
        };
        requests.map(word).collect()
    }

    /// The usual interface and another one, with an address and the default route.
    fn two() -> Scan {
        let mut scan = usual();
        scan.links.push(link(5, "eth1"));
        scan.addresses.push(address(5, ip("10.9.0.2"), 24, 0));
        let gateway: [(u16, &[u8]); 2] = [(4, &number(5)), (5, &[10, 9, 0, 1])];
        scan.routes.push(route(None, 3, &gateway));
        scan
    }

    #[test]
    fn nothing_is_done_where_nothing_has_changed() {
        assert!(between(&network(&two()), &network(&two())).is_none());
        assert!(between(&Network::default(), &Network::default()).is_none());
    }

    #[test]
    fn an_interface_that_comes_is_set_up_as_one_that_was_there() {
        let mut scan = two();
        scan.links[2].inet = vec![1];
        let change = between(&network(&usual()), &network(&scan));
        assert!(change.undone.is_empty());
        assert_eq!(change.new.interfaces, network(&scan).interfaces[1..]);
        let forwarding = ("ipv4/conf/eth1/forwarding".to_owned(), "1".to_owned());
        assert_eq!(change.new.settings, [forwarding]);
        let fresh = between(&Network::default(), &network(&scan));
        let of_the_first = words(&between(&Network::default(), &network(&usual())));
        let mut expected = words(&fresh);
        expected.retain(|word| !of_the_first.contains(word));
        assert_eq!(words(&change), expected);
        assert_eq!(expected.len(), 4, "set up, up, an address, a route");
    }

    #[test]
    fn what_goes_with_an_interface_needs_no_word() {
        let before = network(&two());
        let now = network(&usual());
        assert_eq!(gone(&before, &now), [5]);
        assert_eq!(without(before, &[5]), now);
        // One that has another address is another one.
        let mut other = two();
        other.links[2].address[0] = 6;
        assert_eq!(gone(&network(&two()), &network(&other)), [5]);
        let left = without(network(&two()), &[5]);
        assert_eq!(between(&left, &network(&other)).new.requests.len(), 4);
    }

    #[test]
    fn what_is_not_there_any_more_is_taken_back_before_what_is_new() {
        let mut scan = usual();
        scan.addresses[1] = address(2, ip("10.0.0.3"), 16, 0);
        scan.links[1].flags &= !IFF_UP;
        let gateway: [(u16, &[u8]); 2] = [(4, &number(2)), (5, &[10, 0, 0, 1])];
        let mut before = usual();
        before.routes.push(route(None, 3, &gateway));
        let change = between(&network(&before), &network(&scan));
        assert_eq!(
            words(&change),
            [
                "25 0x5 take back: add the IPv4 default route via 10.0.0.1",
                "21 0x5 take back: add the address 10.0.0.2/24 to eth0",
                // It goes down.
                "16 0x5 bring eth0 up",
                "20 0x605 add the address 10.0.0.3/16 to eth0",
            ]
        );
        let down = from_hex(&change.undone[2].message).unwrap();
        assert_eq!((u32_at(&down, 24), u32_at(&down, 28)), (Some(0), Some(1)));
    }

    #[test]
    fn an_address_that_is_said_anew_is_replaced_and_a_link_is_set_as_a_whole() {
        let mut scan = usual();
        scan.addresses[1] = address(2, ip("10.0.0.2"), 24, ifa::F_NODAD);
        let change = between(&network(&usual()), &network(&scan));
        assert_eq!(
            words(&change),
            ["20 0x505 add the address 10.0.0.2/24 to eth0"]
        );
        let scan = Scan {
            links: vec![Link {
                mtu: 9000,
                ..link(2, "eth0")
            }],
            ..usual()
        };
        let change = between(&network(&usual()), &network(&scan));
        assert_eq!(
            words(&change),
            ["16 0x5 set up eth0", "16 0x5 bring eth0 up"]
        );
    }
}
