//! The buffers of one request: what the guest sends, and where the answer goes.
//!
//! The memory is the guest's and may change at any moment. Each byte of a request is therefore
//! copied out once, checked and used from the copy; nothing is read back from the reply.

use std::ffi::CStr;
use std::marker::PhantomData;

use vm_memory::VolatileSlice;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::errno::{Errno, Result};
use crate::protocol::OutHeader;

/// Longest name of a directory entry in bytes without the NUL (`NAME_MAX`, `limits.h`).
pub(crate) const NAME_MAX: usize = 255;
/// Longest symbolic link target in bytes without the NUL (`PATH_MAX` - 1, `limits.h`).
pub(crate) const TARGET_MAX: usize = 4095;
/// Size of the answer's header.
pub(crate) const OUT_HEADER: usize = size_of::<OutHeader>();
/// How many buffers one `preadv2`/`pwritev2` takes here: 1 MiB in single pages, the first and the
/// last of them cut, and the headers. A request in smaller pieces takes several calls.
const IOVECS: usize = 260;

/// Reads a request from front to back.
pub(crate) struct Reader<'a, 'm> {
    /// From the one on that holds the next byte, at `at`.
    slices: &'a [VolatileSlice<'m>],
    at: usize,
    left: usize,
}

impl<'a, 'm> Reader<'a, 'm> {
    /// A reader of all bytes of `slices`.
    pub(crate) fn new(slices: &'a [VolatileSlice<'m>]) -> Self {
        Self {
            slices,
            at: 0,
            left: total(slices),
        }
    }

    /// How many bytes are not read yet.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Fills `buffer`, or fails with EINVAL where the request is shorter than that.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        if buffer.len() > self.left {
            return Err(Errno(libc::EINVAL));
        }
        let mut done = 0;
        for piece in pieces(self.slices, self.at, buffer.len()) {
            done += piece.copy_to(&mut buffer[done..]);
        }
        self.left -= done;
        self.at += done;
        while let Some((first, rest)) = self.slices.split_first()
            && self.at >= first.len()
        {
            self.at -= first.len();
            self.slices = rest;
        }
        Ok(())
    }

    /// Reads one structure.
    pub(crate) fn read<T: FromBytes + IntoBytes>(&mut self) -> Result<T> {
        let mut value = T::new_zeroed();
        self.fill(value.as_mut_bytes())?;
        Ok(value)
    }

    /// Reads all that is left into the front of `buffer`; ENAMETOOLONG where it does not fit.
    pub(crate) fn rest<'b>(&mut self, buffer: &'b mut [u8]) -> Result<&'b [u8]> {
        let rest = buffer
            .get_mut(..self.left)
            .ok_or(Errno(libc::ENAMETOOLONG))?;
        self.fill(rest)?;
        Ok(rest)
    }

    /// The memory that holds the next bytes, from `skip` bytes on, at most `len` of them.
    pub(crate) fn iovecs(&self, skip: usize, len: usize) -> Iovecs<'m> {
        let skip = skip.min(self.left);
        Iovecs::new(self.slices, self.at + skip, len.min(self.left - skip))
    }
}

/// Where the answer to a request goes: a header, then the body.
pub(crate) struct Reply<'a, 'm> {
    slices: &'a [VolatileSlice<'m>],
    capacity: usize,
}

impl<'a, 'm> Reply<'a, 'm> {
    /// A reply that fills `slices` from the front.
    pub(crate) fn new(slices: &'a [VolatileSlice<'m>]) -> Self {
        Self {
            slices,
            capacity: total(slices),
        }
    }

    /// Whether not even a header fits.
    pub(crate) fn is_too_small(&self) -> bool {
        self.capacity < OUT_HEADER
    }

    /// How many bytes fit behind the header.
    pub(crate) fn room(&self) -> usize {
        self.capacity.saturating_sub(OUT_HEADER)
    }

    /// Fails with EINVAL unless a body of type `T` fits. Asked before anything is changed, so that
    /// a request whose answer cannot be given is not carried out.
    pub(crate) fn need<T>(&self) -> Result<()> {
        if self.room() < size_of::<T>() {
            Err(Errno(libc::EINVAL))
        } else {
            Ok(())
        }
    }

    /// Writes the body `value`; its size in bytes.
    pub(crate) fn body<T: IntoBytes + Immutable>(&self, value: &T) -> Result<usize> {
        self.put(0, value.as_bytes())
    }

    /// Writes `bytes` at `at` bytes behind the header; their number.
    pub(crate) fn put(&self, at: usize, bytes: &[u8]) -> Result<usize> {
        if at
            .checked_add(bytes.len())
            .is_none_or(|end| end > self.room())
        {
            return Err(Errno(libc::EINVAL));
        }
        self.copy(OUT_HEADER + at, bytes);
        Ok(bytes.len())
    }

    /// Writes the header of an answer with `body` bytes behind it; the bytes of both. Nothing is
    /// written, and zero returned, where it does not fit.
    pub(crate) fn finish(&self, unique: u64, outcome: Result<usize>) -> usize {
        let (body, error) = match outcome {
            Ok(body) => (body, 0),
            Err(errno) => (0, errno.on_the_wire()),
        };
        let whole = OUT_HEADER + body;
        let Ok(len) = u32::try_from(whole) else {
            return 0;
        };
        if whole > self.capacity {
            return 0;
        }
        self.copy(0, OutHeader { len, error, unique }.as_bytes());
        whole
    }

    /// The memory for the body from `at` on, at most `len` bytes.
    pub(crate) fn iovecs(&self, at: usize, len: usize) -> Iovecs<'m> {
        let at = at.min(self.room());
        Iovecs::new(self.slices, OUT_HEADER + at, len.min(self.room() - at))
    }

    fn copy(&self, at: usize, bytes: &[u8]) {
        let mut done = 0;
        for piece in pieces(self.slices, at, bytes.len()) {
            let end = done + piece.len();
            piece.copy_from(&bytes[done..end]);
            done = end;
        }
    }
}

/// Guest memory as the kernel takes it for vectored I/O.
///
/// Invariant: the first `count` elements point into [`VolatileSlice`]s that live for `'m`.
pub(crate) struct Iovecs<'m> {
    list: [libc::iovec; IOVECS],
    count: usize,
    bytes: usize,
    memory: PhantomData<VolatileSlice<'m>>,
}

impl<'m> Iovecs<'m> {
    fn new(slices: &[VolatileSlice<'m>], at: usize, len: usize) -> Self {
        let empty = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        let mut iovecs = Self {
            list: [empty; IOVECS],
            count: 0,
            bytes: 0,
            memory: PhantomData,
        };
        for (slot, piece) in iovecs.list.iter_mut().zip(pieces(slices, at, len)) {
            *slot = libc::iovec {
                iov_base: piece.ptr_guard_mut().as_ptr().cast(),
                iov_len: piece.len(),
            };
            iovecs.count += 1;
            iovecs.bytes += piece.len();
        }
        iovecs
    }

    /// The elements in use.
    pub(crate) fn as_slice(&self) -> &[libc::iovec] {
        &self.list[..self.count]
    }

    /// How many bytes they span.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

fn total(slices: &[VolatileSlice<'_>]) -> usize {
    slices
        .iter()
        .fold(0, |sum: usize, slice| sum.saturating_add(slice.len()))
}

/// The parts of `slices` that hold `len` bytes from `at` on (fewer where they end before).
fn pieces<'a, 'm>(
    slices: &'a [VolatileSlice<'m>],
    at: usize,
    len: usize,
) -> impl Iterator<Item = VolatileSlice<'m>> + use<'a, 'm> {
    let (mut skip, mut left) = (at, len);
    slices.iter().filter_map(move |slice| {
        let start = skip.min(slice.len());
        skip -= start;
        let count = left.min(slice.len() - start);
        left -= count;
        if count == 0 {
            None
        } else {
            slice.subslice(start, count).ok()
        }
    })
}

/// Splits a NUL-terminated string off `bytes`; EINVAL where there is none.
pub(crate) fn split_string(bytes: &[u8]) -> Result<(&CStr, &[u8])> {
    let string = CStr::from_bytes_until_nul(bytes).map_err(|_| Errno(libc::EINVAL))?;
    Ok((string, &bytes[string.to_bytes_with_nul().len()..]))
}

/// The one NUL-terminated string that `bytes` is.
pub(crate) fn only_string(bytes: &[u8]) -> Result<&CStr> {
    match split_string(bytes)? {
        (string, []) => Ok(string),
        _ => Err(Errno(libc::EINVAL)),
    }
}

/// Fails unless `name` names an entry of a directory: one component, neither `.` nor `..`.
///
/// This is what keeps a request within the directory it names: every system call of the server
/// resolves exactly one such component, and never follows it.
pub(crate) fn check_name(name: &CStr) -> Result<&CStr> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(Errno(libc::EINVAL)),
        bytes if bytes.contains(&b'/') => Err(Errno(libc::EINVAL)),
        bytes if bytes.len() > NAME_MAX => Err(Errno(libc::ENAMETOOLONG)),
        _ => Ok(name),
    }
}
