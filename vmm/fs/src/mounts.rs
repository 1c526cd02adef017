//! What a server has to know of the mounts of its tree.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;

/// What a server has to know of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "they do not depend on each other"
)]
pub struct Mount {
    /// Mounts of one class show the same objects under the same names, each as much of them as is below its root: a
    /// file is one inode of the guest, by whichever it is reached. All of them last, nothing is mounted on any, and it
    /// makes no difference to a file which of those that allow the same it is used by. A number below 2^63; `None`: the
    /// mount shares with no other.
    pub class: Option<NonZeroU64>,
    /// Whether nothing can be written by way of this mount, or will not be once the container runs.
    pub read_only: bool,
    /// Whether the guest may make files here that give privileges to whoever executes them.
    pub privileges: bool,
    /// Whether nobody but this process could take the mount away. On others no descriptor is kept for what the guest
    /// only knows: it would keep the host from unmounting them.
    pub lasts: bool,
    /// Whether the guest may map large files: it shares the host's page cache then with all others that use them. Only
    /// where the guest can write to none of them: it does not map what it writes.
    pub maps: bool,
}

/// The mounts of a tree by their ids (`stx_mnt_id`).
///
/// An object that was found on a mount keeps what was said of that mount then, and so does what is found below it: the
/// kernel does not give the id of a mount that is taken away to another one before all that was open there is closed.
#[derive(Clone, Debug, Default)]
pub struct Mounts {
    /// Those that the tree is made of.
    pub known: BTreeMap<u64, Mount>,
    /// What is true of each other one, which may appear where mounts follow the host's.
    pub others: Mount,
}

impl Mounts {
    /// What is known of the mount `id`.
    pub(crate) fn of(&self, id: u64) -> Mount {
        self.known.get(&id).copied().unwrap_or(self.others)
    }
}

/// A mount that is to be taken away.
#[derive(Clone, Debug)]
pub struct Parting {
    /// Its id.
    pub mount: u64,
    /// Where its root is found otherwise: the paths in the tree, by mounts of its class that stay; the best is first.
    pub elsewhere: Vec<PathBuf>,
}
