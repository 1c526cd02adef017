//! The window that files are mapped into, and what is in it.
//!
//! ```text
//!           SETUPMAPPING                 the file got shorter, a vCPU touched what is gone
//!  nothing ─────────────> part of a file ─────────────────────────> part of it, then zeros
//!     ^                        │                                         │
//!     └────────────────────────┴───── REMOVEMAPPING, another INIT ───────┘
//! ```
//! The window is a reservation of this process that KVM has in a memory slot: what is not mapped there cannot be
//! touched. It is mapped in steps of 2 MiB, as the guest kernel's client does it.
//!
//! Invariants: the window is changed, and what is in it recorded, with the mutex held; no memory of the guest is
//! touched meanwhile. There are as many mappings as the window has steps, whatever the guest asks for.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::errno::{Errno, Result};
use crate::protocol::Attr;
use crate::sys::Window;

/// Size of the window, bytes.
const WINDOW: usize = 512 << 20;

/// What is mapped at a time: `FUSE_DAX_SZ` (`fs/fuse/dax.c`).
const STEP: usize = 2 << 20;

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
pub(crate) struct Shown {
    pub(crate) nodeid: u64,
    pub(crate) offset: u64,
    pub(crate) version: Version,
}

/// What differs once a file has changed: size and modification time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version(u64, u64, u32);

impl Version {
    /// The version of the file with these attributes.
    pub(crate) fn of(attr: &Attr) -> Version {
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

    /// Puts zeros where a mapped file has no data any more. Whether the window has changed since it had changed `seen`
    /// times.
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
    pub(crate) fn show(&self, step: usize, file: &OwnedFd, shown: Shown) -> Result<()> {
        self.show_at(&mut self.lock(), step, file, shown)
    }

    /// Maps anew what is mapped of a file in another version; `open` opens it, and is called only if there is such a
    /// part. Where that fails the guest keeps what it had, until it asks again.
    pub(crate) fn show_anew(
        &self,
        nodeid: u64,
        version: Version,
        open: impl FnOnce() -> Result<OwnedFd>,
    ) {
        let mut state = self.lock();
        let old = |shown: &Shown| shown.nodeid == nodeid && shown.version != version;
        if !state.steps.iter().flatten().any(old) {
            return;
        }
        let Ok(file) = open() else {
            return;
        };
        for step in 0..state.steps.len() {
            if let Some(shown) = state.steps[step].filter(old) {
                let shown = Shown { version, ..shown };
                let _ = self.show_at(&mut state, step, &file, shown);
            }
        }
    }

    /// Maps nothing at a step.
    pub(crate) fn remove(&self, step: usize) -> Result<()> {
        let mut state = self.lock();
        self.window.release(step * STEP, STEP)?;
        state.steps[step] = None;
        Ok(())
    }

    fn show_at(&self, state: &mut State, step: usize, file: &OwnedFd, shown: Shown) -> Result<()> {
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
pub(crate) fn step(offset: u64, length: u64) -> Result<usize> {
    let whole = usize::try_from(length) == Ok(STEP);
    usize::try_from(offset)
        .ok()
        .filter(|offset| whole && offset.is_multiple_of(STEP) && *offset < WINDOW)
        .map(|offset| offset / STEP)
        .ok_or(Errno(libc::EINVAL))
}
