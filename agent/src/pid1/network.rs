//! The container's network: devices become interfaces of its namespace, and the kernel is asked for
//! what the host wants of them, in the host's own words.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use nix::sys::stat::Mode;
use protocol::{Interface, NetlinkRequest, Network, NetworkChange, Ports, from_hex};

use super::spawn::{Inheritance, spawn_stage};
use super::{device, names};
use crate::error::{During, Error, Result};
use crate::task::Task;
use crate::vsock;

/// Makes the network of the container whose init is given. An interface that is there stays there
/// when something fails.
pub(crate) fn configure(network: &Network, init: i32) -> Result<()> {
    if *network == Network::default() {
        return Ok(());
    }
    let namespace = open_namespace(&namespace_of(init))?;
    let routes = Rtnetlink::open()?;
    for interface in &network.interfaces {
        bring(&routes, &namespace, interface)?;
    }
    let sockets = within(&namespace, || settle(network))??;
    sockets.map_or(Ok(()), |sockets| names::start(&sockets))
}

/// Does to the network of the container whose init is given what has been done to the host's, as far as it can be done;
/// the first failure.
pub(crate) fn change(change: &NetworkChange, init: i32) -> Result<()> {
    let mut results: Vec<Result<()>> = Vec::new();
    results.extend(change.gone.iter().map(|device| device::unbind(*device)));
    let namespace = open_namespace(&namespace_of(init))?;
    let routes = Rtnetlink::open()?;
    let new = change.new.interfaces.iter();
    results.extend(new.map(|interface| bring(&routes, &namespace, interface)));
    let sockets = within(&namespace, || {
        results.extend(change.new.settings.iter().map(set));
        let routes = Rtnetlink::open()?;
        // The container may have done it itself.
        let asked = change.undone.iter().map(|request| (request, &GONE[..]));
        let new = change.new.requests.iter();
        let asked = asked.chain(new.map(|request| (request, &[Errno::EEXIST][..])));
        results.extend(asked.map(|(request, fine)| routes.carry_out(request, fine)));
        change.new.names.then(names::bind).transpose()
    })?;
    results
        .push(sockets.and_then(|sockets| sockets.map_or(Ok(()), |sockets| names::start(&sockets))));
    results.into_iter().collect()
}

/// What the kernel says of what is to go and is not there: an interface, an address, a route or rule.
const GONE: [Errno; 4] = [
    Errno::ENODEV,
    Errno::EADDRNOTAVAIL,
    Errno::ESRCH,
    Errno::ENOENT,
];

/// The file of a process's network namespace.
fn namespace_of(process: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{process}/ns/net"))
}

/// Moves what becomes of a device into the container's namespace.
fn bring(routes: &Rtnetlink, namespace: &OwnedFd, interface: &Interface) -> Result<()> {
    let index = find(interface)?;
    let what = || format!("move {} into the container's namespace", interface.name);
    routes.ask(&move_message(index, namespace, interface), what)
}

/// Works in another network namespace and comes back: sockets and the files below /proc/sys/net belong to the namespace
/// that they are opened in.
fn within<T>(namespace: &OwnedFd, work: impl FnOnce() -> T) -> Result<T> {
    let own = open_namespace(Path::new("/proc/self/ns/net"))?;
    let join = |namespace: &OwnedFd| {
        setns(namespace, CloneFlags::CLONE_NEWNET).during(|| "join a network namespace")
    };
    join(namespace)?;
    let result = work();
    join(&own)?;
    Ok(result)
}

/// Connects somebody on the host to an address in the network namespace of a process, by a process that lives as long
/// as the connection. What comes of it is told by the stream, which ends with that process: PID 1 has nothing to keep.
pub(crate) fn connect(process: i32, address: SocketAddr, ports: Ports) -> Result<()> {
    let namespace = open_namespace(&namespace_of(process))?;
    let host = vsock::dial(ports, vsock::STREAM_PATIENCE)?;
    let inheritance = Inheritance {
        others: &[host, namespace],
        ..Inheritance::silent(None)
    };
    spawn_stage(&Task::Connect(address), inheritance).map(drop)
}

fn open_namespace(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).during(|| format!("open {}", path.display()))
}

/// Binds the driver to a device; the index of the interface that comes of it.
fn find(interface: &Interface) -> Result<i32> {
    let device = device::bind(interface.device)?;
    let what = || format!("find the interface of {}", device.display());
    // .../virtio-mmio.4/virtio3/net/eth0/ifindex
    let child = child(&device, "virtio").during(what)?;
    let net = self::child(&child.join("net"), "").during(what)?;
    let index = fs::read_to_string(net.join("ifindex")).during(what)?;
    let index = index.trim().parse();
    index.map_err(|_| Error::Config(format!("{}: bad interface index", device.display())))
}

/// A directory whose name has this beginning.
fn child(directory: &Path, beginning: &str) -> std::io::Result<PathBuf> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(beginning) && entry.path().is_dir() {
            return Ok(entry.path());
        }
    }
    Err(std::io::ErrorKind::NotFound.into())
}

/// RTM_NEWLINK that moves an interface and gives it its name and index (rtnetlink(7), linux/if_link.h).
fn move_message(index: i32, namespace: &OwnedFd, interface: &Interface) -> Vec<u8> {
    const IFLA_IFNAME: u16 = 3;
    const IFLA_NET_NS_FD: u16 = 28;
    const IFLA_NEW_IFINDEX: u16 = 49;
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    let name = [interface.name.as_bytes(), &[0]].concat();
    let mut message = vec![0; 16];
    message.extend(body);
    for (kind, value) in [
        (IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes()[..]),
        (IFLA_NEW_IFINDEX, &interface.index.to_ne_bytes()),
        (IFLA_IFNAME, &name),
    ] {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(value);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).unwrap_or(0);
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&libc::RTM_NEWLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    message
}

/// What is left to do in the container's namespace. The name server's sockets, if there is to be one.
fn settle(network: &Network) -> Result<Option<[OwnedFd; 2]>> {
    network.settings.iter().try_for_each(set)?;
    let routes = Rtnetlink::open()?;
    for request in &network.requests {
        routes.carry_out(request, &[])?;
    }
    network.names.then(names::bind).transpose()
}

/// Writes a setting of the network namespace that the caller is in.
fn set((name, value): &(String, String)) -> Result<()> {
    let file = Path::new("/proc/sys/net").join(name);
    fs::write(&file, value).during(|| format!("write {value:?} to {}", file.display()))
}

/// A socket to the network configuration of the namespace it was opened in.
struct Rtnetlink(OwnedFd);

impl Rtnetlink {
    fn open() -> Result<Rtnetlink> {
        let route = SockProtocol::NetlinkRoute;
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Netlink, SockType::Raw, flags, route)
            .during(|| "create a netlink socket")
            .map(Rtnetlink)
    }

    /// Sends a request and waits for its acknowledgement.
    fn ask<S: Into<String>>(&self, message: &[u8], what: impl FnOnce() -> S) -> Result<()> {
        self.answer(message).during(what)
    }

    /// The same with a request of the host's. These errors are none.
    fn carry_out(&self, request: &NetlinkRequest, fine: &[Errno]) -> Result<()> {
        let NetlinkRequest { what, message } = request;
        let message = from_hex(message);
        let message = message.ok_or_else(|| Error::Config(format!("{what}: bad message")))?;
        match self.answer(&message) {
            Err(errno) if fine.contains(&errno) => Ok(()),
            result => result.during(|| what.as_str()),
        }
    }

    fn answer(&self, message: &[u8]) -> nix::Result<()> {
        let fd = self.0.as_raw_fd();
        send(fd, message, MsgFlags::empty())?;
        let mut answer = [0; 4096];
        let length = recv(fd, &mut answer, MsgFlags::empty())?;
        // struct nlmsgerr behind the header (netlink(7)).
        let code = answer[..length].get(16..20).ok_or(Errno::EBADMSG)?;
        let code = <[u8; 4]>::try_from(code).map_err(|_| Errno::EBADMSG)?;
        match i32::from_ne_bytes(code) {
            0 => Ok(()),
            code => Err(Errno::from_raw(-code)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_what_it_thinks_of_a_request() {
        let routes = Rtnetlink::open().unwrap();
        let interface = Interface {
            device: 3,
            mac: [2; 6],
            name: "eth0".to_owned(),
            index: 2,
        };
        // No interface has this index.
        let own = open_namespace(Path::new("/proc/self/ns/net")).unwrap();
        let message = move_message(i32::MAX, &own, &interface);
        assert!(message.len().is_multiple_of(4));
        let error = routes.ask(&message, || "move").unwrap_err();
        assert_eq!(error.failure().chain[0], "move");
        assert!(error.failure().chain[1].contains("No such device"));
    }
}
