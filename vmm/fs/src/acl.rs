//! Access lists (POSIX ACLs): the guest's kernel enforces them, the host's kernel keeps them.
//!
//! They travel as extended attributes (`linux/posix_acl_xattr.h`) whose ids are those of this process's user namespace
//! on one side and of the guest's initial one on the other, which are the same. What a new file gets of its directory's
//! default list, and what a change of mode means to a list, the host's kernel decides.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use crate::errno::{Errno, Result};
use crate::identity::Stat;
use crate::protocol::ATTR_NO_ACL;
use crate::server::{Call, Server};
use crate::{sys, worker};

/// `XATTR_NAME_POSIX_ACL_ACCESS` (`linux/xattr.h`).
const ACCESS: &CStr = c"system.posix_acl_access";
/// `XATTR_NAME_POSIX_ACL_DEFAULT`.
const DEFAULT: &CStr = c"system.posix_acl_default";

/// The sizes of `struct posix_acl_xattr_header` and `struct posix_acl_xattr_entry`. The latter ends in the id.
const HEADER: usize = 4;
const ENTRY: usize = 8;
/// The tags of entries that name somebody, `ACL_USER` and `ACL_GROUP` (`linux/posix_acl.h`).
const NAMING: [u16; 2] = [0x02, 0x08];

/// Whether the extended attribute is a list.
pub(crate) fn is_list(name: &[u8]) -> bool {
    name == ACCESS.to_bytes() || name == DEFAULT.to_bytes()
}

/// Leaves out of a list the entries that name nobody here: an id that no process of the guest can have grants and
/// denies nothing, but the guest's kernel would take the whole list for broken.
pub(crate) fn without_nobody(list: &[u8]) -> Vec<u8> {
    let (header, entries) = list.split_at(HEADER.min(list.len()));
    let names_nobody = |entry: &&[u8]| match entry {
        [t0, t1, _, _, id @ ..] => {
            NAMING.contains(&u16::from_le_bytes([*t0, *t1])) && id == u32::MAX.to_le_bytes()
        }
        _ => false,
    };
    let somebody = entries.chunks(ENTRY).filter(|entry| !names_nobody(entry));
    [header]
        .into_iter()
        .chain(somebody)
        .flatten()
        .copied()
        .collect()
}

impl Server {
    /// [`ATTR_NO_ACL`] if the object has no access list, and the guest may want to know that for the caller. An owner's
    /// permissions are in the mode whether there is a list or not, and so are those of a group that has none.
    pub(crate) fn no_acl(&self, call: Call, stat: &Stat, fd: BorrowedFd<'_>) -> Result<u32> {
        let is_asked = call.uid != stat.owner()
            && stat.mode() & libc::S_IRWXG != 0
            && stat.kind() != libc::S_IFLNK;
        if !is_asked {
            return Ok(0);
        }
        worker::stand_in(self.proc())?;
        match sys::getxattr_size(fd, ACCESS) {
            Err(Errno(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(ATTR_NO_ACL),
            // The guest asks again, and is told what is wrong.
            _ => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_nobody_are_left_out() {
        let entry = |tag: u16, id: u32| {
            let bytes = [&tag.to_le_bytes()[..], &[4, 0], &id.to_le_bytes()];
            bytes.concat()
        };
        let list = |entries: &[(u16, u32)]| {
            let entries = entries.iter().map(|(tag, id)| entry(*tag, *id));
            [vec![2, 0, 0, 0]]
                .into_iter()
                .chain(entries)
                .flatten()
                .collect::<Vec<u8>>()
        };
        let none = u32::MAX;
        let whole = [
            (1, none),
            (2, 7),
            (2, none),
            (4, none),
            (8, none),
            (8, 9),
            (16, none),
            (32, none),
        ];
        let left = [(1, none), (2, 7), (4, none), (8, 9), (16, none), (32, none)];
        assert_eq!(without_nobody(&list(&whole)), list(&left));
        for odd in [&[][..], &[2, 0], &[2, 0, 0, 0, 2, 0]] {
            assert_eq!(without_nobody(odd), odd);
        }
    }
}
