//! From the kernel's answers about a network namespace to what the guest is asked.

use super::netlink::{attributes, messages};
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
    let plan = super::plan::plan(&scan, wanted, slots).map_err(|e| e.to_string())?;
    let network = plan.network;
    let bytes = |text: &str| protocol::from_hex(text).unwrap_or_default();
    Ok(Planned {
        interfaces: network.interfaces.into_iter().map(|i| i.name).collect(),
        requests: network
            .requests
            .into_iter()
            .map(|r| (r.what, bytes(&r.message)))
            .collect(),
        notes: plan.skipped.len() + plan.warnings.len(),
    })
}

/// How many bytes of a list of attributes are attributes.
#[must_use]
pub fn attributes_length(bytes: &[u8]) -> usize {
    attributes(bytes)
        .map(|(_, value)| (4 + value.len()).next_multiple_of(4))
        .sum()
}
