//! Connections to localhost in the container's network namespace on the host, which are for the guest's programs.
//!
//! ```text
//!  waits in the kernel ──accept──> the agent is asked ──it dials──> joined ──both directions have ended──> gone
//!                                      └── it refuses, or there is nobody in the guest: reset
//! ```
//! Invariants: the host connects and the guest answers, never the other way around; there are at most [`FORWARDS_MAX`],
//! and more wait where they are; nothing here blocks. Nobody is accepted before the first container, whose network
//! namespace it is, has been created, and nobody waits any more when that has ended.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use protocol::{FIRST, RequestBody};
use vmm::vsock::{HostStream, Port};

use super::life::{Life, Waiting};
use super::streams;
use crate::host::network::localhost::Localhost;

/// Maximum number of connections at a time.
const FORWARDS_MAX: usize = 64;

/// All such connections.
pub(super) struct Forwards {
    localhost: Option<Localhost>,
    /// The host's ports of their streams.
    open: HashSet<Port>,
}

impl Forwards {
    /// Those of a namespace; none without one.
    pub(super) fn new(localhost: Option<Localhost>) -> Forwards {
        Forwards {
            localhost,
            open: HashSet::new(),
        }
    }

    /// What is to be watched for connections, edge-triggered: one that cannot be accepted stays where it is.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.localhost.as_ref().map(AsFd::as_fd)
    }

    /// Nobody comes any more.
    pub(super) fn close(&mut self) {
        self.localhost = None;
    }
}

impl Life {
    /// Accepts all that wait, or as many as there may be and there are descriptors and memory for.
    pub(super) fn forward(&mut self) -> io::Result<()> {
        while self.lives(FIRST)
            && self.parts.forwards.open.len() < FORWARDS_MAX
            && let Some(localhost) = &self.parts.forwards.localhost
            && let Ok((connection, address)) = localhost.accept()
        {
            // One that is dropped is reset.
            let Ok(stream) = HostStream::connection(connection) else {
                continue;
            };
            let Ok(ports) = streams::offer_one(self.parts.machine.vsock(), stream) else {
                continue;
            };
            self.parts.forwards.open.insert(ports.host);
            let connect = RequestBody::Connect { address, ports };
            if !self.request(FIRST, connect, Waiting::Forward(ports.host))? {
                self.refused(ports.host);
            }
        }
        Ok(())
    }

    /// The guest does not take a connection.
    pub(super) fn refused(&mut self, port: Port) {
        if self.parts.forwards.open.remove(&port) {
            self.abandon(&[port]);
        }
    }

    /// A connection is over, if the stream was one's. Another may have waited for its place.
    pub(super) fn forwarded(&mut self, port: Port) -> io::Result<()> {
        if self.parts.forwards.open.remove(&port) {
            self.forward()?;
        }
        Ok(())
    }
}
