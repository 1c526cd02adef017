//! From what is in a network namespace of the host to what the guest is to have. A pure function.
//!
//! The guest's interfaces have the indices of the host's, so addresses, routes, rules and neighbours are passed on as
//! the host's kernel describes them, less what a kernel makes of itself.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use protocol::{Interface, NetlinkRequest, Network, to_hex};

use super::netlink::{
    ACK, APPEND, CREATE, EXCL, Message, REPLACE, REQUEST, attribute, attributes, u32_at,
};
use super::scan::{Entry, INET, INET6, Link, Scan};
use super::{Error, is_ours, tap_name};

/// Message types (linux/rtnetlink.h).
pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_NEWNEIGH: u16 = 28;
const RTM_NEWRULE: u16 = 32;

/// The flags of an interface that are its own matter (linux/if.h): IFF_NOARP, IFF_MULTICAST.
const KEPT_FLAGS: u32 = 0x80 | 0x1000;
pub(super) const IFF_UP: u32 = 1;

/// ARPHRD_ETHER (linux/if_arp.h).
const ETHERNET: u16 = 1;

/// The least and greatest MTU that an Ethernet interface of the guest takes (linux/if_ether.h, `ETH_MIN_MTU`;
/// virtio_net.c, `MAX_MTU`).
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;

/// Attributes of a link (linux/if_link.h).
const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
pub(super) const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

/// Attributes and flags of an address (linux/if_addr.h).
pub(super) mod ifa {
    pub(in crate::host::network) const ADDRESS: u16 = 1;
    pub(in crate::host::network) const LOCAL: u16 = 2;
    pub(in crate::host::network) const LABEL: u16 = 3;
    pub(in crate::host::network) const BROADCAST: u16 = 4;
    pub(in crate::host::network) const CACHEINFO: u16 = 6;
    pub(in crate::host::network) const FLAGS: u16 = 8;
    /// With the priority of its route, and its protocol.
    pub(in crate::host::network) const KEPT: [u16; 6] = [ADDRESS, LOCAL, LABEL, BROADCAST, 9, 11];
    pub(in crate::host::network) const F_NODAD: u32 = 0x02;
    /// Nobody but who has set the address takes it away again.
    pub(in crate::host::network) const F_PERMANENT: u32 = 0x80;
    pub(in crate::host::network) const F_NOPREFIXROUTE: u32 = 0x200;
    /// NODAD, HOMEADDRESS, MANAGETEMPADDR, NOPREFIXROUTE, MCAUTOJOIN.
    pub(in crate::host::network) const F_KEPT: u32 =
        F_NODAD | 0x10 | 0x100 | F_NOPREFIXROUTE | 0x400;
}

/// Attributes, flags and values of a route (linux/rtnetlink.h).
mod rta {
    pub(super) const DST: u16 = 1;
    pub(super) const OIF: u16 = 4;
    pub(super) const GATEWAY: u16 = 5;
    pub(super) const PREFSRC: u16 = 7;
    pub(super) const MULTIPATH: u16 = 9;
    pub(super) const TABLE: u16 = 15;
    pub(super) const VIA: u16 = 18;
    /// What the kernel says of its own state: how long a route has been there, counters, padding, and the object that
    /// its next hops, which it lists too, come from.
    pub(super) const STATE: [u16; 6] = [12, 17, 23, 24, 25, 30];
    pub(super) const TABLE_LOCAL: u32 = 255;
    pub(super) const TABLE_MAIN: u32 = 254;
    pub(super) const F_CLONED: u32 = 0x200;
    pub(super) const F_ONLINK: u32 = 4;
    pub(super) const PROTOCOL_REDIRECT: u8 = 1;
    pub(super) const PROTOCOL_KERNEL: u8 = 2;
    pub(super) const PROTOCOL_RA: u8 = 9;
    /// Size of `struct rtnexthop`.
    pub(super) const NEXT_HOP: usize = 8;
}

/// Attributes and flags of a rule (linux/fib_rules.h).
mod fra {
    pub(super) const PRIORITY: u16 = 6;
    pub(super) const PROTOCOL: u16 = 21;
    pub(super) const F_INVERT: u32 = 2;
}

/// Attributes and states of a neighbour (linux/neighbour.h).
mod nda {
    pub(super) const DST: u16 = 1;
    pub(super) const LLADDR: u16 = 2;
    pub(super) const PERMANENT: u16 = 0x80;
}

/// The interfaces' settings below `/proc/sys/net` that are carried over when they are not what a kernel has at its
/// start: family, index (linux/ip.h less one, linux/ipv6.h), name, value at the start.
const SETTINGS: [(u8, usize, &str, i32); 14] = [
    (INET, 0, "forwarding", 0),
    (INET, 2, "proxy_arp", 0),
    (INET, 3, "accept_redirects", 1),
    (INET, 7, "rp_filter", 0),
    (INET, 17, "arp_announce", 0),
    (INET, 18, "arp_ignore", 0),
    (INET, 21, "arp_notify", 0),
    (INET, 22, "accept_local", 0),
    (INET, 23, "src_valid_mark", 0),
    (INET, 25, "route_localnet", 0),
    (INET6, 0, "forwarding", 0),
    (INET6, 3, "accept_ra", 1),
    (INET6, 5, "autoconf", 1),
    (INET6, 26, "disable_ipv6", 0),
];

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct NetworkPlan {
    /// What the guest is to have. The numbers of the devices are still 0.
    pub(super) network: Network,
    /// What is left out that is usual to be left out.
    pub(super) skipped: Vec<String>,
    /// What is left out that somebody may miss.
    pub(super) warnings: Vec<String>,
}

/// Decides what the guest is to have: the interfaces with addresses, those `wanted` by name, and those with these
/// indices, which are `joined` to its machine already.
pub(super) fn plan(
    scan: &Scan,
    wanted: &[String],
    joined: &[i32],
    slots: usize,
) -> Result<NetworkPlan, Error> {
    let mut plan = NetworkPlan::default();
    let links: Vec<&Link> = scan
        .links
        .iter()
        .filter(|link| joined.contains(&link.index) || plan.is_carried(link, scan, wanted))
        .collect();
    let name_of = |index: u32| {
        let mut links = links.iter();
        let link = links.find(|link| link.index.cast_unsigned() == index);
        link.map(|link| link.name.as_str())
    };
    if links.len() > slots {
        let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        return Err(Error::Slots(names.join(", "), links.len(), slots));
    }
    for link in &links {
        if !joined.contains(&link.index) {
            check_free(link, scan)?;
        }
        check(link, &name_of)?;
        plan.interface(link)?;
        plan.addresses(link, scan);
    }
    plan.routes(scan, &name_of);
    plan.rules(scan);
    plan.neighbours(scan, &name_of);
    Ok(plan)
}

/// Whether another machine has an interface.
fn check_free(link: &Link, scan: &Scan) -> Result<(), Error> {
    let tap = tap_name(link.index);
    if scan.links.iter().any(|other| other.name == tap) {
        let why = "it is joined to a machine already";
        return Err(Error::Interface(link.name.clone(), why.into()));
    }
    Ok(())
}

/// What stands in the way of an interface's packets.
fn check<'a>(link: &Link, carried: &impl Fn(u32) -> Option<&'a str>) -> Result<(), Error> {
    let refuse = |why: String| Err(Error::Interface(link.name.clone(), why));
    check_hardware(link)?;
    if !MTU.contains(&link.mtu) {
        return refuse(format!("an MTU of {} is not possible", link.mtu));
    }
    // What comes for the upper one is taken away from the lower one before it gets there. The other end of a veth is
    // not below it.
    for below in [link.lower.filter(|_| link.kind != "veth"), link.master] {
        if let Some(below) = below.and_then(|index| carried(index.cast_unsigned())) {
            return refuse(format!(
                "it and {below}, which has it or which it is on, cannot both be"
            ));
        }
    }
    Ok(())
}

/// Whether a machine can have an interface of this kind.
pub(super) fn check_hardware(link: &Link) -> Result<(), Error> {
    if link.hardware == ETHERNET && link.address.len() == 6 {
        return Ok(());
    }
    Err(Error::Interface(
        link.name.clone(),
        format!("it is not an Ethernet interface (type {:?})", link.kind),
    ))
}

impl NetworkPlan {
    fn is_carried(&mut self, link: &Link, scan: &Scan, wanted: &[String]) -> bool {
        const IFF_LOOPBACK: u32 = 8;
        if link.flags & IFF_LOOPBACK != 0 || is_ours(&link.name) {
            return false;
        }
        if wanted.contains(&link.name) {
            return true;
        }
        let has_address = scan.addresses.iter().any(|address| of(address, link));
        if !has_address {
            let text = format!(
                "network interface {} is skipped: it has no address",
                link.name
            );
            if link.flags & IFF_UP == 0 {
                self.skipped.push(text);
            } else {
                self.warnings.push(text);
            }
        }
        has_address
    }

    fn ask(&mut self, what: String, message: Message) {
        self.network.requests.push(NetlinkRequest {
            what,
            message: to_hex(message.finish()),
        });
    }

    /// The interface, with its IPv6 address generation off until it has its addresses: what a kernel makes would be
    /// tried out for a second before it can be used.
    fn interface(&mut self, link: &Link) -> Result<(), Error> {
        let mac = link.address.as_slice().try_into();
        self.network.interfaces.push(Interface {
            device: 0,
            mac: mac.map_err(|_| Error::Interface(link.name.clone(), "bad address".into()))?,
            name: link.name.clone(),
            index: link.index,
        });
        for (family, index, name, usual) in SETTINGS {
            let (settings, directory) = if family == INET {
                (&link.inet, "ipv4")
            } else {
                (&link.inet6, "ipv6")
            };
            if let Some(value) = settings.get(index).filter(|value| **value != usual) {
                let file = format!("{directory}/conf/{}/{name}", link.name);
                self.network.settings.push((file, value.to_string()));
            }
        }
        let mut set = set_link(link, link.flags, KEPT_FLAGS)
            .with(IFLA_MTU, &link.mtu.to_ne_bytes())
            .with(IFLA_TXQLEN, &link.queue_length.to_ne_bytes());
        if !link.inet6.is_empty() {
            set.push(IFLA_AF_SPEC, &generation(IN6_ADDR_GEN_MODE_NONE));
        }
        self.ask(format!("set up {}", link.name), set);
        if link.flags & IFF_UP != 0 {
            self.ask(
                format!("bring {} up", link.name),
                set_link(link, IFF_UP, IFF_UP),
            );
        }
        Ok(())
    }

    fn addresses(&mut self, link: &Link, scan: &Scan) {
        let of_family = |family| {
            let mine = scan.addresses.iter();
            mine.filter(move |address| of(address, link) && address.byte(0) == family)
        };
        // A kernel puts a new IPv6 address in front of those that it has.
        let addresses = of_family(INET).chain(of_family(INET6).rev());
        for address in addresses {
            let what = format!(
                "add the address {} to {}",
                describe(address, ifa::LOCAL, ifa::ADDRESS),
                link.name
            );
            let mut flags = address.find_number(ifa::FLAGS).unwrap_or(0) & ifa::F_KEPT;
            if address.byte(0) == INET6 {
                flags |= ifa::F_NODAD;
            }
            if link.flags & IFF_UP != 0 && !has_prefix_route(address, scan) {
                flags |= ifa::F_NOPREFIXROUTE;
            }
            let mut fixed = address.fixed.clone();
            // They are in the attribute, which counts.
            fixed[2] = 0;
            let mut message = Message::new(RTM_NEWADDR, REQUEST | ACK | CREATE | EXCL, &fixed);
            for (kind, value) in attributes(&address.attributes) {
                // Lifetimes: `struct ifa_cacheinfo` begins with the preferred and the valid one, s.
                let ends = kind == ifa::CACHEINFO && u32_at(value, 4) != Some(u32::MAX);
                if ifa::KEPT.contains(&kind) || ends {
                    message.push(kind, value);
                }
            }
            self.ask(what, message.with(ifa::FLAGS, &flags.to_ne_bytes()));
        }
        if !link.inet6.is_empty() && link.generation != IN6_ADDR_GEN_MODE_NONE {
            let what = format!("set up IPv6 on {}", link.name);
            let set = set_link(link, 0, 0).with(IFLA_AF_SPEC, &generation(link.generation));
            self.ask(what, set);
        }
    }

    /// All routes but those that a kernel makes of addresses and learns from routers: first those that others need to
    /// reach their gateways.
    fn routes<'a>(&mut self, scan: &Scan, carried: &impl Fn(u32) -> Option<&'a str>) {
        let behind_gateway = |route: &&Entry| {
            [rta::GATEWAY, rta::VIA, rta::MULTIPATH]
                .into_iter()
                .any(|attribute| route.find(attribute).is_some())
        };
        let mut routes: Vec<&Entry> = scan.routes.iter().filter(|r| !is_made(r)).collect();
        routes.sort_by_key(behind_gateway);
        for route in routes {
            let name = describe_route(route);
            let known = |index: u32| index == 1 || carried(index).is_some();
            if !interfaces(route).into_iter().all(known) {
                self.warnings
                    .push(format!("{name} is skipped: its interface is"));
                continue;
            }
            let mut fixed = route.fixed.clone();
            let flags = route.number(8) & rta::F_ONLINK;
            fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
            let mut message = Message::new(RTM_NEWROUTE, REQUEST | ACK | CREATE | APPEND, &fixed);
            for (kind, value) in attributes(&route.attributes) {
                if kind == rta::MULTIPATH {
                    message.push(kind, &without_state(value));
                } else if !rta::STATE.contains(&kind) {
                    message.push(kind, value);
                }
            }
            self.ask(format!("add the {name}"), message);
        }
    }

    /// All rules but those that every namespace has.
    fn rules(&mut self, scan: &Scan) {
        for rule in &scan.rules {
            let priority = rule.find_number(fra::PRIORITY).unwrap_or(0);
            let by_kernel = rule.find(fra::PROTOCOL) == Some(&[rta::PROTOCOL_KERNEL]);
            if by_kernel && [0, 32766, 32767].contains(&priority) {
                continue;
            }
            let mut fixed = rule.fixed.clone();
            let flags = rule.number(8) & fra::F_INVERT;
            fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
            let mut message = Message::new(RTM_NEWRULE, REQUEST | ACK | CREATE | EXCL, &fixed);
            for (kind, value) in attributes(&rule.attributes) {
                message.push(kind, value);
            }
            self.ask(format!("add the rule of priority {priority}"), message);
        }
    }

    /// The permanent ones; others are found out.
    fn neighbours<'a>(&mut self, scan: &Scan, carried: &impl Fn(u32) -> Option<&'a str>) {
        for neighbour in &scan.neighbours {
            let state = super::netlink::u16_at(&neighbour.fixed, 8).unwrap_or(0);
            let name = carried(neighbour.number(4)).filter(|_| state & nda::PERMANENT != 0);
            let Some(name) = name else { continue };
            let address = neighbour.find(nda::DST).unwrap_or_default();
            let what = format!("add the neighbour {} to {name}", ip(address));
            let flags = REQUEST | ACK | CREATE | REPLACE;
            let mut message = Message::new(RTM_NEWNEIGH, flags, &neighbour.fixed);
            for kind in [nda::DST, nda::LLADDR] {
                if let Some(value) = neighbour.find(kind) {
                    message.push(kind, value);
                }
            }
            self.ask(what, message);
        }
    }
}

/// RTM_NEWLINK of an interface, that sets the flags in `changed` as in `flags`.
pub(super) fn set_link(link: &Link, flags: u32, changed: u32) -> Message {
    let index = link.index.to_ne_bytes();
    let words = [
        [0; 4],
        index,
        (flags & changed).to_ne_bytes(),
        changed.to_ne_bytes(),
    ];
    Message::new(RTM_NEWLINK, REQUEST | ACK, &words.concat())
}

/// IFLA_AF_SPEC that sets the way of making link-local addresses.
pub(super) fn generation(mode: u8) -> Vec<u8> {
    attribute(INET6.into(), &attribute(IFLA_INET6_ADDR_GEN_MODE, &[mode]))
}

/// Whether an address is one of the interface.
pub(super) fn of(address: &Entry, link: &Link) -> bool {
    address.number(4) == link.index.cast_unsigned()
}

/// Whether the route to an address's prefix is there that a kernel makes with the address, unless told not to.
fn has_prefix_route(address: &Entry, scan: &Scan) -> bool {
    let length = address.byte(1);
    let Some(prefix) = address.find(ifa::ADDRESS) else {
        return true;
    };
    // A kernel makes none to a single host.
    if usize::from(length) >= 8 * prefix.len() {
        return true;
    }
    let network = masked(prefix, length);
    let own = address.find(ifa::LOCAL).unwrap_or(prefix);
    scan.routes.iter().any(|route| {
        table(route) == rta::TABLE_MAIN
            && (route.byte(0), route.byte(1)) == (address.byte(0), length)
            && route.byte(5) == rta::PROTOCOL_KERNEL
            && route.find_number(rta::OIF) == Some(address.number(4))
            && route.find(rta::DST) == Some(network.as_slice())
            && (address.byte(0) == INET6 || route.find(rta::PREFSRC) == Some(own))
    })
}

/// The first bits of an address.
fn masked(address: &[u8], length: u8) -> Vec<u8> {
    let masks = (0_usize..).map(|at| {
        let bits = usize::from(length).saturating_sub(8 * at).min(8);
        u8::try_from(0xff00_u32 >> bits & 0xff).unwrap_or(0)
    });
    address
        .iter()
        .zip(masks)
        .map(|(byte, mask)| byte & mask)
        .collect()
}

/// The routing table that a route is in.
fn table(route: &Entry) -> u32 {
    let short = u32::from(route.byte(4));
    route.find_number(rta::TABLE).unwrap_or(short)
}

/// Whether a kernel makes a route of an address or learns it from a router.
pub(super) fn is_made(route: &Entry) -> bool {
    use rta::{F_CLONED, PROTOCOL_KERNEL, PROTOCOL_RA, PROTOCOL_REDIRECT, TABLE_LOCAL};
    table(route) == TABLE_LOCAL
        || route.number(8) & F_CLONED != 0
        || [PROTOCOL_KERNEL, PROTOCOL_RA, PROTOCOL_REDIRECT].contains(&route.byte(5))
}

/// The interfaces that a route leads to.
pub(super) fn interfaces(route: &Entry) -> Vec<u32> {
    let hops = next_hops(route.find(rta::MULTIPATH).unwrap_or_default());
    let indices = hops.iter().filter_map(|hop| u32_at(hop, 4));
    route
        .find_number(rta::OIF)
        .into_iter()
        .chain(indices)
        .collect()
}

/// The next hops of RTA_MULTIPATH, each a `struct rtnexthop` with its attributes.
fn next_hops(bytes: &[u8]) -> Vec<&[u8]> {
    let mut hops = Vec::new();
    let mut rest = bytes;
    while let Some(length) = super::netlink::u16_at(rest, 0).map(usize::from)
        && length >= rta::NEXT_HOP
        && let Some(hop) = rest.get(..length)
    {
        hops.push(hop);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    hops
}

/// RTA_MULTIPATH without the flags that tell whether next hops can be used now.
fn without_state(multipath: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for hop in next_hops(multipath) {
        let mut hop = hop.to_owned();
        hop[2] &= rta::F_ONLINK.to_ne_bytes()[0];
        hop.resize(hop.len().next_multiple_of(4), 0);
        bytes.extend(hop);
    }
    bytes
}

/// An address in words.
fn ip(bytes: &[u8]) -> String {
    let v4 = <[u8; 4]>::try_from(bytes).map(|b| IpAddr::from(Ipv4Addr::from(b)));
    let v6 = <[u8; 16]>::try_from(bytes).map(|b| IpAddr::from(Ipv6Addr::from(b)));
    v4.or(v6)
        .map_or_else(|_| "?".to_owned(), |ip| ip.to_string())
}

/// An address and the length of its prefix in words; the first of two attributes that is there.
fn describe(entry: &Entry, first: u16, second: u16) -> String {
    let address = entry.find(first).or_else(|| entry.find(second));
    format!("{}/{}", ip(address.unwrap_or_default()), entry.byte(1))
}

/// A route in words.
fn describe_route(route: &Entry) -> String {
    let mut text = match (route.find(rta::DST), route.byte(0)) {
        (Some(_), _) => format!("route to {}", describe(route, rta::DST, rta::DST)),
        (None, INET) => "IPv4 default route".to_owned(),
        (None, _) => "IPv6 default route".to_owned(),
    };
    if let Some(gateway) = route.find(rta::GATEWAY) {
        let _ = write!(text, " via {}", ip(gateway));
    }
    if table(route) != rta::TABLE_MAIN {
        let _ = write!(text, " of table {}", table(route));
    }
    text
}

#[cfg(test)]
pub(super) mod tests;
