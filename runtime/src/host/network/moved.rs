//! `linux.netDevices`: interfaces that move from the caller's network namespace into the container's, where `start`
//! finds them like all others (config-linux.md, Network Devices).

use std::fs::File;
use std::os::fd::AsRawFd;

use super::Error;
use super::namespace::inside;
use super::netlink::{ACK, CREATE, EXCL, Message, REQUEST, Socket, attributes, string};
use super::plan::{IFF_UP, RTM_NEWADDR, check_hardware, ifa, of, set_link};
use super::scan::{self, Entry, Link};
use crate::error::Doing;

/// Attributes of a link (linux/if_link.h).
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;

/// RT_SCOPE_UNIVERSE (linux/rtnetlink.h).
const GLOBAL: u8 = 0;

/// What an address keeps. Its label and its route belong to the interface of before.
const KEPT: [u16; 3] = [ifa::ADDRESS, ifa::LOCAL, ifa::BROADCAST];

/// An interface that the container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetDevice {
    /// Its name in the caller's network namespace.
    pub(crate) name: String,
    /// Its name in the container's.
    pub(crate) inside: String,
}

/// Interfaces that have moved into a container's network namespace. They move back with this value unless they are
/// kept: the kernel would destroy virtual ones together with the namespace.
pub(crate) struct Moved {
    /// The caller's network namespace.
    own: File,
    /// The container's.
    container: File,
    /// Those that have moved, and whether they were up before.
    devices: Vec<(NetDevice, bool)>,
}

impl Moved {
    /// Moves interfaces to where the process lives: with their global addresses, and up afterwards, as the
    /// specification has it.
    ///
    /// # Errors
    /// For an interface that is not there, that no machine can have, or whose new name is taken; with all of them back.
    pub(crate) fn to(pid: i32, devices: &[NetDevice]) -> Result<Moved, Error> {
        let open = |path: &str| File::open(path).doing_with(|| format!("open {path}"));
        let mut moved = Moved {
            own: open("/proc/thread-self/ns/net")?,
            container: open(&format!("/proc/{pid}/ns/net"))?,
            devices: Vec::new(),
        };
        for device in devices {
            let (own, container) = (&moved.own, &moved.container);
            // The kernel moves an interface before it finds that it cannot rename it.
            if inside(container, |socket| look_for(socket, &device.inside))?.is_some() {
                let why = "the container's network namespace already has an interface of this name";
                return Err(Error::Interface(device.inside.clone(), why.to_owned()));
            }
            let left = leave(own, container, &device.name, &device.inside)?;
            moved.devices.push((device.clone(), left.up));
            arrive(&moved.container, &device.inside, &left.addresses, true)?;
        }
        Ok(moved)
    }

    /// They are the container's from here on.
    pub(crate) fn keep(mut self) {
        self.devices.clear();
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        for (device, up) in self.devices.drain(..).rev() {
            let NetDevice { name, inside } = device;
            // What led here is the error to report.
            let _ = leave(&self.container, &self.own, &inside, &name)
                .and_then(|left| arrive(&self.own, &name, &left.addresses, up));
        }
    }
}

/// What an interface loses when it leaves its namespace.
struct Left {
    up: bool,
    addresses: Vec<Entry>,
}

fn leave(from: &File, to: &File, name: &str, new_name: &str) -> Result<Left, Error> {
    inside(from, |socket| {
        let link = find(socket, name)?;
        check_hardware(&link)?;
        let mut addresses = scan::addresses(socket).doing("read the host's addresses")?;
        addresses.retain(|address| {
            let permanent = address.find_number(ifa::FLAGS).unwrap_or(0) & ifa::F_PERMANENT != 0;
            of(address, &link) && address.byte(3) == GLOBAL && permanent
        });
        let away = set_link(&link, 0, IFF_UP)
            .with(IFLA_IFNAME, &string(new_name))
            .with(IFLA_NET_NS_FD, &to.as_raw_fd().to_ne_bytes());
        socket.ask(away).doing_with(|| {
            format!("move network interface {name} to another namespace as {new_name}")
        })?;
        let up = link.flags & IFF_UP != 0;
        Ok(Left { up, addresses })
    })
}

fn arrive(at: &File, name: &str, addresses: &[Entry], up: bool) -> Result<(), Error> {
    inside(at, |socket| {
        let link = find(socket, name)?;
        for address in addresses {
            let mut fixed = address.fixed.clone();
            fixed[2] = 0;
            fixed[4..8].copy_from_slice(&link.index.to_ne_bytes());
            let mut message = Message::new(RTM_NEWADDR, REQUEST | ACK | CREATE | EXCL, &fixed);
            for (kind, value) in attributes(&address.attributes) {
                if KEPT.contains(&kind) {
                    message.push(kind, value);
                }
            }
            let add = || format!("give network interface {name} its addresses");
            socket.ask(message).doing_with(add)?;
        }
        if up {
            let set = set_link(&link, IFF_UP, IFF_UP);
            socket.ask(set).doing_with(|| format!("bring {name} up"))?;
        }
        Ok(())
    })
}

fn look_for(socket: &Socket, name: &str) -> Result<Option<Link>, Error> {
    let links = scan::links(socket).doing("read the network interfaces")?;
    Ok(links.into_iter().find(|link| link.name == name))
}

fn find(socket: &Socket, name: &str) -> Result<Link, Error> {
    let link = look_for(socket, name)?;
    link.ok_or_else(|| Error::Interface(name.to_owned(), "no interface has this name".to_owned()))
}
