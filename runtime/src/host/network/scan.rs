//! What is in a network namespace.

use std::io;

use super::netlink::{Message, REQUEST, Socket, find, i32_at, string, u16_at, u32_at};

/// Message types (linux/rtnetlink.h).
const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;
const RTM_GETRULE: u16 = 34;

/// Sizes of the fixed parts of the messages: `struct ifinfomsg`, `ifaddrmsg`, `rtmsg` (linux/rtnetlink.h,
/// linux/if_addr.h), `ndmsg` (linux/neighbour.h), `fib_rule_hdr` (linux/fib_rules.h).
const LINK: usize = 16;
pub(super) const ADDRESS: usize = 8;
pub(super) const ROUTE: usize = 12;
pub(super) const NEIGHBOUR: usize = 12;
pub(super) const RULE: usize = 12;

/// Attributes of a link (linux/if_link.h).
mod ifla {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const IFNAME: u16 = 3;
    pub(super) const MTU: u16 = 4;
    pub(super) const LINK: u16 = 5;
    pub(super) const MASTER: u16 = 10;
    pub(super) const TXQLEN: u16 = 13;
    pub(super) const LINKINFO: u16 = 18;
    pub(super) const AF_SPEC: u16 = 26;
    pub(super) const LINK_NETNSID: u16 = 37;
    pub(super) const INFO_KIND: u16 = 1;
    pub(super) const INET_CONF: u16 = 1;
    pub(super) const INET6_CONF: u16 = 2;
    pub(super) const INET6_ADDR_GEN_MODE: u16 = 8;
}

/// Address families (linux/socket.h).
pub(super) const INET: u8 = 2;
pub(super) const INET6: u8 = 10;

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: i32,
    pub(super) name: String,
    /// `IFF_*`.
    pub(super) flags: u32,
    /// `ARPHRD_*`.
    pub(super) hardware: u16,
    /// Its hardware address.
    pub(super) address: Vec<u8>,
    pub(super) mtu: u32,
    pub(super) queue_length: u32,
    /// Of a virtual one: `veth`, say.
    pub(super) kind: String,
    /// The interface of the same namespace that it stands on.
    pub(super) lower: Option<i32>,
    /// The interface of the same namespace that it is a port of.
    pub(super) master: Option<i32>,
    /// Settings of IPv4: `IPV4_DEVCONF_*` is one more than the index here.
    pub(super) inet: Vec<i32>,
    /// Settings of IPv6, by `DEVCONF_*`; without any it has no IPv6.
    pub(super) inet6: Vec<i32>,
    /// How it makes its link-local address (`IN6_ADDR_GEN_MODE_*`).
    pub(super) generation: u8,
}

/// An entry of a table: its fixed part, and its attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) fixed: Vec<u8>,
    pub(super) attributes: Vec<u8>,
}

impl Entry {
    /// A byte of the fixed part.
    pub(super) fn byte(&self, at: usize) -> u8 {
        self.fixed.get(at).copied().unwrap_or(0)
    }

    /// A number of the fixed part.
    pub(super) fn number(&self, at: usize) -> u32 {
        u32_at(&self.fixed, at).unwrap_or(0)
    }

    /// The value of an attribute.
    pub(super) fn find(&self, attribute: u16) -> Option<&[u8]> {
        find(&self.attributes, attribute)
    }

    /// The value of an attribute that is a number.
    pub(super) fn find_number(&self, attribute: u16) -> Option<u32> {
        u32_at(self.find(attribute)?, 0)
    }
}

/// All that matters of a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Scan {
    pub(super) links: Vec<Link>,
    pub(super) addresses: Vec<Entry>,
    pub(super) routes: Vec<Entry>,
    pub(super) neighbours: Vec<Entry>,
    pub(super) rules: Vec<Entry>,
}

/// The interfaces of the namespace that the socket belongs to.
pub(super) fn links(socket: &Socket) -> io::Result<Vec<Link>> {
    let links = socket.dump(RTM_GETLINK, &[0; LINK])?;
    Ok(links.iter().filter_map(|body| link(body)).collect())
}

/// The index of an interface.
pub(super) fn index_of(socket: &Socket, name: &str) -> io::Result<u32> {
    let message = Message::new(RTM_GETLINK, REQUEST, &[0; LINK]).with(ifla::IFNAME, &string(name));
    let body = socket.get(message)?;
    u32_at(&body, 4).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Looks at the namespace that the socket belongs to.
pub(super) fn scan(socket: &Socket) -> io::Result<Scan> {
    Ok(Scan {
        links: links(socket)?,
        addresses: addresses(socket)?,
        routes: table(socket, RTM_GETROUTE, ROUTE)?,
        neighbours: table(socket, RTM_GETNEIGH, NEIGHBOUR)?,
        rules: table(socket, RTM_GETRULE, RULE)?,
    })
}

/// The addresses of all interfaces.
pub(super) fn addresses(socket: &Socket) -> io::Result<Vec<Entry>> {
    table(socket, RTM_GETADDR, ADDRESS)
}

fn table(socket: &Socket, kind: u16, fixed: usize) -> io::Result<Vec<Entry>> {
    let bodies = socket.dump(kind, &vec![0; fixed])?;
    Ok(bodies
        .iter()
        .filter_map(|body| entry(body, fixed))
        .collect())
}

/// An entry for IPv4 or IPv6; others (multicast routing, bridges) are not looked at.
pub(super) fn entry(body: &[u8], fixed: usize) -> Option<Entry> {
    let (fixed, attributes) = body.split_at_checked(fixed)?;
    matches!(fixed.first(), Some(&(INET | INET6))).then(|| Entry {
        fixed: fixed.to_owned(),
        attributes: attributes.to_owned(),
    })
}

/// An interface, as RTM_NEWLINK describes it.
pub(super) fn link(body: &[u8]) -> Option<Link> {
    let (fixed, attributes) = body.split_at_checked(LINK)?;
    let number = |kind| u32_at(find(attributes, kind)?, 0);
    let index = |kind| i32_at(find(attributes, kind)?, 0).filter(|index| *index != 0);
    let text = |bytes: &[u8]| {
        let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    let kind = find(attributes, ifla::LINKINFO).and_then(|info| find(info, ifla::INFO_KIND));
    let families = find(attributes, ifla::AF_SPEC).unwrap_or_default();
    let family = |family: u8, kind| find(find(families, family.into())?, kind);
    let settings = |bytes: Option<&[u8]>| {
        let words = bytes.unwrap_or_default().chunks_exact(4);
        words.filter_map(|word| i32_at(word, 0)).collect()
    };
    Some(Link {
        index: i32_at(fixed, 4)?,
        name: text(find(attributes, ifla::IFNAME)?),
        flags: u32_at(fixed, 8)?,
        hardware: u16_at(fixed, 2)?,
        address: find(attributes, ifla::ADDRESS)
            .unwrap_or_default()
            .to_owned(),
        mtu: number(ifla::MTU)?,
        queue_length: number(ifla::TXQLEN).unwrap_or(0),
        kind: kind.map(text).unwrap_or_default(),
        // With an id it is an interface of that namespace.
        lower: index(ifla::LINK).filter(|_| find(attributes, ifla::LINK_NETNSID).is_none()),
        master: index(ifla::MASTER),
        inet: settings(family(INET, ifla::INET_CONF)),
        inet6: settings(family(INET6, ifla::INET6_CONF)),
        generation: family(INET6, ifla::INET6_ADDR_GEN_MODE)
            .and_then(|mode| mode.first().copied())
            .unwrap_or(0),
    })
}
