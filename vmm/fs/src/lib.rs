//! The virtio-fs server: FUSE protocol and passthrough. Knows nothing of KVM.
//!
//! [`Server::serve`] takes one request of the guest's FUSE client, carries it out on the exported
//! tree, and writes the answer. Several threads serve at once; each calls [`enter_worker_thread`]
//! first.
//!
//! # State
//! ```text
//!  uninitialised --INIT--> ready --DESTROY--> uninitialised     (INIT while ready: starts afresh)
//! ```
//! Before INIT every request fails with EIO. Starting afresh drops all inodes but the root, and all
//! handles; numbers are never used twice, so that what an old guest driver knew stays unknown.
//!
//! * inodes: what the guest has looked up, by nodeid; an `O_PATH` descriptor for most, at
//!   most [`Config::open_fd_limit`] of them. The others are opened again from the name they were last
//!   seen under, and are ESTALE if another object is there. An inode without a name (unlinked, or
//!   made by `O_TMPFILE`) keeps its descriptor. The life of an entry is drawn in `table.rs`.
//! * handles: what the guest has open, and what it keeps open after the last close: one of an inode that was opened
//!   for reading, until it is given up (RELEASE) or the inode is forgotten. Not on mounts that the host may take away.
//!
//! A file is one inode by whichever mount of a class ([`Mount::class`]) it is reached. Of the descriptors that the server
//! has come by it keeps the one that allows most, and among equals the one of the mount that shows more; what lies below
//! such a directory is opened again by way of it. So all names of a directory are on one mount, and rename and link work
//! as they do there. The root of such a mount stays open: the name that it has below another one is the host's to change.
//!
//! All counts are bounded; beyond, requests fail with ENFILE ([`descriptors`] says how many descriptors
//! there can be).
//!
//! # Confinement
//! The server trusts the kernel and its own tree, not the guest. Every system call takes the
//! descriptor of a directory and one component, which is neither empty nor `.` nor `..` and holds no
//! `/`, and does not follow it if it is a symbolic link. Data is read and written through descriptors
//! opened anew by way of `/proc/self/fd` from an `O_PATH` descriptor known to be a regular file or a
//! directory; FIFOs, sockets and devices are never opened here, they work inside the guest. procfs and
//! nsfs below the exported tree are not entered (EACCES): a file there can be this very process.
//!
//! # Semantics
//! The guest kernel checks permissions (`default_permissions`) and keeps all locks (POSIX and BSD):
//! neither `FUSE_POSIX_LOCKS` nor `FUSE_FLOCK_LOCKS` is negotiated, so locks hold within one guest. What
//! is created belongs to the caller: the thread takes on the caller's file system ids for the system
//! call. `worker.rs` says how set-user-ID bits are kept and cleared. Writes are not cached by the
//! guest (no `FUSE_WRITEBACK_CACHE`). A file that is opened keeps what the guest has cached of it, and
//! the guest drops that when it sees another mtime or size (`FUSE_AUTO_INVAL_DATA`), at most
//! [`Config::timeout`] late. Of file systems whose files have no sizes (sysfs, cgroupfs and others) nothing is cached, and
//! each read is one of the host's. A directory's list is kept too (`FOPEN_CACHE_DIR`), no longer than its attributes.
//!
//! FLUSH, by which a file system can tell of late errors when a descriptor is closed, is asked for where there may be
//! something to tell: on all file systems but some that are known to have nothing (`FOPEN_NO_FLUSH`).
//!
//! # Not done, and why
//! * OPEN and OPENDIR are not left out (`FUSE_NO_OPEN_SUPPORT`, `FUSE_NO_OPENDIR_SUPPORT`): an open
//!   file must stay readable after its last name is gone, and directory positions are only sure to
//!   hold within one open directory. That a file is opened again without them is the guest kernel's own
//!   doing (`FOPEN_KEEP_OPEN`).
//! * Any write or truncation clears set-user-ID and set-group-ID bits, that of guest root too: a user
//!   namespace's `CAP_FSETID` does not count for the host kernel there.
//! * Files that give privileges to whoever executes them can be kept to some mounts ([`Mount::privileges`]).
//! * Device nodes cannot be made (EPERM), whiteouts excepted, as the host kernel has it for a user
//!   namespace; the server refuses them itself as well.
//! * A file of an overlay file system that is open for reading when it is first opened for writing stays open on the
//!   lower layer for those who have it open, as on the host (`Documentation/filesystems/overlayfs.rst`, non-standard
//!   behavior). The guest reads on through such a handle, and keeps what it reads for all its readers.
//! * Extended attributes: `user.*`, `security.capability` and POSIX ACLs work, and `trusted.*` under other names of the
//!   host; all else is EOPNOTSUPP and not listed.
//! * `FUSE_CREATE_SUPP_GROUP`, `FUSE_SECURITY_CTX`: they carry what only permission checks on the host, or labels need.
//! * ACCESS, BMAP, POLL, locks, and each IOCTL that `ioctl.rs` does not name: ENOSYS, which the guest asks once.

mod acl;
mod attributes;
mod buffers;
mod config;
mod directory;
mod errno;
mod error;
mod files;
mod handles;
mod identity;
mod inodes;
mod ioctl;
mod mapping;
mod mounts;
mod namespace;
mod privileges;
mod protocol;
mod server;
mod stream;
mod sys;
mod table;
mod window;
mod worker;
mod xattr;

pub use config::{Config, INODE_BYTES, LONGEST_INODE_BYTES, MAX_INODES, descriptors};
pub use error::Error;
pub use mounts::{Mount, Mounts, Parting};
pub use server::{Server, opcode};
pub use worker::enter_worker_thread;
