//! The one epoll instance of PID 1.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use protocol::{ContainerId, ProcessId};

use super::cgroup::Cgroup;
use super::process::Process;
use super::stream::Stream;
use super::token::{Part, Token};
use crate::error::{During, Result};

/// Events taken at once.
const BATCH: usize = 16;

/// What is watched. A descriptor that is closed is not watched any more.
pub(crate) struct Watcher(Epoll);

impl Watcher {
    /// Watches nothing.
    pub(crate) fn new() -> Result<Watcher> {
        Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .during(|| "create an epoll")
            .map(Watcher)
    }

    /// Waits for events, unless there is something to do at once. What is known of them by now; a
    /// signal ends the wait without any.
    pub(crate) fn wait(&self, at_once: bool) -> Result<Vec<(Token, EpollFlags)>> {
        let timeout = if at_once {
            EpollTimeout::ZERO
        } else {
            EpollTimeout::NONE
        };
        let mut events = [EpollEvent::empty(); BATCH];
        let count = match self.0.wait(&mut events, timeout) {
            Err(Errno::EINTR) => 0,
            result => result.during(|| "wait for events")?,
        };
        let events = events[..count].iter();
        let known = events.filter_map(|event| Some((Token::decode(event.data())?, event.events())));
        Ok(known.collect())
    }

    /// Watches one more descriptor.
    pub(crate) fn add(&self, fd: impl AsFd, events: EpollFlags, token: Token) -> Result<()> {
        self.0
            .add(fd, EpollEvent::new(events, token.encode()))
            .during(|| "watch a descriptor")
    }

    /// Watches a descriptor for other events.
    pub(crate) fn modify(&self, fd: impl AsFd, events: EpollFlags, token: Token) -> Result<()> {
        self.0
            .modify(fd, &mut EpollEvent::new(events, token.encode()))
            .during(|| "watch a descriptor")
    }

    /// Watches all parts of a new process.
    pub(crate) fn process(
        &self,
        container: ContainerId,
        name: ProcessId,
        process: &Process,
    ) -> Result<()> {
        let token = |part| Token::Process(container, name, part);
        if let Some(wire) = process.wire() {
            self.add(wire, EpollFlags::EPOLLIN, token(Part::Wire))?;
        }
        for (index, stream) in process.streams().iter().enumerate() {
            if let Some(socket) = stream.socket() {
                self.add(socket, Stream::interest(), token(Part::Socket(index)))?;
            }
        }
        self.ends(container, name, process)
    }

    /// Watches the process's ends of its streams.
    pub(crate) fn ends(
        &self,
        container: ContainerId,
        name: ProcessId,
        process: &Process,
    ) -> Result<()> {
        for (index, stream) in process.streams().iter().enumerate() {
            if let Some(end) = stream.end() {
                let token = Token::Process(container, name, Part::End(index));
                self.add(end, Stream::interest(), token)?;
            }
        }
        Ok(())
    }

    /// Watches the files of a container's cgroup.
    pub(crate) fn cgroup(&self, container: ContainerId, cgroup: &Cgroup) -> Result<()> {
        let [freezing, memory]: [BorrowedFd<'_>; 2] = cgroup.watched();
        self.add(freezing, EpollFlags::EPOLLPRI, Token::Freezing(container))?;
        self.add(memory, EpollFlags::EPOLLPRI, Token::Memory(container))
    }
}
