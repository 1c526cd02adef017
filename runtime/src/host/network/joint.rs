//! A tap and an interface, each getting what comes in at the other: tc(8)'s ingress qdisc with a filter that matches
//! everything and redirects it (linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use protocol::Interface;

use super::netlink::{
    ACK, CREATE, EXCL, Message, REQUEST, Socket, attribute, find, i32_at, string, u32_at,
};
use super::plan::{IN6_ADDR_GEN_MODE_NONE, generation};
use super::{Error, scan, tap_name};
use crate::error::Doing;
use crate::sys;

/// What taps are made of.
pub(super) const TUN: &str = "/dev/net/tun";

/// Message types (linux/rtnetlink.h).
const RTM_NEWLINK: u16 = 16;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;

/// TC_H_INGRESS: where the ingress qdisc goes; and its handle.
const INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;

/// Attributes.
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_MATCHALL_ACT: u16 = 2;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const IFLA_AF_SPEC: u16 = 26;

/// TC_ACT_STOLEN, TCA_EGRESS_REDIR.
const STOLEN: u32 = 4;
const EGRESS_REDIRECT: u32 = 1;

/// The priority of the filter, which is the only one, and ETH_P_ALL in network byte order.
const EVERY_FRAME: u32 = 1 << 16 | 0x0300;

/// The filter's handle, by which it is known to be ours: "chit".
const OURS: u32 = 0x6368_6974;

const IFF_UP: u32 = 1;

/// Makes the tap of an interface and joins them.
pub(super) fn make(socket: &Socket, interface: &Interface) -> Result<OwnedFd, Error> {
    let (name, other) = (tap_name(interface.index), &interface.name);
    let (tap, index) = make_tap(socket, &name)?;
    let theirs = interface.index.cast_unsigned();
    let join = || format!("join {other} to {name}");
    // The host's kernel is to have no address of its own on the tap: there is nothing that it could say there.
    let silent = set_link(index, 0).with(IFLA_AF_SPEC, &generation(IN6_ADDR_GEN_MODE_NONE));
    socket.ask(silent).doing_with(join)?;
    socket.ask(set_link(index, IFF_UP)).doing_with(join)?;
    socket.ask(add_ingress(index)).doing_with(join)?;
    socket.ask(redirect(index, theirs)).doing_with(join)?;
    match socket.ask(add_ingress(theirs)) {
        Err(e) if e.raw_os_error() == Some(Errno::EEXIST as i32) => {
            if !is_ours(socket, theirs).doing_with(join)? {
                let why = "it has somebody else's ingress or clsact qdisc";
                return Err(Error::Interface(other.clone(), why.to_owned()));
            }
            socket.ask(delete_ingress(theirs)).doing_with(join)?;
            socket.ask(add_ingress(theirs)).doing_with(join)?;
        }
        result => result.doing_with(join)?,
    }
    socket.ask(redirect(theirs, index)).doing_with(join)?;
    Ok(tap)
}

/// Whether this host's kernel has what it takes, in a namespace that is not needed any more: a tap is joined to itself.
pub(super) fn check(socket: &Socket) -> Result<(), Error> {
    let (_tap, index) = make_tap(socket, &tap_name(0))?;
    let ingress = "add an ingress qdisc (sch_ingress)";
    socket.ask(add_ingress(index)).doing(ingress)?;
    let filter = "redirect packets (cls_matchall, act_mirred)";
    socket.ask(redirect(index, index)).doing(filter)?;
    Ok(())
}

/// A tap and its index.
fn make_tap(socket: &Socket, name: &str) -> Result<(OwnedFd, u32), Error> {
    let device = File::options().read(true).write(true).open(TUN);
    let device = device.doing_to("open", TUN)?;
    let tap = sys::make_tap(device.into(), name).doing_with(|| format!("make the tap {name}"))?;
    let index = scan::index_of(socket, name).doing_with(|| format!("find {name}"))?;
    Ok((tap, index))
}

/// Takes away what leads to taps that are gone.
pub(super) fn remove_all(socket: &Socket) -> io::Result<()> {
    let links = scan::links(socket)?;
    let is_live = |index: i32| {
        let mut links = links.iter();
        // A tap that is there is its machine's, and so is what leads to it.
        links.any(|l| l.name == tap_name(index) || l.index == index && super::is_ours(&l.name))
    };
    for qdisc in socket.dump(RTM_GETQDISC, &[0; 20])? {
        let (Some(index), Some(attributes)) = (i32_at(&qdisc, 4), qdisc.get(20..)) else {
            continue;
        };
        let ingress = find(attributes, TCA_KIND) == Some(&string("ingress"));
        let interface = index.cast_unsigned();
        if ingress && !is_live(index) && is_ours(socket, interface)? {
            socket.ask(delete_ingress(interface))?;
        }
    }
    Ok(())
}

/// Whether the filters on an interface's ingress are ours alone.
fn is_ours(socket: &Socket, index: u32) -> io::Result<bool> {
    let filters = socket.dump(RTM_GETTFILTER, &tcmsg(index, 0, INGRESS_HANDLE, 0))?;
    let matchall = string("matchall");
    let kind =
        |filter: &[u8]| filter.get(20..).and_then(|all| find(all, TCA_KIND)) == Some(&matchall);
    // The first entry is about all filters of a kind and has no handle.
    let handle = |filter: &[u8]| u32_at(filter, 8).filter(|handle| *handle != 0);
    let others = |filter: &[u8]| !kind(filter) || handle(filter).is_some_and(|h| h != OURS);
    Ok(filters.iter().any(|filter| handle(filter) == Some(OURS))
        && !filters.iter().any(|filter| others(filter)))
}

/// Sets flags of an interface.
fn set_link(index: u32, flags: u32) -> Message {
    let body = [0, index, flags, flags].map(u32::to_ne_bytes).concat();
    Message::new(RTM_NEWLINK, REQUEST | ACK, &body)
}

/// `struct tcmsg` (linux/rtnetlink.h).
fn tcmsg(index: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    [0, index, handle, parent, info]
        .map(u32::to_ne_bytes)
        .concat()
}

fn add_ingress(index: u32) -> Message {
    let body = tcmsg(index, INGRESS_HANDLE, INGRESS, 0);
    Message::new(RTM_NEWQDISC, REQUEST | ACK | CREATE | EXCL, &body)
        .with(TCA_KIND, &string("ingress"))
}

fn delete_ingress(index: u32) -> Message {
    let body = tcmsg(index, INGRESS_HANDLE, INGRESS, 0);
    Message::new(RTM_DELQDISC, REQUEST | ACK, &body)
}

/// Every frame that comes in at one interface goes out at another.
fn redirect(from: u32, to: u32) -> Message {
    // struct tc_mirred: index, capabilities, action, two counts, what to do, where.
    let parameters = [0, 0, STOLEN, 0, 0, EGRESS_REDIRECT, to];
    let parameters = parameters.map(u32::to_ne_bytes).concat();
    let action = [
        attribute(TCA_ACT_KIND, &string("mirred")),
        attribute(TCA_ACT_OPTIONS, &attribute(TCA_MIRRED_PARMS, &parameters)),
    ];
    // Actions are numbered from 1.
    let actions = attribute(1, &action.concat());
    let body = tcmsg(from, OURS, INGRESS_HANDLE, EVERY_FRAME);
    Message::new(RTM_NEWTFILTER, REQUEST | ACK | CREATE | EXCL, &body)
        .with(TCA_KIND, &string("matchall"))
        .with(TCA_OPTIONS, &attribute(TCA_MATCHALL_ACT, &actions))
}
