//! Extended attributes: SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR.
//!
//! | in the guest | on the host |
//! |---|---|
//! | `user.*`, `security.capability`, access lists | the same |
//! | `trusted.*` | `user.chiton.trusted.*`: this process may set no trusted ones |
//! | - | `user.chiton.*`, `trusted.*`, all others |
//!
//! Who may use trusted attributes, the guest's kernel decides, for a list of names too.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::os::fd::AsFd;

use rustix::fs::XattrFlags;

use crate::acl::{is_list, without_nobody};
use crate::buffers::{NAME_MAX, Reader, Reply, only_string, split_string};
use crate::errno::{Errno, Result};
use crate::protocol::{GetxattrIn, GetxattrOut, SETXATTR_ACL_KILL_SGID, SetxattrIn};
use crate::server::{Call, Server};
use crate::{sys, worker};

/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX` (`linux/limits.h`).
const SIZE_MAX: usize = 65536;

/// The capabilities of a file.
const CAPABILITY: &CStr = c"security.capability";

/// What trusted attributes begin with.
const TRUSTED: &[u8] = b"trusted.";
/// What their names on the host begin with. The guest can name nothing that does.
const KEPT: &[u8] = b"user.chiton.";

/// Whether the attribute has the same name in the guest.
fn is_served(name: &[u8]) -> bool {
    let is_users = name.starts_with(b"user.") && !name.starts_with(KEPT);
    is_users || name == CAPABILITY.to_bytes() || is_list(name)
}

/// The attribute's name on the host.
fn on_host(name: &CStr) -> Result<Cow<'_, CStr>> {
    let bytes = name.to_bytes();
    let kept = match bytes.strip_prefix(TRUSTED) {
        _ if bytes.len() > NAME_MAX => return Err(Errno(libc::ERANGE)),
        None if is_served(bytes) => return Ok(Cow::Borrowed(name)),
        None if !bytes.is_empty() => return Err(Errno(libc::EOPNOTSUPP)),
        None | Some(b"") => return Err(Errno(libc::EINVAL)),
        Some(_) => [KEPT, bytes].concat(),
    };
    if kept.len() > NAME_MAX {
        return Err(Errno(libc::ERANGE));
    }
    let kept = CString::new(kept).map_err(|_| Errno(libc::EINVAL))?;
    Ok(Cow::Owned(kept))
}

/// What the guest calls the attribute, if it may see it.
fn in_guest(name: &[u8]) -> Option<&[u8]> {
    match name.strip_prefix(KEPT) {
        Some(kept) => kept.starts_with(TRUSTED).then_some(kept),
        None => is_served(name).then_some(name),
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
        let name = on_host(only_string(reader.rest(&mut buffer)?)?)?;
        let node = self.inodes.get(call.nodeid)?;
        worker::stand_in(self.proc())?;
        // The guest's kernel asks for lists itself. To it, a file system that has none is an error.
        let absent = |errno| match errno {
            Errno(libc::EOPNOTSUPP) if is_list(name.to_bytes()) => Errno(libc::ENODATA),
            errno => errno,
        };
        if size == 0 {
            let size = sys::getxattr_size(node.as_fd(), &name).map_err(absent)?;
            return answer_size(size, reply);
        }
        let limit = usize::try_from(size).unwrap_or(SIZE_MAX).min(SIZE_MAX);
        let mut value = vec![0; limit];
        let length = sys::getxattr(node.as_fd(), &name, &mut value).map_err(absent)?;
        value.truncate(length);
        if is_list(name.to_bytes()) {
            value = without_nobody(&value);
        }
        answer(&value, size, reply)
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
            .split(|byte| *byte == 0)
            .filter_map(in_guest)
            .flat_map(|name| [name, b"\0"].concat())
            .collect();
        answer(&served, size, reply)
    }

    pub(crate) fn setxattr(&self, call: Call, reader: &mut Reader<'_, '_>) -> Result<usize> {
        let SetxattrIn {
            size,
            flags,
            setxattr_flags,
            ..
        } = reader.read()?;
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
        let name = on_host(name)?;
        let node = self.inodes.get(call.nodeid)?;
        if *name == *CAPABILITY {
            self.check_privileges(node.mount)?;
        }
        worker::stand_in(self.proc())?;
        // A list that is set clears the set-group-ID bit unless the caller is in the group, or may.
        let _caller = match setxattr_flags & SETXATTR_ACL_KILL_SGID {
            _ if !is_list(name.to_bytes()) => None,
            0 => Some(worker::keep_set_id()?),
            _ => Some(worker::assume(0, call.gid, false)?),
        };
        sys::setxattr(node.as_fd(), &name, value, flags).map(|()| 0)
    }

    pub(crate) fn removexattr(&self, call: Call, reader: &mut Reader<'_, '_>) -> Result<usize> {
        let mut buffer = [0; 2 * (NAME_MAX + 1)];
        let name = on_host(only_string(reader.rest(&mut buffer)?)?)?;
        let node = self.inodes.get(call.nodeid)?;
        worker::stand_in(self.proc())?;
        sys::removexattr(node.as_fd(), &name).map(|()| 0)
    }
}
