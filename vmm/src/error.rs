//! Why there is no machine, or it cannot go on.

use std::io;
use std::time::Duration;

use kvm_bindings::KVM_API_VERSION;

use crate::layout::{MAX_NET_SLOTS, MAX_VCPUS};
use crate::virtio::NetError;
use crate::{boot, memory, vsock};

/// Why there is no machine, or it cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A KVM call failed.
    #[error("KVM: {call}")]
    Kvm {
        /// Name of the ioctl.
        call: &'static str,
        /// What it said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Not the stable KVM interface.
    #[error("KVM has API version {0} and not {KVM_API_VERSION}")]
    KvmVersion(i32),
    /// A table for KVM is too long.
    #[error("a table for KVM is too long")]
    Table,
    /// Too few or too many vCPUs.
    #[error("{0} vCPUs asked for; 1 to {MAX_VCPUS} are possible")]
    Vcpus(u8),
    /// Too many block devices.
    #[error("{0} block devices asked for; besides the network slots {1} are possible")]
    Disks(usize, usize),
    /// Too many network slots.
    #[error("{0} network slots asked for; {MAX_NET_SLOTS} are possible")]
    NetSlots(usize),
    /// A tap cannot be connected.
    #[error("network device")]
    Net(#[source] NetError),
    /// All network slots are in use.
    #[error("the machine has {0} network slots and no more")]
    NoNetSlot(usize),
    /// No guest memory.
    #[error("guest memory")]
    Memory(#[source] memory::Error),
    /// The guest cannot be booted.
    #[error("guest boot")]
    Boot(#[source] boot::Error),
    /// No vsock device.
    #[error("vsock device")]
    Vsock(#[source] vsock::Error),
    /// A vCPU cannot be stopped.
    #[error("a vCPU has not stopped within {} s", .0.as_secs())]
    Pause(Duration),
    /// A system call failed.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What came of it.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// An error of the named KVM ioctl.
    pub(crate) fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
        move |source| Error::Kvm { call, source }
    }

    /// An error of a system call that the machine needs.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::System { what, source }
    }
}
