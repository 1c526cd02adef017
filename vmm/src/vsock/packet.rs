//! virtio-vsock packets in descriptor chains.
//!
//! A packet is a 44-byte header and, for `OP_RW`, a payload. How the driver spreads them over descriptors is its own
//! choice (virtio 1.2, section 2.7.4.2: no assumption about framing), so a chain is first flattened into checked slices
//! of guest memory. The header is copied out of them exactly once; nothing is ever read from guest memory a second
//! time.

use std::io;

use thiserror::Error;
use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::copier::Copier;
use crate::fault::Fault;

/// CID of the host (virtio 1.2, section 5.10.4: the well-known CID 2; `VMADDR_CID_HOST` in linux/vm_sockets.h).
pub(super) const HOST_CID: u64 = 2;
/// Stream socket type (virtio 1.2, section 5.10.6: `VIRTIO_VSOCK_TYPE_STREAM`).
pub(super) const TYPE_STREAM: u16 = 1;

/// Operations (virtio 1.2, section 5.10.6; `enum virtio_vsock_op` in linux/virtio_vsock.h).
pub(super) mod op {
    /// A connection request.
    pub(in crate::vsock) const REQUEST: u16 = 1;
    /// The acceptance of a connection request.
    pub(in crate::vsock) const RESPONSE: u16 = 2;
    /// The end of a connection, or the refusal of a packet.
    pub(in crate::vsock) const RST: u16 = 3;
    /// One side, or both, of a connection will not be used any more.
    pub(in crate::vsock) const SHUTDOWN: u16 = 4;
    /// Payload.
    pub(in crate::vsock) const RW: u16 = 5;
    /// Tells the credit.
    pub(in crate::vsock) const CREDIT_UPDATE: u16 = 6;
    /// Asks for the credit.
    pub(in crate::vsock) const CREDIT_REQUEST: u16 = 7;
}

/// The sender of the SHUTDOWN will not receive any more (virtio 1.2, section 5.10.6.5:
/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`).
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender of the SHUTDOWN will not send any more (virtio 1.2, section 5.10.6.5: `VIRTIO_VSOCK_SHUTDOWN_F_SEND`).
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// Size of a packet header, in bytes (virtio 1.2, section 5.10.6: `struct virtio_vsock_hdr`, packed).
pub(super) const HEADER_SIZE: usize = size_of::<Header>();
/// Longest payload of a packet, in bytes (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE` in linux/virtio_vsock.h; the specification
/// names none).
pub(super) const MAX_PAYLOAD: u32 = 64 * 1024;
/// Most pieces a chain may consist of: what one readv or writev takes (`UIO_MAXIOV` in linux/uio.h).
const MAX_PIECES: usize = 1024;

/// A packet header (virtio 1.2, section 5.10.6). Little-endian, no padding.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    /// CID of the sender.
    pub(super) src_cid: U64,
    /// CID of the receiver.
    pub(super) dst_cid: U64,
    /// Port of the sender.
    pub(super) src_port: U32,
    /// Port of the receiver.
    pub(super) dst_port: U32,
    /// Bytes of payload.
    pub(super) len: U32,
    /// Socket type.
    pub(super) type_: U16,
    /// Operation, one of [`op`].
    pub(super) op: U16,
    /// Flags of the operation.
    pub(super) flags: U32,
    /// Size of the sender's receive buffer, in bytes.
    pub(super) buf_alloc: U32,
    /// Bytes the sender's receive buffer has passed on so far, modulo 2^32.
    pub(super) fwd_cnt: U32,
}

impl Header {
    /// The refusal of a packet: RST to its sender, from where the packet was sent to (virtio 1.2, section 5.10.6.4).
    pub(super) fn refusal(&self) -> Header {
        Header {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            type_: self.type_,
            op: op::RST.into(),
            ..Header::default()
        }
    }
}

/// The driver has broken the rules of the queue: the device needs a reset.
#[derive(Debug, Error)]
pub enum Broken {
    /// The ring itself.
    #[error("the virtqueue is broken")]
    Queue(#[from] virtio_queue::Error),
    /// The available index and the available ring contradict each other.
    #[error("the available ring yields fewer chains than its index says")]
    AvailRing,
    /// The chain loops, leaves its table, or its table is outside guest memory.
    #[error("a descriptor chain does not end")]
    EndlessChain,
    /// A descriptor has the wrong direction for its queue.
    #[error("a descriptor has the wrong direction")]
    Direction,
    /// A buffer is outside guest memory.
    #[error("a descriptor points outside guest memory")]
    Address(#[source] vm_memory::GuestMemoryError),
    /// What is in the window cannot be copied, or is too much.
    #[error("what a descriptor names of the window cannot be read")]
    Window(#[source] io::Error),
    /// The chain is scattered over too many pieces.
    #[error("a descriptor chain has more than {MAX_PIECES} pieces")]
    Pieces,
    /// The chain is too short for what it must hold.
    #[error("a descriptor chain has {have} bytes where {need} are needed")]
    Short {
        /// Bytes in the chain.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// The packet is longer than any packet may be.
    #[error("a packet announces {0} bytes of payload")]
    Long(u32),
}

impl From<Broken> for Fault {
    fn from(broken: Broken) -> Fault {
        Fault::Driver(Box::new(broken))
    }
}

/// What a descriptor chain is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// The device reads it (tx queue).
    Readable,
    /// The device writes it (rx queue).
    Writable,
}

/// Slices of guest memory, checked to lie in it.
pub(super) struct Pieces<'m>(Vec<VolatileSlice<'m>>);

impl<'m> Pieces<'m> {
    /// Flattens a chain whose descriptors all have the one direction.
    fn collect(
        memory: &'m GuestMemoryMmap,
        copier: Option<&'m mut Copier>,
        chain: DescriptorChain<&'m GuestMemoryMmap>,
        direction: Direction,
    ) -> Result<Pieces<'m>, Broken> {
        let mut pieces = Vec::with_capacity(4);
        let mut parts = Vec::new();
        // virtio-queue ends a walk that leaves the table, loops or cannot be read without a word: the last descriptor
        // it gave then still says that another one follows, or there was none at all.
        let mut ended = false;
        let (writable, permissions) = match direction {
            Direction::Readable => (false, Permissions::Read),
            Direction::Writable => (true, Permissions::Write),
        };
        for (count, descriptor) in chain.enumerate() {
            // Descriptors without a byte are no pieces, but reading them takes time as well.
            if count == MAX_PIECES {
                return Err(Broken::Pieces);
            }
            ended = !descriptor.has_next();
            if descriptor.is_write_only() != writable {
                return Err(Broken::Direction);
            }
            let (address, length) = (descriptor.addr(), descriptor.len() as usize);
            let part = |copier: &Copier| copier.part(pieces.len(), address.0, length);
            if let Some(part) = copier.as_deref().and_then(part) {
                parts.push(part);
                continue;
            }
            let slices = memory
                .get_slices(address, length, permissions)
                .map_err(Broken::Address)?;
            for slice in slices {
                if pieces.len() == MAX_PIECES {
                    return Err(Broken::Pieces);
                }
                pieces.push(slice.map_err(Broken::Address)?);
            }
        }
        if let Some(copier) = copier {
            copier.insert(&parts, &mut pieces).map_err(Broken::Window)?;
        }
        if ended {
            Ok(Pieces(pieces))
        } else {
            Err(Broken::EndlessChain)
        }
    }

    /// The bytes in all pieces.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(VolatileSlice::len).sum()
    }

    /// The pieces.
    pub(super) fn slices(&self) -> &[VolatileSlice<'m>] {
        &self.0
    }

    /// Takes `count` bytes off the front, or all there are.
    pub(super) fn skip(&mut self, count: usize) {
        let mut left = count;
        let mut whole = 0;
        for piece in &mut self.0 {
            if left < piece.len() {
                if let Ok(rest) = piece.offset(left) {
                    *piece = rest;
                }
                break;
            }
            left -= piece.len();
            whole += 1;
        }
        self.0.drain(..whole);
    }

    /// Cuts the tail so that at most `count` bytes stay.
    pub(super) fn truncate(&mut self, count: usize) {
        let mut left = count;
        let mut kept = 0;
        for piece in &mut self.0 {
            if left == 0 {
                break;
            }
            if left < piece.len()
                && let Ok(front) = piece.subslice(0, left)
            {
                *piece = front;
            }
            left = left.saturating_sub(piece.len());
            kept += 1;
        }
        self.0.truncate(kept);
    }

    /// Copies the pieces into `to`, as far as both reach.
    fn copy_to(&self, to: &mut [u8]) {
        let mut done = 0;
        for piece in &self.0 {
            done += piece.copy_to(&mut to[done..]);
        }
    }

    /// Copies `from` into the pieces, as far as both reach.
    fn copy_from(&self, from: &[u8]) {
        let mut rest = from;
        for piece in &self.0 {
            let count = piece.len().min(rest.len());
            piece.copy_from(&rest[..count]);
            rest = &rest[count..];
        }
    }

    /// The bytes of all pieces.
    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.copy_to(&mut bytes);
        bytes
    }
}

/// A packet from the driver.
pub(super) struct Received<'m> {
    /// Its header.
    pub(super) header: Header,
    /// Its payload, exactly `header.len` bytes.
    pub(super) payload: Pieces<'m>,
}

impl<'m> Received<'m> {
    /// Reads a chain of the tx queue.
    pub(super) fn parse(
        memory: &'m GuestMemoryMmap,
        copier: &'m mut Copier,
        chain: DescriptorChain<&'m GuestMemoryMmap>,
    ) -> Result<Received<'m>, Broken> {
        let mut payload = Pieces::collect(memory, Some(copier), chain, Direction::Readable)?;
        let have = payload.len();
        if have < HEADER_SIZE {
            return Err(Broken::Short {
                have,
                need: HEADER_SIZE,
            });
        }
        let mut header = Header::default();
        payload.copy_to(header.as_mut_bytes());
        let len = header.len.get();
        if len > MAX_PAYLOAD {
            return Err(Broken::Long(len));
        }
        let need = HEADER_SIZE + len as usize;
        if have < need {
            return Err(Broken::Short { have, need });
        }
        payload.skip(HEADER_SIZE);
        payload.truncate(len as usize);
        Ok(Received { header, payload })
    }
}

/// A buffer of the rx queue: room for one packet to the driver.
pub(super) struct RxBuffer<'m> {
    header: Pieces<'m>,
    room: Pieces<'m>,
}

impl<'m> RxBuffer<'m> {
    /// Reads a chain of the rx queue.
    pub(super) fn parse(
        memory: &'m GuestMemoryMmap,
        chain: DescriptorChain<&'m GuestMemoryMmap>,
    ) -> Result<RxBuffer<'m>, Broken> {
        let header = Pieces::collect(memory, None, chain, Direction::Writable)?;
        let have = header.len();
        // A buffer without room for payload could never carry data and would stall its connection.
        if have <= HEADER_SIZE {
            return Err(Broken::Short {
                have,
                need: HEADER_SIZE + 1,
            });
        }
        let mut room = Pieces(header.0.clone());
        room.skip(HEADER_SIZE);
        Ok(RxBuffer { header, room })
    }

    /// Room for payload, at least one byte.
    pub(super) fn room(&self) -> &Pieces<'m> {
        &self.room
    }

    /// Writes the header and returns the bytes of the packet.
    pub(super) fn finish(&self, header: &Header) -> u32 {
        self.header.copy_from(header.as_bytes());
        // At most MAX_PAYLOAD more.
        header.len.get() + HEADER_BYTES
    }
}

/// [`HEADER_SIZE`] in the type of the used ring's length.
const HEADER_BYTES: u32 = 44;
const _: () = assert!(HEADER_SIZE == 44);
