//! Why there is no server.

use std::io;

/// Why serving cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The root cannot be looked at, or is on a file system that must not be exported.
    #[error("the root of the exported tree cannot be used")]
    Root(#[source] io::Error),
    /// The root is not a directory.
    #[error("the root of the exported tree is not a directory")]
    RootNotDirectory,
    /// No address space for the window.
    #[error("no address space can be reserved for mapped files")]
    Window(#[source] io::Error),
    /// `proc_self_fd` does not lead to the descriptors of this process.
    #[error("the directory of open descriptors (/proc/self/fd) cannot be used")]
    ProcSelfFd(#[source] io::Error),
    /// A thread cannot be prepared for serving.
    #[error("a thread cannot be prepared for serving files")]
    Worker(#[source] io::Error),
}
