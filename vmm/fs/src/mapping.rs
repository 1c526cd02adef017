//! Files mapped into the guest's physical address space (DAX): SETUPMAPPING, REMOVEMAPPING.
//!
//! ```text
//!           SETUPMAPPING                 the file got shorter, a vCPU touched what is gone
//!  nothing ─────────────> part of a file ─────────────────────────> part of it, then zeros
//!     ^                        │                                         │
//!     └────────────────────────┴───── REMOVEMAPPING, another INIT ───────┘
//! ```
//! The window is a reservation of this process that KVM has in a memory slot: what is not mapped there cannot be touched. It is
//! mapped in steps of 2 MiB, as the guest kernel's client does it.
//!
//! Which files: regular ones from [`LEAST`] bytes on, on mounts that are read-only here. Nothing that the guest writes can reach them, so
//! that no mapping is ever writable and no set-user-ID bit is left where a write would have cleared it. What the host writes shows
//! at once, unless an overlay file system makes another file of it then: when the guest is told that a file has changed, what it has of
//! it is mapped anew. A mapping keeps its mount in use: there are none where mounts of the tree are the host's to take away.
//!
//! Invariants: the window is changed, and what is in it recorded, with the mutex held; no memory of the guest is touched meanwhile. There
//! are as many mappings as the window has steps, whatever the guest asks for.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::buffers::Reader;
use crate::errno::{Errno, Result};
use crate::identity::Stat;
use crate::inodes::Node;
use crate::protocol::{
    ATTR_DAX, Attr, RemovemappingIn, RemovemappingOne, SETUPMAPPING_READ, SetupmappingIn,
};
use crate::server::{Call, Server};
use crate::sys::{self, Window};

/// Size of the window, bytes.
const WINDOW: usize = 512 << 20;

/// What is mapped at a time: `FUSE_DAX_SZ` (`fs/fuse/dax.c`).
const STEP: usize = 2 << 20;

/// Files from this size on are mapped. Each page costs an exit when it is touched first, which a READ shares among many pages; what
/// mapping saves is memory, of which small files have little.
const LEAST: u64 = 4 << 20;

/// How files are opened to be mapped.
const OPEN: i32 = libc::O_RDONLY | libc::O_NOCTTY;

/// Most mappings that one REMOVEMAPPING names: `FUSE_REMOVEMAPPING_MAX_ENTRY` (`linux/fuse.h`).
const MOST_REMOVED: u32 = 4096 / 16;

/// The window and what is in it.
pub(crate) struct Mappings {
    window: Window,
    state: Mutex<State>,
}

/// What the mutex protects.
struct State {
    /// By step: what is mapped there.
    steps: Vec<Option<Shown>>,
    /// How often something has come to be in the window.
    changes: u64,
}

/// A part of a file.
#[derive(Clone, Copy)]
struct Shown {
    nodeid: u64,
    offset: u64,
    version: Version,
}

/// What differs once a file has changed: size and modification time.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version(u64, u64, u32);

impl Version {
    fn of(attr: &Attr) -> Version {
        Version(attr.size, attr.mtime, attr.mtimensec)
    }
}

impl Mappings {
    /// An empty window.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            window: Window::reserve(WINDOW)?,
            state: Mutex::new(State {
                steps: vec![None; WINDOW / STEP],
                changes: 0,
            }),
        })
    }

    /// Address and length.
    pub(crate) fn extent(&self) -> (usize, usize) {
        self.window.extent()
    }

    /// Empties the window.
    pub(crate) fn clear(&self) {
        let mut state = self.lock();
        for (index, step) in state.steps.iter_mut().enumerate() {
            if step.is_some() && self.window.release(index * STEP, STEP).is_ok() {
                *step = None;
            }
        }
    }

    /// Puts zeros where a mapped file has no data any more. Whether the window has changed since it had changed `seen` times.
    pub(crate) fn mend(&self, seen: &mut u64) -> bool {
        let mut state = self.lock();
        for index in 0..state.steps.len() {
            if state.steps[index].is_some() && self.window.mend(index * STEP, STEP) {
                state.changes += 1;
            }
        }
        let before = std::mem::replace(seen, state.changes);
        before != state.changes
    }

    /// Maps a part of a file at a step.
    fn show(&self, state: &mut State, step: usize, file: &OwnedFd, shown: Shown) -> Result<()> {
        let place = step * STEP;
        self.window.show(place, STEP, file.as_fd(), shown.offset)?;
        state.steps[step] = Some(shown);
        state.changes += 1;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The step that begins at an offset of the window and has this length.
fn step(offset: u64, length: u64) -> Result<usize> {
    let whole = usize::try_from(length) == Ok(STEP);
    usize::try_from(offset)
        .ok()
        .filter(|offset| whole && offset.is_multiple_of(STEP) && *offset < WINDOW)
        .map(|offset| offset / STEP)
        .ok_or(Errno(libc::EINVAL))
}

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
            self.show_anew(mappings, &node, Version::of(attr));
        }
    }

    /// Maps anew what is mapped of a file in another version.
    fn show_anew(&self, mappings: &Mappings, node: &Node, version: Version) {
        let mut state = mappings.lock();
        let old = |shown: &Shown| shown.nodeid == node.id && shown.version != version;
        if !state.steps.iter().flatten().any(old) {
            return;
        }
        // Where that fails the guest keeps what it had, until it asks again.
        let Ok(file) = self.open_file(node, OPEN) else {
            return;
        };
        for step in 0..state.steps.len() {
            if let Some(shown) = state.steps[step].filter(old) {
                let shown = Shown { version, ..shown };
                let _ = mappings.show(&mut state, step, &file, shown);
            }
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
        mappings.show(&mut mappings.lock(), step, &file, shown)?;
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
            let step = step(moffset, len)?;
            let mut state = mappings.lock();
            mappings.window.release(step * STEP, STEP)?;
            state.steps[step] = None;
        }
        Ok(0)
    }
}

/// Whether nothing can be written to the file where the guest sees it.
fn is_constant(node: &Node) -> bool {
    sys::fstatfs(node.as_fd()).is_ok_and(|stat| stat.f_flags & libc::ST_RDONLY.cast_signed() != 0)
}
