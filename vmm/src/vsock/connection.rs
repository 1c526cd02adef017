//! A connection as a pure state machine: packets in, packets out, no descriptors and no memory of payload.
//!
//! ```text
//!                    packet of the guest, or an end of the host's stream
//!   REQUEST ──> open ───────────────────────────────────────────────────> open, one direction shut
//!                │                                                            │
//!                │ RST, broken rule, guest SHUTDOWN(both), RST of the host     │ the other direction shut
//!                v                                                            v
//!              ended <───────────────────── RST of the guest ─────────── both shut, waiting for RST
//! ```
//! The two directions end independently, each by either party: the sender says SHUTDOWN(SEND) when it has no more, the
//! receiver says SHUTDOWN(RECEIVE) when it takes no more. Who has received SHUTDOWN for both directions answers RST,
//! and the connection is gone; an orderly close of a Linux guest waits for that RST for up to 8 s
//! (`VSOCK_CLOSE_TIMEOUT` in net/vmw_vsock/virtio_transport_common.c).
//!
//! Invariants:
//! * `received - forwarded <= BUF_ALLOC`: the guest cannot make the host store more than that.
//! * A data packet is sent only within the guest's credit, and never after the host's or the guest's end of that
//!   direction.
//! * Counters are modulo 2^32 (virtio 1.2, section 5.10.6.3); differences are taken with wrapping arithmetic.

use super::Port;
use super::packet::{
    HOST_CID, Header, MAX_PAYLOAD, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op,
};

/// Bytes the host holds for one connection when the sink does not take them (`buf_alloc` in every packet to the guest).
/// Linux's own default (`VIRTIO_VSOCK_DEFAULT_BUF_SIZE`, 256 KiB).
pub(super) const BUF_ALLOC: u32 = 256 * 1024;
/// The guest is told its credit unasked when it has got that much better, in bytes. A sender out of credit is always
/// told: when all it has sent is forwarded, the difference is the whole of [`BUF_ALLOC`].
const CREDIT_STEP: u32 = BUF_ALLOC / 4;

/// The two ports of a connection: what a packet's addresses come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Port of the guest.
    pub guest_port: Port,
    /// Port of the host.
    pub host_port: Port,
}

/// What a packet of the guest means for the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing beyond the state; there may be something to send now.
    Noted,
    /// The payload is the guest's data.
    Data,
    /// The guest has shut a direction: see [`Connection::guest_sends`] and [`Connection::guest_receives`].
    Shut,
    /// The connection is gone. `answer`: the guest is to get RST.
    Ended {
        /// Whether RST goes to the guest.
        answer: bool,
    },
}

/// The host's end of one connection.
#[derive(Debug)]
pub(super) struct Connection {
    key: Key,
    guest_cid: u64,
    /// Bytes received from the guest, and of these the bytes that are delivered or dropped.
    received: u32,
    forwarded: u32,
    /// `forwarded` as the guest knows it.
    told: u32,
    /// Bytes sent to the guest, and the guest's receive buffer as it told it.
    sent: u32,
    peer_alloc: u32,
    peer_forwarded: u32,
    /// SHUTDOWN flags of the guest.
    guest_shut: u32,
    /// SHUTDOWN flags of the host.
    host_shut: u32,
    /// Packets to be sent.
    response: bool,
    shutdown: bool,
    credit: bool,
    /// RST is all that is still to be sent.
    reset: bool,
}

impl Connection {
    /// Accepts a REQUEST.
    pub(super) fn accept(request: &Header) -> Connection {
        Connection {
            key: Key {
                guest_port: request.src_port.get(),
                host_port: request.dst_port.get(),
            },
            guest_cid: request.src_cid.get(),
            received: 0,
            forwarded: 0,
            told: 0,
            sent: 0,
            peer_alloc: request.buf_alloc.get(),
            peer_forwarded: request.fwd_cnt.get(),
            guest_shut: 0,
            host_shut: 0,
            response: true,
            shutdown: false,
            credit: false,
            reset: false,
        }
    }

    /// The connection's ports.
    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// Takes a packet of the guest that is addressed to this connection.
    pub(super) fn receive(&mut self, header: &Header) -> Outcome {
        self.peer_alloc = header.buf_alloc.get();
        self.peer_forwarded = header.fwd_cnt.get();
        let len = header.len.get();
        match header.op.get() {
            op::RST => Outcome::Ended { answer: false },
            op::RW if self.takes(len) => {
                self.received = self.received.wrapping_add(len);
                Outcome::Data
            }
            op::SHUTDOWN if len == 0 => {
                self.guest_shut |= header.flags.get() & SHUTDOWN_BOTH;
                if self.guest_shut == SHUTDOWN_BOTH {
                    Outcome::Ended { answer: true }
                } else {
                    Outcome::Shut
                }
            }
            op::CREDIT_UPDATE if len == 0 => Outcome::Noted,
            op::CREDIT_REQUEST if len == 0 => {
                self.credit = true;
                Outcome::Noted
            }
            // REQUEST and RESPONSE have no place in a connection; the rest is unknown, or breaks the credit or the
            // length.
            _ => Outcome::Ended { answer: true },
        }
    }

    /// Whether the guest may send `len` bytes now.
    fn takes(&self, len: u32) -> bool {
        let held = self.received.wrapping_sub(self.forwarded);
        self.guest_sends() && held.saturating_add(len) <= BUF_ALLOC
    }

    /// Whether the guest may still send.
    pub(super) fn guest_sends(&self) -> bool {
        self.guest_shut & SHUTDOWN_SEND == 0
    }

    /// Whether the guest still receives.
    pub(super) fn guest_receives(&self) -> bool {
        self.guest_shut & SHUTDOWN_RECEIVE == 0
    }

    /// `count` received bytes are out of the host's hands: delivered, or dropped because nobody takes them.
    pub(super) fn forward(&mut self, count: u32) {
        self.forwarded = self.forwarded.wrapping_add(count);
        // With no more to come there is nobody to tell.
        if self.guest_sends() && self.forwarded.wrapping_sub(self.told) >= CREDIT_STEP {
            self.credit = true;
        }
    }

    /// The host has no more to send.
    pub(super) fn end_sending(&mut self) {
        self.shut(SHUTDOWN_SEND);
    }

    /// The host takes no more.
    pub(super) fn end_receiving(&mut self) {
        self.shut(SHUTDOWN_RECEIVE);
    }

    /// The host gives the connection up. It is gone when RST is sent.
    pub(super) fn reset(&mut self) {
        self.reset = true;
    }

    fn shut(&mut self, flag: u32) {
        if self.host_shut & flag == 0 {
            self.host_shut |= flag;
            self.shutdown = true;
        }
    }

    /// Bytes of data that may be sent now, in one packet.
    pub(super) fn allowance(&self) -> u32 {
        if self.reset || self.host_shut & SHUTDOWN_SEND != 0 || !self.guest_receives() {
            return 0;
        }
        // A guest that claims to have forwarded more than it got ends up with no credit.
        let in_flight = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_alloc.saturating_sub(in_flight).min(MAX_PAYLOAD)
    }

    /// Whether a packet without payload waits to be sent.
    pub(super) fn has_control(&self) -> bool {
        self.reset || self.response || self.shutdown || self.credit
    }

    /// The next packet without payload, if any. After RST the connection is gone.
    pub(super) fn control(&mut self) -> Option<Header> {
        if self.reset {
            Some(self.rst())
        } else if std::mem::take(&mut self.response) {
            Some(self.header(op::RESPONSE))
        } else if std::mem::take(&mut self.shutdown) {
            Some(Header {
                flags: self.host_shut.into(),
                ..self.header(op::SHUTDOWN)
            })
        } else if std::mem::take(&mut self.credit) {
            Some(self.header(op::CREDIT_UPDATE))
        } else {
            None
        }
    }

    /// The header of a data packet of `count` bytes, which is at most [`Connection::allowance`].
    pub(super) fn data(&mut self, count: u32) -> Header {
        self.sent = self.sent.wrapping_add(count);
        Header {
            len: count.into(),
            ..self.header(op::RW)
        }
    }

    /// RST.
    pub(super) fn rst(&mut self) -> Header {
        self.header(op::RST)
    }

    /// A header of this connection. It tells the credit, whatever else it says.
    fn header(&mut self, operation: u16) -> Header {
        self.told = self.forwarded;
        self.credit = false;
        Header {
            src_cid: HOST_CID.into(),
            dst_cid: self.guest_cid.into(),
            src_port: self.key.host_port.into(),
            dst_port: self.key.guest_port.into(),
            len: 0.into(),
            type_: TYPE_STREAM.into(),
            op: operation.into(),
            flags: 0.into(),
            buf_alloc: BUF_ALLOC.into(),
            fwd_cnt: self.forwarded.into(),
        }
    }
}

#[cfg(test)]
#[path = "credit_tests.rs"]
mod credit;
#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
