//! What a server is made from, and what it takes.

use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::mounts::Mounts;

/// How many inodes the guest may know at a time.
pub const MAX_INODES: u32 = 1 << 20;

/// What one of them takes of this process at most, in bytes, for each KiB that the guest's kernel spends on it, while the
/// tables grow (`tests/footprint` measures it). That is 1 KiB with a name of up to 39 bytes, and 17 bytes and the name
/// more with a longer one (`struct external_name`, fs/dcache.c).
pub const INODE_BYTES: u64 = 768;

/// The same with the longest name, whatever the guest spends.
pub const LONGEST_INODE_BYTES: u64 = 1024;

/// What a [`Server`](crate::Server) is made from.
#[derive(Debug)]
pub struct Config {
    /// The root of the exported tree: an `O_PATH` descriptor of a directory.
    pub root: OwnedFd,
    /// `/proc/self/fd` of this process: a directory descriptor, best on a detached mount.
    pub proc_self_fd: OwnedFd,
    /// How many descriptors of inodes are kept open beyond the moment.
    pub open_fd_limit: usize,
    /// How many inodes that cannot be opened again are kept open; the guest may have twice as many files open. Beyond,
    /// requests fail with ENFILE.
    pub held_fd_limit: usize,
    /// How long the guest may take names and attributes for unchanged.
    pub timeout: Duration,
    /// The mounts of the tree; [`Server::set_mounts`](crate::Server::set_mounts) replaces them.
    pub mounts: Mounts,
    /// Whether the guest may map files at all ([`Mount::maps`](crate::Mount::maps)).
    pub maps: bool,
}

/// How many descriptors a server holds at most, besides a few for each thread that serves: what `RLIMIT_NOFILE` has to
/// allow.
#[must_use]
pub const fn descriptors(open_fd_limit: usize, held_fd_limit: usize) -> usize {
    // Those of inodes with and without a name; those of open files; the root and /proc/self/fd.
    open_fd_limit
        .saturating_add(held_fd_limit)
        .saturating_add(handles(held_fd_limit))
        .saturating_add(2)
}

/// How many files the guest may have open.
pub(crate) const fn handles(held_fd_limit: usize) -> usize {
    held_fd_limit.saturating_mul(2)
}
