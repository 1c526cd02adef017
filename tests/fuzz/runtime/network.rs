//! From the kernel's answers about a network namespace to what the guest is asked.

use super::change;
use super::netlink::{attributes, messages};
use super::plan::NetworkPlan;
use super::scan::{self, Scan};

/// What comes of a namespace: names of interfaces, and the requests: in words, and as bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Planned {
    pub interfaces: Vec<String>,
    pub requests: Vec<(String, Vec<u8>)>,
    pub notes: usize,
}

/// Reads datagrams of dumps of links, addresses, routes, neighbours and rules, and plans.
///
/// # Errors
/// The guest cannot have it.
pub fn plan(dumps: [&[u8]; 5], wanted: &[String], slots: usize) -> Result<Planned, String> {
    let plan = planned(dumps, wanted, slots)?;
    let network = plan.network;
    Ok(Planned {
        interfaces: network.interfaces.into_iter().map(|i| i.name).collect(),
        requests: requests(network.requests),
        notes: plan.skipped.len() + plan.warnings.len(),
    })
}

/// What turns the network of some dumps into that of others: what is taken back, and what is new.
///
/// # Errors
/// The guest cannot have one of them.
pub fn change(
    dumps: [[&[u8]; 5]; 2],
    wanted: &[String],
    slots: usize,
) -> Result<[Vec<(String, Vec<u8>)>; 2], String> {
    let [before, now] = dumps.map(|dumps| planned(dumps, wanted, slots));
    let (before, now) = (before?.network, now?.network);
    let gone = change::gone(&before, &now);
    let change = change::between(&change::without(before, &gone), &now);
    Ok([requests(change.undone), requests(change.new.requests)])
}

fn requests(requests: Vec<protocol::NetlinkRequest>) -> Vec<(String, Vec<u8>)> {
    let bytes = |text: &str| protocol::from_hex(text).unwrap_or_default();
    let requests = requests.into_iter();
    requests.map(|r| (r.what, bytes(&r.message))).collect()
}

fn planned(dumps: [&[u8]; 5], wanted: &[String], slots: usize) -> Result<NetworkPlan, String> {
    let bodies = |datagram| messages(datagram).map(|(_, _, body)| body);
    let table = |datagram, fixed| {
        bodies(datagram)
            .filter_map(|body| scan::entry(body, fixed))
            .collect()
    };
    let [links, addresses, routes, neighbours, rules] = dumps;
    let scan = Scan {
        links: bodies(links).filter_map(scan::link).collect(),
        addresses: table(addresses, scan::ADDRESS),
        routes: table(routes, scan::ROUTE),
        neighbours: table(neighbours, scan::NEIGHBOUR),
        rules: table(rules, scan::RULE),
    };
    super::plan::plan(&scan, wanted, &[], slots).map_err(|e| e.to_string())
}

/// How many bytes of a list of attributes are attributes.
#[must_use]
pub fn attributes_length(bytes: &[u8]) -> usize {
    attributes(bytes)
        .map(|(_, value)| (4 + value.len()).next_multiple_of(4))
        .sum()
}
