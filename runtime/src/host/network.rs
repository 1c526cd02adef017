//! The container's network: what CNI, netavark or libnetwork have put into its network namespace on this host becomes
//! the guest's.
//!
//! ```text
//!                    the container's namespace on this host            │ the guest
//!   bridge ── veth ──> eth0, ingress ───redirect──> chiton2 (tap) ──── │ ──> eth0
//!          <── veth ── eth0 <───redirect─── chiton2, ingress <──────── │ ─── eth0
//! ```
//! At `start`, the latest moment at which callers have filled the namespace, it is looked at: each interface with
//! addresses is joined to a tap, by redirecting all frames of each to the other, and the guest is told what to make of
//! it. The host's addresses and routes stay; no packet gets to them any more. The taps belong to the machine process
//! and end with it; the redirections of an interface that outlives it are taken away by `delete`. From then on the
//! namespace is watched, and what changes in it is done to the guest's.

mod bpf;
mod change;
#[cfg(fuzzing)]
#[path = "../../../tests/fuzz/runtime/network.rs"]
pub mod fuzz;
mod joint;
pub(crate) mod localhost;
mod moved;
pub(crate) mod names;
mod namespace;
mod netlink;
mod plan;
mod scan;
mod watch;

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{fstat, stat};
use protocol::Network;

use crate::error::{Doing, SystemError};
use crate::report::Report;
use crate::state::Network as Namespace;
pub(crate) use moved::{Moved, NetDevice};
use names::Listeners;
use namespace::inside;
use netlink::Socket;
pub(crate) use watch::{Tell, Watch};

/// What taps are made of.
pub(crate) const TUN: &str = joint::TUN;

/// What goes wrong with a container's network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A system call failed.
    #[error("cannot {doing}")]
    System {
        /// What was being done.
        doing: Cow<'static, str>,
        /// The cause.
        source: io::Error,
    },
    /// An interface that the guest cannot have.
    #[error("network interface {0}: {1}")]
    Interface(String, String),
    /// More interfaces than slots: their names, their number, the slots.
    #[error(
        "the container's network namespace has {1} network interfaces ({0}), and the machine takes at most {2}"
    )]
    Slots(String, usize, usize),
}

impl From<SystemError> for Error {
    fn from(SystemError { doing, source }: SystemError) -> Error {
        Error::System { doing, source }
    }
}

/// Has this process enter a container's network namespace.
///
/// # Errors
/// Those of the system calls; the namespace of a path is this host's own.
pub(crate) fn enter(network: &Namespace) -> Result<(), SystemError> {
    match network {
        Namespace::Guests | Namespace::New => {
            unshare(CloneFlags::CLONE_NEWNET).doing("create a network namespace")
        }
        Namespace::Path(path) => {
            let name = || format!("join the network namespace {}", path.display());
            let ns = File::open(path).doing_with(name)?;
            let own = stat("/proc/self/ns/net").doing_with(name)?;
            let there = fstat(&ns).doing_with(name)?;
            if (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino) {
                // Its interfaces would become the guest's.
                let text = "it is this host's own network namespace, which a container cannot have";
                return Err(io::Error::other(text)).doing_with(name);
            }
            setns(ns, CloneFlags::CLONE_NEWNET).doing_with(name)
        }
    }
}

/// What is known of a name server in the namespace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NameServer {
    /// The container is to ask it.
    pub(crate) asked: bool,
    /// The machine process is in the namespace.
    pub(crate) in_reach: bool,
}

/// A network that waits for its machine.
#[derive(Default)]
pub(crate) struct Joined {
    /// What the guest is to have. The numbers of the devices are still 0.
    pub(crate) network: Network,
    /// For each interface the tap that its packets go through.
    pub(crate) taps: Vec<OwnedFd>,
    /// What becomes of it, unless it has no interface.
    pub(crate) watch: Option<Watch>,
}

/// Joins the interfaces of the network namespace that a process lives in to taps: those with addresses, and those
/// `wanted` by name. There may be as many as the machine has slots. The guest gets the name server of the namespace, if
/// there is one that is asked.
///
/// # Errors
/// What the guest cannot have; with nothing changed in the namespace but leftovers of earlier machines.
pub(crate) fn join(
    process: impl AsFd,
    wanted: &[String],
    server: NameServer,
    slots: usize,
    report: &Report,
) -> Result<Joined, Error> {
    inside(process, |socket| {
        // Before it is looked at, so that nothing that comes after is missed.
        let watch = Watch::begin(wanted, slots)?;
        let scan = scan::scan(socket).doing("read the container's network namespace")?;
        let mut plan = plan::plan(&scan, wanted, &[], slots)?;
        let watched = !plan.network.interfaces.is_empty();
        let listeners = (server.asked || watched && server.in_reach).then(Listeners::open);
        let listeners = listeners.transpose().doing("look for a name server")?;
        if let Some(listeners) = listeners.as_ref().filter(|_| server.asked) {
            plan.network.names = listeners.at_name_server().doing("look for a name server")?;
        }
        plan.skipped.iter().for_each(|text| report.debug(text));
        plan.warnings.iter().for_each(|text| report.warn(text));
        let interfaces = plan.network.interfaces.iter();
        let taps: Result<Vec<_>, _> = interfaces
            .map(|interface| joint::make(socket, interface))
            .collect();
        // Taps end with their descriptors; what leads to them is taken away here.
        if taps.is_err() {
            let _ = joint::remove_all(socket);
        }
        let network = plan.network;
        let listeners = listeners.filter(|_| server.in_reach);
        Ok(Joined {
            taps: taps?,
            watch: watched.then(|| watch.of(network.clone(), listeners)),
            network,
        })
    })
}

/// Takes away what leads to taps that are gone from the network namespace of a path, if that is still there.
pub(crate) fn release(path: &Path) -> Result<(), Error> {
    let Ok(namespace) = File::open(path) else {
        return Ok(());
    };
    let remove =
        |socket: &Socket| Ok(joint::remove_all(socket).doing("clean up the network namespace")?);
    match inside(namespace, remove) {
        // What the path was a mount of is gone, and a plain file is left.
        Err(Error::System { source, .. })
            if source.raw_os_error() == Some(Errno::EINVAL as i32) =>
        {
            Ok(())
        }
        result => result,
    }
}

/// Whether this host can join interfaces to machines. Leaves the calling thread in a network namespace of its own.
pub(crate) fn check() -> Result<(), Error> {
    unshare(CloneFlags::CLONE_NEWNET).doing("create a network namespace")?;
    joint::check(&Socket::open().doing("create a netlink socket")?)
}

/// Whether this host can lead connections to localhost to machines. Leaves the calling thread in a network namespace of
/// its own.
pub(crate) fn check_localhost() -> Result<(), Error> {
    unshare(CloneFlags::CLONE_NEWNET).doing("create a network namespace")?;
    Ok(localhost::Localhost::new().map(drop)?)
}

/// The name of the tap for the interface of an index.
fn tap_name(index: i32) -> String {
    format!("chiton{index}")
}

/// Whether an interface of this name is such a tap.
pub(crate) fn is_ours(name: &str) -> bool {
    name.strip_prefix("chiton")
        .is_some_and(|index| index.parse::<i32>().is_ok())
}
