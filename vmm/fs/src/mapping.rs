//! Files mapped into the guest's physical address space (DAX): SETUPMAPPING, REMOVEMAPPING.
//!
//! Which files: regular ones from [`LEAST`] bytes on, on mounts that say so ([`Mount::maps`](crate::Mount::maps)): the
//! guest can write to none of these. Should it come to reach one by way of a mount that it can write to, it writes by
//! WRITE: no mapping is ever writable, so that no set-user-ID bit is left where a write would have cleared it. What is
//! written shows at once, unless an overlay file system makes another file of it then: when the guest is told that a
//! file has changed, what it has of it is mapped anew. A mapping keeps its mount in use: there is none on a mount that
//! is the host's to take away.

use std::os::fd::AsFd;

use crate::buffers::Reader;
use crate::errno::{Errno, Result};
use crate::identity::Stat;
use crate::protocol::{
    ATTR_DAX, Attr, RemovemappingIn, RemovemappingOne, SETUPMAPPING_READ, SetupmappingIn,
};
use crate::server::{Call, Server};
use crate::window::{Shown, Version, step};

/// Files from this size on are mapped. Each page costs an exit when it is touched first, which a READ shares among many
/// pages; what mapping saves is memory, of which small files have little.
const LEAST: u64 = 4 << 20;

/// How files are opened to be mapped.
const OPEN: i32 = libc::O_RDONLY | libc::O_NOCTTY;

/// Maximum number of mappings that one REMOVEMAPPING names: `FUSE_REMOVEMAPPING_MAX_ENTRY` (`linux/fuse.h`).
const MOST_REMOVED: u32 = 4096 / 16;

impl Server {
    /// Tells the guest to map the file if it is one to be mapped, before it is told of the file's other attributes.
    pub(crate) fn mark(&self, nodeid: u64, attr: &mut Attr) {
        let Some(mappings) = &self.mappings else {
            return;
        };
        if attr.size < LEAST || attr.mode & libc::S_IFMT != libc::S_IFREG {
            return;
        }
        if let Ok(node) = self.inodes.get(nodeid)
            && node.mount.traits.maps
            && node.mount.file_system.sizes
        {
            attr.flags |= ATTR_DAX;
            mappings.show_anew(node.id, Version::of(attr), || self.open_file(&node, OPEN));
        }
    }

    pub(crate) fn setupmapping(&self, call: Call, reader: &mut Reader<'_, '_>) -> Result<usize> {
        let SetupmappingIn {
            foffset,
            len,
            flags,
            moffset,
            ..
        } = reader.read()?;
        let mappings = self.mappings.as_ref().ok_or(Errno(libc::ENOSYS))?;
        let step = step(moffset, len)?;
        if !foffset.is_multiple_of(len) {
            return Err(Errno(libc::EINVAL));
        }
        let node = self.inodes.get(call.nodeid)?;
        if flags != SETUPMAPPING_READ || !node.mount.traits.lasts || !node.mount.file_system.sizes {
            return Err(Errno(libc::EACCES));
        }
        let file = self.open_file(&node, OPEN)?;
        let version = Version::of(&Stat::of(file.as_fd())?.attr());
        let shown = Shown {
            nodeid: node.id,
            offset: foffset,
            version,
        };
        mappings.show(step, &file, shown)?;
        Ok(0)
    }

    pub(crate) fn removemapping(&self, reader: &mut Reader<'_, '_>) -> Result<usize> {
        let RemovemappingIn { count } = reader.read()?;
        let mappings = self.mappings.as_ref().ok_or(Errno(libc::ENOSYS))?;
        if count > MOST_REMOVED {
            return Err(Errno(libc::EINVAL));
        }
        for _ in 0..count {
            let RemovemappingOne { moffset, len } = reader.read()?;
            mappings.remove(step(moffset, len)?)?;
        }
        Ok(0)
    }
}
