//! Files mapped into the guest's physical address space (DAX): SETUPMAPPING, REMOVEMAPPING.
//!
//! Which files: regular ones from [`LEAST`] bytes on, on mounts that are read-only here. Nothing that the guest writes
//! can reach them, so that no mapping is ever writable and no set-user-ID bit is left where a write would have cleared
//! it. What the host writes shows at once, unless an overlay file system makes another file of it then: when the guest
//! is told that a file has changed, what it has of it is mapped anew. A mapping keeps its mount in use: there are none
//! where mounts of the tree are the host's to take away.

use std::os::fd::AsFd;

use crate::buffers::Reader;
use crate::errno::{Errno, Result};
use crate::identity::Stat;
use crate::inodes::Node;
use crate::protocol::{
    ATTR_DAX, Attr, RemovemappingIn, RemovemappingOne, SETUPMAPPING_READ, SetupmappingIn, unsigned,
};
use crate::server::{Call, Server};
use crate::sys;
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
            && is_constant(&node)
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
        if flags != SETUPMAPPING_READ || !is_constant(&node) {
            return Err(Errno(libc::EACCES));
        }
        let file = self.open_file(&node, OPEN)?;
        let version = Version::of(&Stat::of(file.as_fd())?.attr(node.mount));
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

/// Whether nothing can be written to the file where the guest sees it.
fn is_constant(node: &Node) -> bool {
    sys::fstatfs(node.as_fd()).is_ok_and(|stat| unsigned(stat.f_flags) & libc::ST_RDONLY != 0)
}
