//! virtio-blk (virtio 1.2, section 5.2): a block device of the host, or a file.
//!
//! Requests are served by threads of their own, several at a time; the protocol orders none of them. The host's cache
//! is between the guest and the device, as for a process of the host: what a flush has answered is on the device.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::VolatileSlice;

use super::pool::{Pool, RequestServer};
use super::{Activation, VirtioDevice};
use crate::sys::{self, Incoming, Outgoing};

/// A request takes a descriptor for its header, one for its status, and the rest for data.
const QUEUE_SIZES: [u16; 1] = [128];

/// Maximum number of descriptors for the data of a request.
const SEGMENTS: u32 = 126;

/// The unit of positions and lengths (virtio 1.2, section 5.2.6), bytes.
const SECTOR: u64 = 512;

/// `struct virtio_blk_req` before its data: type, reserved, sector.
const HEADER: usize = 16;

/// The configuration space up to `seg_max`; what follows belongs to features that are not offered.
const CONFIG: usize = 16;

/// Bytes of an id.
const ID: usize = VIRTIO_BLK_ID_BYTES as usize;

/// What is behind a block device of the guest.
#[derive(Debug)]
pub struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
    id: [u8; ID],
}

impl Disk {
    /// The whole of a block device or regular file, opened for reading, and for writing unless it is `read_only`. The
    /// guest sees the first 20 bytes of `id` as its serial number.
    ///
    /// # Errors
    /// Its size cannot be had.
    pub fn new(file: OwnedFd, read_only: bool, id: &str) -> io::Result<Disk> {
        let mut file = File::from(file);
        let sectors = file.seek(SeekFrom::End(0))? / SECTOR;
        let mut bytes = [0; ID];
        for (to, from) in bytes.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        Ok(Disk {
            file,
            sectors,
            read_only,
            id: bytes,
        })
    }

    /// The position of a transfer of `length` bytes, if it lies on the disk.
    fn position(&self, sector: u64, length: usize) -> Result<u64, Failed> {
        let length = u64::try_from(length).map_err(|_| Failed::Io)?;
        let end = sector.checked_add(length / SECTOR).ok_or(Failed::Io)?;
        if length % SECTOR != 0 || end > self.sectors {
            return Err(Failed::Io);
        }
        sector.checked_mul(SECTOR).ok_or(Failed::Io)
    }

    /// Carries a request out; `data` is what of the reply is not the status.
    fn request(
        &self,
        request: &[VolatileSlice<'_>],
        reply: &[VolatileSlice<'_>],
        data: usize,
    ) -> Result<(), Failed> {
        let mut header = [0; HEADER];
        if gather(request, &mut header) < HEADER {
            return Err(Failed::Io);
        }
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([k0, k1, k2, k3]) {
            VIRTIO_BLK_T_IN => self.read(sector, reply, data),
            VIRTIO_BLK_T_OUT if self.read_only => Err(Failed::Io),
            VIRTIO_BLK_T_OUT => self.write(sector, request),
            VIRTIO_BLK_T_FLUSH => Ok(self.file.sync_data()?),
            VIRTIO_BLK_T_GET_ID => {
                let mut rest = &self.id[..data.min(ID)];
                for slice in reply {
                    let (part, behind) = rest.split_at(slice.len().min(rest.len()));
                    slice.copy_from(part);
                    rest = behind;
                }
                Ok(())
            }
            _ => Err(Failed::Unsupported),
        }
    }

    fn read(&self, sector: u64, reply: &[VolatileSlice<'_>], length: usize) -> Result<(), Failed> {
        let position = self.position(sector, length)?;
        let mut done = 0;
        while done < length {
            let rest = behind(reply, done)?;
            let to = Incoming::from_guest(&rest, length - done);
            match sys::read_at(self.file.as_fd(), &to, position + done as u64)? {
                // The device has become smaller.
                0 => return Err(Failed::Io),
                count => done += count,
            }
        }
        Ok(())
    }

    fn write(&self, sector: u64, request: &[VolatileSlice<'_>]) -> Result<(), Failed> {
        let length = total(request) - HEADER;
        let position = self.position(sector, length)?;
        let mut done = 0;
        while done < length {
            let rest = behind(request, HEADER + done)?;
            let from = Outgoing::from_guest(&rest, length - done);
            match sys::write_at(self.file.as_fd(), &from, position + done as u64)? {
                0 => return Err(Failed::Io),
                count => done += count,
            }
        }
        Ok(())
    }
}

/// Why a request has failed.
#[derive(Debug)]
enum Failed {
    Io,
    Unsupported,
}

impl From<io::Error> for Failed {
    fn from(_: io::Error) -> Failed {
        // The protocol has one word for all of them.
        Failed::Io
    }
}

impl RequestServer for Disk {
    fn serve(&self, request: &[VolatileSlice<'_>], reply: &[VolatileSlice<'_>]) -> usize {
        // The last byte is the status; where there is no room for it nothing can be answered.
        let Some(data) = total(reply).checked_sub(1) else {
            return 0;
        };
        let status = match self.request(request, reply, data) {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(Failed::Io) => VIRTIO_BLK_S_IOERR,
            Err(Failed::Unsupported) => VIRTIO_BLK_S_UNSUPP,
        };
        let status = u8::try_from(status).unwrap_or(u8::MAX);
        if let Some(last) = reply.iter().rfind(|slice| !slice.is_empty())
            && let Ok(place) = last.offset(last.len() - 1)
        {
            place.copy_from(&[status]);
        }
        data + 1
    }
}

fn total(slices: &[VolatileSlice<'_>]) -> usize {
    slices.iter().map(VolatileSlice::len).sum()
}

/// Copies the first bytes; how many there were.
fn gather(slices: &[VolatileSlice<'_>], bytes: &mut [u8]) -> usize {
    let mut done = 0;
    for slice in slices {
        done += slice.copy_to(&mut bytes[done..]);
    }
    done
}

/// What is behind the first `skip` bytes.
fn behind<'a>(
    slices: &[VolatileSlice<'a>],
    mut skip: usize,
) -> Result<Vec<VolatileSlice<'a>>, Failed> {
    let mut rest = Vec::with_capacity(slices.len());
    for slice in slices {
        let over = skip.min(slice.len());
        skip -= over;
        if over < slice.len() {
            rest.push(slice.offset(over).map_err(|_| Failed::Io)?);
        }
    }
    Ok(rest)
}

/// The front half.
pub(crate) struct Blk {
    config: [u8; CONFIG],
    read_only: bool,
    pool: Arc<Pool<Disk>>,
}

impl Blk {
    /// A device of the disk that `pool` serves.
    pub(crate) fn new(disk: &Disk, pool: Arc<Pool<Disk>>) -> Blk {
        // `struct virtio_blk_config`: capacity, size_max, seg_max.
        let mut config = [0; CONFIG];
        config[..8].copy_from_slice(&disk.sectors.to_le_bytes());
        config[12..].copy_from_slice(&SEGMENTS.to_le_bytes());
        Blk {
            config,
            read_only: disk.read_only,
            pool,
        }
    }
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_FLUSH
            | u64::from(self.read_only) << VIRTIO_BLK_F_RO
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.config)
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.pool.activate(activation, QUEUE_SIZES.len())
    }

    fn reset(&mut self) {
        self.pool.reset();
    }
}

#[cfg(test)]
#[path = "blk_tests.rs"]
mod tests;
