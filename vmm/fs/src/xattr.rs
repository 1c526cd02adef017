//! Extended attributes: SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::XattrFlags;

use crate::buffers::{NAME_MAX, Reader, Reply, only_string, split_string};
use crate::errno::{Errno, Result};
use crate::protocol::{GetxattrIn, GetxattrOut, SetxattrIn};
use crate::server::{Call, Server};
use crate::{sys, worker};

/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX` (`linux/limits.h`).
const SIZE_MAX: usize = 65536;

/// The capabilities of a file.
const CAPABILITY: &CStr = c"security.capability";

/// Whether the guest may see and set the attribute. `lib.rs` says what becomes of the others.
fn is_served(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name.starts_with(b"trusted.") || name == CAPABILITY.to_bytes()
}

fn check_xattr(name: &CStr) -> Result<&CStr> {
    match name.to_bytes() {
        b"" => Err(Errno(libc::EINVAL)),
        bytes if bytes.len() > NAME_MAX => Err(Errno(libc::ERANGE)),
        bytes if !is_served(bytes) => Err(Errno(libc::EOPNOTSUPP)),
        _ => Ok(name),
    }
}

/// Answers with `value`, or with its size if the guest has asked for that (`size` 0).
fn answer(value: &[u8], size: u32, reply: &Reply<'_, '_>) -> Result<usize> {
    if size == 0 {
        return answer_size(value.len(), reply);
    }
    if value.len() > usize::try_from(size).unwrap_or(usize::MAX) || value.len() > reply.room() {
        return Err(Errno(libc::ERANGE));
    }
    reply.put(0, value)
}

fn answer_size(size: usize, reply: &Reply<'_, '_>) -> Result<usize> {
    let size = u32::try_from(size).map_err(|_| Errno(libc::E2BIG))?;
    reply.body(&GetxattrOut { size, padding: 0 })
}

impl Server {
    pub(crate) fn getxattr(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let GetxattrIn { size, .. } = reader.read()?;
        let mut buffer = [0; 2 * (NAME_MAX + 1)];
        let name = check_xattr(only_string(reader.rest(&mut buffer)?)?)?;
        let node = self.inodes.get(call.nodeid)?;
        worker::stand_in(self.proc())?;
        if size == 0 {
            return answer_size(sys::getxattr_size(node.as_fd(), name)?, reply);
        }
        let limit = usize::try_from(size).unwrap_or(SIZE_MAX).min(SIZE_MAX);
        let mut value = vec![0; limit];
        let length = sys::getxattr(node.as_fd(), name, &mut value)?;
        answer(&value[..length], size, reply)
    }

    pub(crate) fn listxattr(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let GetxattrIn { size, .. } = reader.read()?;
        let node = self.inodes.get(call.nodeid)?;
        worker::stand_in(self.proc())?;
        // Most objects have none, which costs no buffer.
        if sys::listxattr_size(node.as_fd())? == 0 {
            return answer(&[], size, reply);
        }
        let mut names = vec![0; SIZE_MAX];
        let length = sys::listxattr(node.as_fd(), &mut names)?;
        let served: Vec<u8> = names[..length]
            .split_inclusive(|byte| *byte == 0)
            .filter(|name| is_served(name.strip_suffix(b"\0").unwrap_or(name)))
            .flatten()
            .copied()
            .collect();
        answer(&served, size, reply)
    }

    pub(crate) fn setxattr(&self, call: Call, reader: &mut Reader<'_, '_>) -> Result<usize> {
        let SetxattrIn { size, flags } = reader.read()?;
        let flags = XattrFlags::from_bits_retain(flags);
        if !(XattrFlags::CREATE | XattrFlags::REPLACE).contains(flags) {
            return Err(Errno(libc::EINVAL));
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size > SIZE_MAX {
            return Err(Errno(libc::E2BIG));
        }
        if reader.left() > size + 2 * (NAME_MAX + 1) {
            return Err(Errno(libc::EINVAL));
        }
        let mut buffer = vec![0; reader.left()];
        let (name, value) = split_string(reader.rest(&mut buffer)?)?;
        if value.len() != size {
            return Err(Errno(libc::EINVAL));
        }
        let name = check_xattr(name)?;
        let node = self.inodes.get(call.nodeid)?;
        if name == CAPABILITY {
            self.check_privileges(node.mount)?;
        }
        worker::stand_in(self.proc())?;
        sys::setxattr(node.as_fd(), name, value, flags).map(|()| 0)
    }

    pub(crate) fn removexattr(&self, call: Call, reader: &mut Reader<'_, '_>) -> Result<usize> {
        let mut buffer = [0; 2 * (NAME_MAX + 1)];
        let name = check_xattr(only_string(reader.rest(&mut buffer)?)?)?;
        let node = self.inodes.get(call.nodeid)?;
        worker::stand_in(self.proc())?;
        sys::removexattr(node.as_fd(), name).map(|()| 0)
    }
}
