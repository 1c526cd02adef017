//! How a machine has ended.

use std::{fmt, io};

/// The machine's end.
#[derive(Debug)]
pub struct Ended {
    /// Why.
    pub reason: EndReason,
    /// The tail of the guest's log, at most a few KiB, without control characters but newlines. Empty when the guest
    /// logged nothing.
    pub last_words: String,
}

/// Why a machine has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Triple fault or reset: the guest panicked, rebooted or was powered off.
    Reset,
    /// KVM could not go on with the guest.
    InternalError {
        /// `KVM_INTERNAL_ERROR_*` (linux/kvm.h).
        suberror: u32,
    },
    /// The processor refused the vCPU's state.
    FailedEntry {
        /// The processor's reason code.
        hardware_reason: u64,
        /// The host's processor.
        cpu: u32,
    },
    /// The guest reported an event that is not an end of the usual kind.
    SystemEvent {
        /// `KVM_SYSTEM_EVENT_*` (linux/kvm.h).
        event: u32,
    },
    /// The host has no memory behind an address of the guest.
    MemoryFault {
        /// Guest physical address.
        address: u64,
    },
    /// KVM returned for a reason that was not asked for.
    UnexpectedExit(String),
    /// `KVM_RUN` failed.
    Vcpu {
        /// Error number.
        errno: i32,
    },
    /// [`Enter`](crate::Enter) has failed.
    Thread {
        /// The thread's name.
        thread: String,
        /// What it said.
        error: String,
    },
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndReason::Reset => write!(f, "the guest reset its machine"),
            EndReason::InternalError { suberror } => {
                write!(
                    f,
                    "KVM cannot go on with the guest (internal error {suberror})"
                )
            }
            EndReason::FailedEntry {
                hardware_reason,
                cpu,
            } => {
                write!(
                    f,
                    "processor {cpu} refused to enter the guest ({hardware_reason:#x})"
                )
            }
            EndReason::SystemEvent { event } => write!(f, "the guest raised system event {event}"),
            EndReason::MemoryFault { address } => {
                write!(f, "the host has no memory for guest address {address:#x}")
            }
            EndReason::UnexpectedExit(exit) => write!(f, "unexpected exit from the guest: {exit}"),
            EndReason::Vcpu { errno } => {
                write!(f, "KVM_RUN: {}", io::Error::from_raw_os_error(*errno))
            }
            EndReason::Thread { thread, error } => {
                write!(f, "thread {thread} cannot be prepared: {error}")
            }
        }
    }
}
