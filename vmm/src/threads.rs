//! The threads of a machine: all of them are started before its guest runs, and none later.
//!
//! So the machine's owner can take from each of them what it does not need, the making of threads included, before
//! anything of the guest reaches it.

use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::{fmt, io};

use crate::end::EndReason;
use crate::report::Report;

/// A thread of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// Runs the vCPU with this number.
    Vcpu(u8),
    /// One of those that serve the guest's file system.
    Fs(u8),
    /// One of those that serve a block device of the guest.
    Blk(u8),
}

/// The thread's name.
impl fmt::Display for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Thread::Vcpu(number) => write!(f, "vcpu{number}"),
            Thread::Fs(number) => write!(f, "fs{number}"),
            Thread::Blk(number) => write!(f, "blk{number}"),
        }
    }
}

/// Called by each thread before anything else. A thread for which it fails ends the machine.
pub type Enter = dyn Fn(Thread) -> io::Result<()> + Send + Sync;

/// Starts threads.
pub(crate) struct Threads {
    pub(crate) enter: Arc<Enter>,
    pub(crate) report: Arc<Report>,
}

impl Threads {
    /// Starts a thread with a stack of `stack` bytes.
    pub(crate) fn start(
        &self,
        thread: Thread,
        stack: usize,
        life: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let (enter, report) = (Arc::clone(&self.enter), Arc::clone(&self.report));
        let name = thread.to_string();
        Builder::new()
            .name(name.clone())
            .stack_size(stack)
            .spawn(move || match enter(thread) {
                Ok(()) => life(),
                Err(error) => report.end(EndReason::Thread {
                    thread: name,
                    error: error.to_string(),
                }),
            })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EventFd;

    /// Threads that are let in by `enter`.
    pub(crate) fn threads(
        enter: impl Fn(Thread) -> io::Result<()> + Send + Sync + 'static,
    ) -> Threads {
        Threads {
            enter: Arc::new(enter),
            report: Arc::new(Report::new(EventFd::new(0).unwrap())),
        }
    }

    #[test]
    fn a_thread_that_is_not_let_in_ends_the_machine() {
        let threads = threads(|thread| Err(io::Error::other(format!("{thread} may not"))));
        let life = || panic!("it lives");
        let started = threads.start(Thread::Blk(3), 64 << 10, life).unwrap();
        started.join().unwrap();
        let end = threads.report.take_end().unwrap();
        assert_eq!(
            end.to_string(),
            "thread blk3 cannot be prepared: blk3 may not"
        );
    }
}
