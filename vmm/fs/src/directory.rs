//! Directories: OPENDIR, READDIR, READDIRPLUS.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::PoisonError;

use zerocopy::IntoBytes;

use crate::buffers::{NAME_MAX, Reader, Reply};
use crate::errno::{Errno, Result};
use crate::identity::Stat;
use crate::inodes::Node;
use crate::protocol::{
    Dirent, EntryOut, FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, OpenIn, OpenOut, ROOT_ID, ReadIn,
};
use crate::server::{Call, Server};
use crate::stream::Found;
use crate::sys;

/// The largest record of an answer.
const RECORD: usize =
    size_of::<EntryOut>() + size_of::<Dirent>() + (NAME_MAX + 1).next_multiple_of(8);

/// A record of an answer, put together before it is written.
struct Record {
    bytes: [u8; RECORD],
    length: usize,
}

impl Record {
    /// How long the record for `found` is.
    fn size(found: &Found<'_>, plus: bool) -> usize {
        let entry = if plus { size_of::<EntryOut>() } else { 0 };
        entry + (size_of::<Dirent>() + found.name.to_bytes().len()).next_multiple_of(8)
    }

    fn new(found: &Found<'_>, inode: u64, entry: Option<&EntryOut>) -> Result<Self> {
        let name = found.name.to_bytes();
        let namelen = u32::try_from(name.len()).map_err(|_| Errno(libc::EIO))?;
        let dirent = Dirent {
            ino: inode,
            off: found.next,
            namelen,
            type_: u32::from(found.kind),
        };
        let length = Self::size(found, entry.is_some());
        let mut record = Self {
            bytes: [0; RECORD],
            length,
        };
        let mut at = 0;
        for part in [
            entry.map_or(&[][..], |entry| entry.as_bytes()),
            dirent.as_bytes(),
            name,
        ] {
            let place = record
                .bytes
                .get_mut(at..at + part.len())
                .ok_or(Errno(libc::EIO))?;
            place.copy_from_slice(part);
            at += part.len();
        }
        Ok(record)
    }
}

impl Server {
    /// Opens the directory `node` for reading its entries.
    pub(crate) fn open_directory(&self, node: &Node) -> Result<OwnedFd> {
        sys::openat(
            node.as_fd(),
            c".",
            libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW,
            0,
        )
    }

    pub(crate) fn opendir(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let OpenIn { .. } = reader.read()?;
        reply.need::<OpenOut>()?;
        self.handles.check_room()?;
        let node = self.inodes.get(call.nodeid)?.directory()?;
        let fh = self
            .handles
            .insert(node.id, self.open_directory(&node)?, true)?;
        // Those of file systems that are made as they are read are read anew each time.
        let open_flags = match node.mount.file_system.sizes {
            true => FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE,
            false => 0,
        };
        reply.body(&OpenOut {
            fh,
            open_flags,
            padding: 0,
        })
    }

    /// READDIR, or READDIRPLUS with `plus`.
    pub(crate) fn readdir(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
        plus: bool,
    ) -> Result<usize> {
        let ReadIn {
            fh, offset, size, ..
        } = reader.read()?;
        let handle = self.handles.get(call.nodeid, fh)?;
        let stream = handle.stream.as_ref().ok_or(Errno(libc::ENOTDIR))?;
        let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = usize::try_from(size)
            .unwrap_or(usize::MAX)
            .min(reply.room());
        let dir = if plus {
            Some(self.inodes.get(call.nodeid)?)
        } else {
            None
        };
        stream.seek(handle.as_fd(), offset)?;
        let mut used = 0;
        loop {
            let found = match stream.peek(handle.as_fd()) {
                Ok(Some(found)) => found,
                Ok(None) => break,
                // It comes again, and alone, with the next request.
                Err(_) if used > 0 => break,
                Err(errno) => return Err(errno),
            };
            if used + Record::size(&found, plus) > limit {
                if used == 0 {
                    return Err(Errno(libc::EINVAL));
                }
                break;
            }
            // Nothing is counted as looked up before it is sure to fit.
            if let Some(record) = self.record(call.nodeid, dir.as_ref(), &handle, &found)? {
                used += reply.put(used, &record.bytes[..record.length])?;
            }
            let (length, next) = (found.length, found.next);
            stream.pass(length, next);
        }
        Ok(used)
    }

    /// The record for `found`; `None` if it has gone meanwhile.
    fn record(
        &self,
        nodeid: u64,
        dir: Option<&Node>,
        fd: &impl AsFd,
        found: &Found<'_>,
    ) -> Result<Option<Record>> {
        let name = found.name.to_bytes();
        if name.len() > NAME_MAX {
            // Some file systems have longer names; the guest kernel takes none of them.
            return Ok(None);
        }
        let Some(dir) = dir else {
            // What is above the root is nobody's business.
            let hidden = nodeid == ROOT_ID && name == b"..";
            let inode = if hidden {
                Stat::of(fd.as_fd())?.inode()
            } else {
                found.inode
            };
            return Record::new(found, inode, None).map(Some);
        };
        if matches!(name, b"." | b"..") {
            let inode = if dir.id == ROOT_ID {
                Stat::of(dir.as_fd())?.inode()
            } else {
                found.inode
            };
            return Record::new(found, inode, Some(&EntryOut::default())).map(Some);
        }
        match self.glance(dir, fd.as_fd(), found.name) {
            Ok(entry) => Record::new(found, found.inode, Some(&entry)).map(Some),
            Err(Errno(libc::ENOENT)) => Ok(None),
            // Without a nodeid the guest looks the entry up itself, and gets the error there.
            Err(_) => Record::new(found, found.inode, Some(&EntryOut::default())).map(Some),
        }
    }

    /// Counts a lookup of `name` without opening it. Not for what is on another mount, cannot be recognised later by its
    /// attributes alone, or is open by way of a mount that allows less than this directory's, nor where the number or the
    /// name is known as another object's.
    fn glance(&self, dir: &Node, fd: BorrowedFd<'_>, name: &CStr) -> Result<EntryOut> {
        let stat = Stat::at(fd, name)?;
        let route = dir.mount.below();
        let facts = match stat.mount() == route.id {
            true => stat.facts(&route),
            false => None,
        };
        let facts = facts.ok_or(Errno(libc::EXDEV))?;
        let nodeid = self.inodes.glance((dir.id, name), facts, route)?;
        Ok(self.entry_out(nodeid, stat.attr()))
    }
}
