//! Packets from the tap to the driver.
//!
//! The size of a packet is known when it is read, so it is read into as many of the driver's chains as the packet
//! before took, and what does not fit there into a buffer behind them, to be copied into further chains.
//!
//! ```text
//!  empty ── read ──> in chains ── they suffice, or more do ──────────────> used
//!                        │                                                  ^
//!                        └─ none is left ──> held ── the driver adds some ──┘
//! ```
//! A packet for which the most chains allowed do not suffice is dropped.

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestMemoryMmap, VolatileSlice};

use super::ring::{self, Batch};
use super::{Broken, HEADER, PACKET_MAX, Tap};
use crate::copier::Copier;
use crate::sys::Incoming;

/// Maximum number of chains looked at in a turn, but for those of the last packet.
pub(super) const BATCH: usize = 128;

/// Maximum number of chains for a packet. Linux gives buffers of at least 1526 bytes: 43 of them hold the longest
/// packet.
pub(super) const MAX_CHAINS: usize = 64;

/// Maximum number of pieces to which another chain is added. A chain has no more than 256, and readv(2) takes 1024
/// (`UIO_MAXIOV` in linux/uio.h).
const MAX_PIECES: usize = 767;

/// Where `num_buffers` is in the header.
const NUM_BUFFERS: usize = 10;

/// The rx queue.
pub(super) struct Rx {
    queue: Queue,
    /// Maximum number of chains for a packet: more than one if the driver takes mergeable buffers.
    max_chains: usize,
    /// Holds the part of a packet behind the chains it was read into, at the offset it has in the packet; or a packet
    /// as a whole.
    buffer: Box<[u8]>,
    /// Length of the packet that the buffer holds as a whole, or 0.
    held: usize,
    /// Length of the packet before.
    expected: usize,
}

/// Chains taken for a packet.
#[derive(Default)]
struct Room<'m> {
    /// Heads and lengths.
    chains: Vec<(u16, usize)>,
    /// The buffers of all chains.
    pieces: Vec<VolatileSlice<'m>>,
    /// Bytes in them.
    length: usize,
}

impl Rx {
    pub(super) fn new(queue: Queue, mergeable: bool) -> Rx {
        let most = if mergeable { MAX_CHAINS } else { 1 };
        let max_chains = most.min(queue.size().into());
        Rx {
            queue,
            max_chains,
            buffer: vec![0; PACKET_MAX].into(),
            held: 0,
            expected: 0,
        }
    }

    /// Receives packets until the tap has no more, the driver has no more buffers or the budget is used up.
    pub(super) fn receive(
        &mut self,
        memory: &GuestMemoryMmap,
        tap: &mut Tap,
    ) -> Result<Batch, Broken> {
        let before = self.queue.next_used();
        let mut budget = BATCH;
        self.queue.disable_notification(memory)?;
        while budget > 0 && (self.held > 0 || tap.readable) {
            let Some(chains) = self.packet(memory, tap)? else {
                break;
            };
            budget = budget.saturating_sub(chains);
        }
        Ok(Batch {
            more: budget == 0,
            interrupt: ring::wants_interrupt(&self.queue, memory, before)?,
        })
    }

    /// Receives a packet, if the tap has one. Returns how many chains were looked at, or nothing when the driver must
    /// add some first, of which it will notify.
    fn packet(&mut self, memory: &GuestMemoryMmap, tap: &mut Tap) -> Result<Option<usize>, Broken> {
        let mut room = Room::default();
        // What is in the buffer begins there.
        let mut direct = 0;
        let mut length = self.held;
        if length == 0 {
            self.extend(memory, &mut room, 1, true)?;
            if room.chains.is_empty() {
                return Ok(None);
            }
            self.extend(memory, &mut room, self.expected, false)?;
            direct = room.length.min(PACKET_MAX);
            let rest = &mut self.buffer[direct..];
            length = tap.read(&Incoming::from_guest_and_host(&room.pieces, direct, rest));
            if length < HEADER {
                ring::put_back(&mut self.queue, room.chains.len());
                return Ok(Some(room.chains.len()));
            }
            self.expected = length;
        }
        self.extend(memory, &mut room, length, true)?;
        let looked_at = room.chains.len();
        if room.length < length {
            ring::put_back(&mut self.queue, looked_at);
            if looked_at == self.max_chains || room.pieces.len() > MAX_PIECES {
                self.held = 0;
                return Ok(Some(looked_at));
            }
            room.copy_to(&mut self.buffer[..direct]);
            self.held = length;
            return Ok(None);
        }
        if direct < length {
            room.write(direct, &self.buffer[direct..length]);
        }
        self.held = 0;
        let used = room.fill(length)?;
        let count = u16::try_from(used.len()).map_err(|_| Broken::Length)?;
        room.write(NUM_BUFFERS, &count.to_le_bytes());
        ring::put_back(&mut self.queue, looked_at - used.len());
        ring::publish(&mut self.queue, memory, &used)?;
        Ok(Some(looked_at))
    }

    /// Takes chains until they have `length` bytes, or are the most there may be, or there is none.
    fn extend<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        room: &mut Room<'m>,
        length: usize,
        ask: bool,
    ) -> Result<(), Broken> {
        // Nothing is read from the driver.
        let mut nothing = Copier::new(None);
        while room.length < length
            && room.chains.len() < self.max_chains
            && room.pieces.len() <= MAX_PIECES
            && let Some(chain) = ring::next(&mut self.queue, memory, &mut nothing, ask)?
        {
            let pieces = chain.buffers.writable;
            let length = pieces.iter().map(VolatileSlice::len).sum();
            // virtio 1.2, section 5.1.6.3.1: each buffer has room for the header at least.
            if !chain.buffers.readable.is_empty() {
                return Err(Broken::Direction);
            }
            if length < HEADER {
                return Err(Broken::Length);
            }
            room.chains.push((chain.head, length));
            room.pieces.extend(pieces);
            room.length += length;
        }
        Ok(())
    }
}

impl Room<'_> {
    /// Splits a packet of `length` bytes over the chains: those that hold some of it, with the bytes they hold.
    fn fill(&self, length: usize) -> Result<Vec<(u16, u32)>, Broken> {
        let mut left = length;
        let mut used = Vec::with_capacity(self.chains.len());
        for &(head, room) in &self.chains {
            if left == 0 {
                break;
            }
            let part = left.min(room);
            left -= part;
            used.push((head, u32::try_from(part).map_err(|_| Broken::Length)?));
        }
        Ok(used)
    }

    /// Copies `bytes` into the chains from `offset` on.
    fn write(&self, offset: usize, bytes: &[u8]) {
        let (mut skip, mut rest) = (offset, bytes);
        for piece in &self.pieces {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            if let Ok(piece) = piece.offset(skipped) {
                let (part, behind) = rest.split_at(piece.len().min(rest.len()));
                piece.copy_from(part);
                rest = behind;
            }
        }
    }

    /// Copies the beginning of the chains into `to`.
    fn copy_to(&self, to: &mut [u8]) {
        let mut done = 0;
        for piece in &self.pieces {
            done += piece.copy_to(&mut to[done..]);
        }
    }
}
