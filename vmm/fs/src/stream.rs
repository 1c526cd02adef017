//! Reads the entries of a directory of the host, in the order and at the positions that the host has for them.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::SeekFrom;

use crate::errno::{Errno, Result};
use crate::sys;

/// How much is read from the host at a time: 250 entries with short names.
const CHUNK: usize = 8192;
/// Offset of the name in `struct linux_dirent64` (`linux/dirent.h`): d_ino, d_off, d_reclen, d_type.
const NAME_AT: usize = 19;
/// Where reading an open directory stands: `next` is the position behind the last entry given to
/// the guest, and `chunk[at..]` are the entries from there on that are read already.
#[derive(Default)]
pub(crate) struct Stream {
    chunk: Vec<u8>,
    at: usize,
    next: u64,
}

/// One entry of a directory of the host.
pub(crate) struct Found<'a> {
    pub(crate) inode: u64,
    /// The host's position behind it, which the guest gets as it is.
    pub(crate) next: u64,
    pub(crate) kind: u8,
    pub(crate) name: &'a CStr,
    /// How many bytes of what is read it takes.
    pub(crate) length: usize,
}

impl Stream {
    /// Goes on at `offset`. At the start, and wherever else than reading stopped, what is read
    /// already is dropped: the guest wants to see the directory as it is now.
    pub(crate) fn seek(&mut self, fd: BorrowedFd<'_>, offset: u64) -> Result<()> {
        if offset == 0 || offset != self.next {
            self.chunk.clear();
            self.at = 0;
            sys::lseek(fd, SeekFrom::Start(offset))?;
            self.next = offset;
        }
        Ok(())
    }

    /// The next entry, which stays the next one until [`Stream::pass`]; `None` at the end.
    pub(crate) fn peek(&mut self, fd: BorrowedFd<'_>) -> Result<Option<Found<'_>>> {
        if self.at >= self.chunk.len() {
            self.at = 0;
            self.chunk.resize(CHUNK, 0);
            let read = sys::getdents(fd, &mut self.chunk);
            self.chunk.truncate(*read.as_ref().unwrap_or(&0));
            if read? == 0 {
                return Ok(None);
            }
        }
        parse(&self.chunk[self.at..])
            .map(Some)
            .ok_or(Errno(libc::EIO))
    }

    /// The next entry has been given to the guest: its length, and the position behind it.
    pub(crate) fn pass(&mut self, length: usize, next: u64) {
        self.at += length;
        self.next = next;
    }
}

/// Takes one `struct linux_dirent64` off `bytes`.
fn parse(bytes: &[u8]) -> Option<Found<'_>> {
    let (inode, rest) = bytes.split_first_chunk::<8>()?;
    let (next, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_ne_bytes(*length));
    let name = CStr::from_bytes_until_nul(bytes.get(NAME_AT..length)?).ok()?;
    Some(Found {
        inode: u64::from_ne_bytes(*inode),
        next: u64::from_ne_bytes(*next),
        kind: *rest.first()?,
        name,
        length,
    })
}
