use super::super::netlink::{find, string};
use super::*;

/// What the tests look at of a request: its type, its flags and its body.
fn requests(plan: &NetworkPlan) -> Vec<(&str, u16, u16, Vec<u8>)> {
    let number = |text: &str| u8::from_str_radix(text, 16).unwrap();
    let message = |request: &NetlinkRequest| -> Vec<u8> {
        (0..request.message.len() / 2)
            .map(|at| number(&request.message[2 * at..2 * at + 2]))
            .collect()
    };
    let read = |request| {
        let bytes = message(request);
        let at = |at| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        assert_eq!(u32_at(&bytes, 0).unwrap() as usize, bytes.len());
        (request.what.as_str(), at(4), at(6), bytes[16..].to_vec())
    };
    plan.network.requests.iter().map(read).collect()
}

fn whats(plan: &NetworkPlan) -> Vec<&str> {
    plan.network
        .requests
        .iter()
        .map(|r| r.what.as_str())
        .collect()
}

fn body(plan: &NetworkPlan, wanted: &str) -> Vec<u8> {
    let mut found = requests(plan)
        .into_iter()
        .filter(|(what, ..)| *what == wanted);
    let (_, _, _, body) = found.next().unwrap_or_else(|| panic!("{:?}", whats(plan)));
    assert!(found.next().is_none());
    body
}

pub(in crate::host::network) fn link(index: i32, name: &str) -> Link {
    Link {
        index,
        name: name.into(),
        flags: IFF_UP | 0x1002,
        hardware: ETHERNET,
        address: vec![2, 0, 0, 0, 0, index.to_le_bytes()[0]],
        mtu: 1500,
        queue_length: 1000,
        kind: "veth".into(),
        ..Link::default()
    }
}

fn entry(fixed: Vec<u8>, values: &[(u16, &[u8])]) -> Entry {
    let attributes = values
        .iter()
        .flat_map(|(kind, value)| attribute(*kind, value));
    Entry {
        fixed,
        attributes: attributes.collect(),
    }
}

pub(in crate::host::network) fn address(index: u32, ip: IpAddr, length: u8, flags: u32) -> Entry {
    let (family, bytes) = bytes_of(ip);
    let mut fixed = vec![family, length, 0x80, 0];
    fixed.extend(index.to_ne_bytes());
    let forever = [u32::MAX, u32::MAX, 1, 2].map(u32::to_ne_bytes).concat();
    let mut entry = entry(
        fixed,
        &[
            (ifa::ADDRESS, &bytes),
            (ifa::CACHEINFO, &forever),
            (ifa::FLAGS, &(flags | 0x80).to_ne_bytes()),
        ],
    );
    if family == INET {
        entry.attributes.extend(attribute(ifa::LOCAL, &bytes));
    }
    entry
}

fn bytes_of(ip: IpAddr) -> (u8, Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => (INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (INET6, ip.octets().to_vec()),
    }
}

pub(in crate::host::network) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A route of table main; no destination: the default.
pub(in crate::host::network) fn route(
    to: Option<(&str, u8)>,
    protocol: u8,
    values: &[(u16, &[u8])],
) -> Entry {
    let (destination, length) = to.map_or((None, 0), |(ip_, l)| (Some(bytes_of(ip(ip_))), l));
    let family = destination.as_ref().map_or(INET, |(family, _)| *family);
    let mut fixed = vec![family, length, 0, 0, 254, protocol, 0, 1];
    // RTNH_F_LINKDOWN and RTNH_F_ONLINK.
    fixed.extend(0x14_u32.to_ne_bytes());
    let mut entry = entry(fixed, values);
    if let Some((_, bytes)) = destination {
        entry.attributes.extend(attribute(rta::DST, &bytes));
    }
    entry.attributes.extend(attribute(12, &[0; 32]));
    entry
}

pub(in crate::host::network) fn number(value: u32) -> [u8; 4] {
    value.to_ne_bytes()
}

/// One interface with an address and the route to its prefix.
pub(in crate::host::network) fn usual() -> Scan {
    Scan {
        links: vec![
            Link {
                flags: IFF_UP | 8,
                ..link(1, "lo")
            },
            link(2, "eth0"),
        ],
        addresses: vec![
            address(1, ip("127.0.0.1"), 8, 0),
            address(2, ip("10.0.0.2"), 24, 0),
        ],
        routes: vec![route(
            Some(("10.0.0.0", 24)),
            rta::PROTOCOL_KERNEL,
            &[(rta::OIF, &number(2)), (rta::PREFSRC, &[10, 0, 0, 2])],
        )],
        ..Scan::default()
    }
}

#[test]
fn an_interface_is_what_it_is_on_the_host() {
    let plan = plan(&usual(), &[], &[], 8).unwrap();
    let expected = Interface {
        device: 0,
        mac: [2, 0, 0, 0, 0, 2],
        name: "eth0".into(),
        index: 2,
    };
    assert_eq!(plan.network.interfaces, [expected]);
    assert_eq!(
        whats(&plan),
        [
            "set up eth0",
            "bring eth0 up",
            "add the address 10.0.0.2/24 to eth0"
        ]
    );
    assert!(
        plan.network.settings.is_empty() && plan.warnings.is_empty() && plan.skipped.is_empty()
    );
    let set = body(&plan, "set up eth0");
    assert_eq!(set[..16], [0, 2, 0x1000, 0x1080].map(number).concat());
    assert_eq!(find(&set[16..], IFLA_MTU), Some(&number(1500)[..]));
    assert_eq!(find(&set[16..], IFLA_AF_SPEC), None, "it has no IPv6");
    let up = body(&plan, "bring eth0 up");
    assert_eq!(up, [0, 2, 1, 1].map(number).concat());
    let address = body(&plan, "add the address 10.0.0.2/24 to eth0");
    assert_eq!(address[..8], [INET, 24, 0, 0, 2, 0, 0, 0]);
    let read: Vec<_> = attributes(&address[8..]).collect();
    let ip = &[10, 0, 0, 2][..];
    assert_eq!(
        read,
        [
            (ifa::ADDRESS, ip),
            (ifa::LOCAL, ip),
            (ifa::FLAGS, &number(0))
        ]
    );
}

#[test]
fn ipv6_addresses_are_usable_at_once() {
    let mut scan = usual();
    scan.links[1].inet6 = vec![0; 27];
    scan.links[1].inet6[3] = 1;
    scan.links[1].inet6[5] = 1;
    // Tentative, and one that ends.
    scan.addresses = vec![
        address(2, ip("fe80::2"), 64, 0x40),
        address(2, ip("fd00::2"), 128, ifa::F_NOPREFIXROUTE),
    ];
    let lifetimes = [5, 9, 1, 1].map(number).concat();
    scan.addresses[1].attributes = [
        attribute(ifa::ADDRESS, &bytes_of(ip("fd00::2")).1),
        attribute(ifa::CACHEINFO, &lifetimes),
    ]
    .concat();
    let plan = plan(&scan, &[], &[], 8).unwrap();
    assert_eq!(
        whats(&plan),
        [
            "set up eth0",
            "bring eth0 up",
            "add the address fd00::2/128 to eth0",
            "add the address fe80::2/64 to eth0",
            "set up IPv6 on eth0"
        ]
    );
    let mode = |body: &[u8]| {
        find(find(find(&body[16..], IFLA_AF_SPEC)?, INET6.into())?, 8).map(<[u8]>::to_vec)
    };
    assert_eq!(mode(&body(&plan, "set up eth0")), Some(vec![1]));
    assert_eq!(mode(&body(&plan, "set up IPv6 on eth0")), Some(vec![0]));
    let of = |what| {
        let body = body(&plan, what);
        let flags = u32_at(find(&body[8..], ifa::FLAGS).unwrap(), 0).unwrap();
        (flags, find(&body[8..], ifa::CACHEINFO).map(<[u8]>::to_vec))
    };
    assert_eq!(
        of("add the address fd00::2/128 to eth0"),
        (ifa::F_NODAD, Some(lifetimes))
    );
    let flags = ifa::F_NODAD | ifa::F_NOPREFIXROUTE;
    assert_eq!(
        of("add the address fe80::2/64 to eth0"),
        (flags, None),
        "the host has no route to fe80::/64"
    );
}

#[test]
fn the_route_to_a_prefix_comes_with_the_address_only_if_the_host_has_it() {
    let flags = |scan: &Scan| {
        let plan = plan(scan, &[], &[], 8).unwrap();
        let body = body(&plan, "add the address 10.0.0.2/24 to eth0");
        u32_at(find(&body[8..], ifa::FLAGS).unwrap(), 0).unwrap()
    };
    let mut scan = usual();
    assert_eq!(flags(&scan), 0);
    let route = std::mem::take(&mut scan.routes);
    assert_eq!(flags(&scan), ifa::F_NOPREFIXROUTE);
    // By somebody else, and so passed on.
    scan.routes = route;
    scan.routes[0].fixed[5] = 4;
    assert_eq!(flags(&scan), ifa::F_NOPREFIXROUTE);
    scan.routes.clear();
    scan.links[1].flags &= !IFF_UP;
    assert_eq!(flags(&scan), 0, "an interface that is down has no routes");
}

#[test]
fn routes_are_passed_on_with_what_leads_to_gateways_first() {
    let mut scan = usual();
    let gateway = (rta::GATEWAY, &[10, 0, 0, 1][..]);
    let (out, other) = (number(2), number(9));
    let oif = (rta::OIF, &out[..]);
    let hops = [
        [16, 0, 0x14, 1, 2, 0, 0, 0].to_vec(),
        attribute(rta::GATEWAY, &[10, 0, 0, 1]),
        [8, 0, 0x10, 0, 2, 0, 0, 0].to_vec(),
    ]
    .concat();
    scan.routes.extend([
        route(None, 3, &[gateway, oif]),
        route(Some(("10.0.0.1", 32)), 3, &[oif]),
        route(Some(("10.3.0.0", 16)), 4, &[(rta::MULTIPATH, &hops)]),
        route(Some(("10.4.0.0", 16)), 4, &[(rta::OIF, &other)]),
        route(Some(("10.5.0.0", 16)), rta::PROTOCOL_RA, &[oif]),
        route(
            Some(("10.6.0.0", 16)),
            4,
            &[oif, (rta::TABLE, &number(255))],
        ),
        route(
            Some(("10.7.0.0", 16)),
            4,
            &[oif, (rta::TABLE, &number(1000)), (30, &number(7))],
        ),
    ]);
    scan.routes.push(route(Some(("10.8.0.0", 16)), 4, &[oif]));
    scan.routes.last_mut().unwrap().fixed[9] = 2; // RTM_F_CLONED
    let plan = plan(&scan, &[], &[], 8).unwrap();
    assert_eq!(
        whats(&plan)[3..],
        [
            "add the route to 10.0.0.1/32",
            "add the route to 10.7.0.0/16 of table 1000",
            "add the IPv4 default route via 10.0.0.1",
            "add the route to 10.3.0.0/16"
        ]
    );
    assert_eq!(
        plan.warnings,
        ["route to 10.4.0.0/16 is skipped: its interface is"]
    );
    let default = body(&plan, "add the IPv4 default route via 10.0.0.1");
    assert_eq!(default[..12], [INET, 0, 0, 0, 254, 3, 0, 1, 4, 0, 0, 0]);
    let kinds = |body: &[u8]| {
        attributes(&body[12..])
            .map(|(kind, _)| kind)
            .collect::<Vec<_>>()
    };
    assert_eq!(kinds(&default), [rta::GATEWAY, rta::OIF]);
    assert_eq!(
        kinds(&body(&plan, "add the route to 10.7.0.0/16 of table 1000")),
        [rta::OIF, rta::TABLE, rta::DST]
    );
    let multipath = body(&plan, "add the route to 10.3.0.0/16");
    let hops = find(&multipath[12..], rta::MULTIPATH).unwrap();
    assert_eq!(
        (hops[2], hops[18], hops.len()),
        (4, 0, 24),
        "they say nothing of the link's state"
    );
}

#[test]
fn rules_and_permanent_neighbours_are_passed_on() {
    let mut scan = usual();
    let rule = |priority: u32, protocol| {
        let values: [(u16, &[u8]); 2] = [
            (fra::PRIORITY, &number(priority)),
            (fra::PROTOCOL, &[protocol]),
        ];
        entry(vec![INET, 0, 0, 0, 254, 0, 0, 1, 3, 0, 0, 0], &values)
    };
    scan.rules = vec![rule(0, 2), rule(100, 3), rule(32766, 2), rule(32767, 2)];
    let neighbour = |index: u8, state: u8, last: u8| {
        let values: [(u16, &[u8]); 3] = [
            (nda::DST, &[10, 0, 0, last]),
            (nda::LLADDR, &[2; 6]),
            (3, &[0; 16]),
        ];
        entry(vec![INET, 0, 0, 0, index, 0, 0, 0, state, 0, 0, 0], &values)
    };
    scan.neighbours = vec![
        neighbour(2, 0x80, 9),
        neighbour(2, 2, 8),
        neighbour(3, 0x80, 7),
    ];
    let plan = plan(&scan, &[], &[], 8).unwrap();
    assert_eq!(
        whats(&plan)[3..],
        [
            "add the rule of priority 100",
            "add the neighbour 10.0.0.9 to eth0"
        ]
    );
    assert_eq!(
        body(&plan, "add the rule of priority 100")[8],
        2,
        "FIB_RULE_INVERT alone"
    );
    let neighbour = body(&plan, "add the neighbour 10.0.0.9 to eth0");
    let read: Vec<_> = attributes(&neighbour[12..]).collect();
    assert_eq!(
        read,
        [(nda::DST, &[10, 0, 0, 9][..]), (nda::LLADDR, &[2; 6][..])]
    );
}

#[test]
fn settings_that_are_not_a_kernels_own_are_carried_over() {
    let mut scan = usual();
    let eth0 = &mut scan.links[1];
    eth0.inet = vec![0; 31];
    eth0.inet[3] = 1;
    eth0.inet[7] = 2;
    eth0.inet6 = vec![0; 27];
    eth0.inet6[3] = 0;
    eth0.inet6[5] = 1;
    eth0.inet6[26] = 1;
    let plan = plan(&scan, &[], &[], 8).unwrap();
    let settings: Vec<(&str, &str)> = plan
        .network
        .settings
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    assert_eq!(
        settings,
        [
            ("ipv4/conf/eth0/rp_filter", "2"),
            ("ipv6/conf/eth0/accept_ra", "0"),
            ("ipv6/conf/eth0/disable_ipv6", "1")
        ]
    );
}

#[test]
fn what_has_no_address_is_left_out_and_so_is_what_is_ours() {
    let mut scan = usual();
    scan.links.push(link(3, "bare"));
    scan.links.push(Link {
        flags: 0,
        ..link(4, "tunl0")
    });
    scan.links.push(link(5, "chiton77"));
    let plan = plan(&scan, &[], &[], 8).unwrap();
    assert_eq!(plan.network.interfaces.len(), 1);
    assert_eq!(
        plan.warnings,
        ["network interface bare is skipped: it has no address"]
    );
    assert_eq!(
        plan.skipped,
        ["network interface tunl0 is skipped: it has no address"]
    );
    let wanted = ["tunl0".to_owned()];
    let plan = super::plan(&scan, &wanted, &[], 8).unwrap();
    assert_eq!(plan.network.interfaces.len(), 2);
    assert_eq!(plan.skipped, Vec::<String>::new());
}

#[test]
fn an_empty_namespace_asks_for_nothing() {
    let mut scan = usual();
    scan.links.truncate(1);
    scan.addresses.truncate(1);
    scan.routes.clear();
    assert_eq!(plan(&scan, &[], &[], 0).unwrap(), NetworkPlan::default());
}

#[test]
fn what_cannot_be_carried_over_is_refused_by_name() {
    let refused = |change: &dyn Fn(&mut Scan)| {
        let mut scan = usual();
        change(&mut scan);
        plan(&scan, &[], &[], 2).unwrap_err().to_string()
    };
    let second = |scan: &mut Scan, link: Link| {
        scan.addresses
            .push(address(link.index.cast_unsigned(), ip("10.1.0.2"), 24, 0));
        scan.links.push(link);
    };
    for (change, expected) in [
        (
            &(|scan: &mut Scan| scan.links[1].hardware = 65534) as &dyn Fn(&mut Scan),
            "network interface eth0: it is not an Ethernet interface (type \"veth\")",
        ),
        (
            &|scan| scan.links[1].mtu = 65536,
            "network interface eth0: an MTU of 65536 is not possible",
        ),
        (
            &|scan| scan.links.push(link(9, "chiton2")),
            "network interface eth0: it is joined to a machine already",
        ),
        (
            &|scan| {
                let vlan = Link {
                    lower: Some(2),
                    kind: "vlan".into(),
                    ..link(3, "eth0.7")
                };
                second(scan, vlan);
            },
            "network interface eth0.7: it and eth0, which has it or which it is on, cannot both be",
        ),
        (
            &|scan| {
                second(
                    scan,
                    Link {
                        master: Some(2),
                        ..link(3, "port")
                    },
                )
            },
            "network interface port: it and eth0, which has it or which it is on, cannot both be",
        ),
        (
            &|scan| {
                second(scan, link(3, "a"));
                second(scan, link(4, "b"));
            },
            "the container's network namespace has 3 network interfaces (eth0, a, b), and the machine takes at most 2",
        ),
    ] {
        assert_eq!(refused(change), expected);
    }
    // The two ends of a veth can both be.
    let mut scan = usual();
    second(
        &mut scan,
        Link {
            lower: Some(2),
            ..link(3, "eth1")
        },
    );
    assert_eq!(
        plan(&scan, &[], &[], 2).unwrap().network.interfaces.len(),
        2
    );
}

#[test]
fn prefixes_are_masked() {
    assert_eq!(masked(&[10, 1, 255, 3], 20), [10, 1, 240, 0]);
    assert_eq!(masked(&[255; 4], 0), [0; 4]);
    // The kernel sends none as long.
    assert_eq!(masked(&[255; 300], 9)[..3], [255, 128, 0]);
    assert_eq!(masked(&[255; 4], 32), [255; 4]);
    assert_eq!(string("a"), b"a\0");
}
