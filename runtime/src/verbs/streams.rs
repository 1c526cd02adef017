//! The descriptors of a process, as they are passed to a machine process that is in its jail.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vmm::vsock::reopen;

use super::error::Error;
use crate::control::{ExtraDescriptor, Passed, Preserved, Stream};
use crate::error::Doing;

/// The descriptors that go along, and what they are.
pub(super) struct Streams {
    passed: Passed,
    descriptors: Vec<OwnedFd>,
}

impl Streams {
    /// The slave of a terminal in place of the standard streams, or the verb's own; and those besides them.
    pub(super) fn of(
        terminal: Option<BorrowedFd<'_>>,
        preserved: Vec<Preserved>,
    ) -> Result<Streams, Error> {
        let mut streams = Streams {
            passed: Passed {
                terminal: terminal.is_some(),
                streams: [Stream::None; 3],
                extra: Vec::new(),
            },
            descriptors: Vec::new(),
        };
        match terminal {
            Some(slave) => streams.push(0, slave)?,
            None => streams.push_standard()?,
        }
        for preserved in preserved {
            let (fd, own) = reopen(preserved.fd).map_err(Error::Stream)?;
            streams.passed.extra.push(ExtraDescriptor {
                direction: preserved.direction,
                own,
            });
            streams.descriptors.push(fd);
        }
        Ok(streams)
    }

    /// What they are.
    pub(super) fn passed(&self) -> Passed {
        self.passed.clone()
    }

    /// The descriptors, in the order in which they are spoken of.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.descriptors.iter().map(AsFd::as_fd).collect()
    }

    /// The verb's own. One that is not open for its direction (nohup opens standard input for writing only) is nothing
    /// to the process.
    fn push_standard(&mut self) -> Result<(), Error> {
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        for (index, fd, direction) in [
            (0, stdin.as_fd(), OFlag::O_RDONLY),
            (1, stdout.as_fd(), OFlag::O_WRONLY),
            (2, stderr.as_fd(), OFlag::O_WRONLY),
        ] {
            let flags = fcntl(fd, FcntlArg::F_GETFL).doing("inspect a standard stream")?;
            let flags = OFlag::from_bits_retain(flags);
            let mode = flags & OFlag::O_ACCMODE;
            if !flags.contains(OFlag::O_PATH) && (mode == direction || mode == OFlag::O_RDWR) {
                self.push(index, fd)?;
            }
        }
        Ok(())
    }

    fn push(&mut self, index: usize, fd: BorrowedFd<'_>) -> Result<(), Error> {
        let fd = fd.try_clone_to_owned();
        let fd = fd.doing("duplicate a standard stream")?;
        // The machine process, in its jail, could not.
        let (fd, own) = reopen(fd).map_err(Error::Stream)?;
        self.passed.streams[index] = Stream::Passed { own };
        self.descriptors.push(fd);
        Ok(())
    }
}
