//! The window: a part of the guest's address space, above its RAM, where the server of its file system maps files to be
//! read.
//!
//! What is there may be gone at any time: the host cuts a file short, or the guest gives a mapping up. A vCPU finds
//! zeros then, or its machine ends, and system calls fail; but a thread of this process that touched it would take the
//! process down. So the window is no part of what devices know as guest memory: no queue lies in it and no device
//! writes to it. Where a descriptor names it to be read, as when a program of the guest sends what it has mapped, a
//! system call copies that out first ([`Copier`](crate::copier::Copier)).

/// Where the window is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Guest physical address.
    pub(crate) start: u64,
    /// Address in this process, where it stays reserved for good.
    pub(crate) address: usize,
    /// Bytes.
    pub(crate) length: usize,
}

impl Window {
    /// Where these bytes are in this process, if all of them lie in the window.
    pub(crate) fn place(&self, address: u64, length: usize) -> Option<usize> {
        let offset = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let end = offset.checked_add(length)?;
        (end <= self.length).then(|| self.address + offset)
    }
}
