//! What the machine's event loop waits for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::error::Error;
use crate::sys;

/// Maximum number of events taken at a time; the rest stays in epoll.
const MAX_EVENTS: usize = 16;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// The [`Report`](crate::report::Report).
    Report,
    /// The queues of the rng device.
    Rng,
    /// The queues of the balloon.
    Balloon,
    /// The vsock device.
    Vsock,
    /// The queues of a network device.
    NetQueues(u8),
    /// The tap of a network device.
    Tap(u8),
}

impl Token {
    /// Event data: what it is in the second byte, the network device's number in the first.
    fn data(self) -> u64 {
        match self {
            Token::Report => 0,
            Token::Rng => 1 << 8,
            Token::Vsock => 2 << 8,
            Token::NetQueues(number) => 3 << 8 | u64::from(number),
            Token::Tap(number) => 4 << 8 | u64::from(number),
            Token::Balloon => 5 << 8,
        }
    }

    fn from_data(data: u64) -> Option<Token> {
        let [number, ..] = data.to_le_bytes();
        [
            Token::Report,
            Token::Rng,
            Token::Balloon,
            Token::Vsock,
            Token::NetQueues(number),
            Token::Tap(number),
        ]
        .into_iter()
        .find(|token| token.data() == data)
    }
}

/// The descriptors that are watched.
pub(crate) struct Poll(Epoll);

impl Poll {
    /// Watches nothing yet.
    pub(crate) fn new() -> Result<Poll, Error> {
        Epoll::new().map(Poll).map_err(Error::system("epoll"))
    }

    /// Watches a descriptor for as long as it is open.
    pub(crate) fn watch(
        &self,
        fd: &impl AsRawFd,
        set: EventSet,
        token: Token,
    ) -> Result<(), Error> {
        let event = EpollEvent::new(set, token.data());
        self.0
            .ctl(ControlOperation::Add, fd.as_raw_fd(), event)
            .map_err(Error::system("epoll"))
    }

    /// Watches the events of a device's queues, edge-triggered: they need not be read, and may be raised while the
    /// driver has no device running.
    pub(crate) fn watch_queues(&self, kicks: &[EventFd], token: Token) -> Result<(), Error> {
        let set = EventSet::IN | EventSet::EDGE_TRIGGERED;
        kicks
            .iter()
            .try_for_each(|kick| self.watch(kick, set, token))
    }

    /// What is ready, or a part of it. Does not wait.
    pub(crate) fn ready(&self) -> Result<impl Iterator<Item = Token> + use<>, Error> {
        let mut ready = [EpollEvent::default(); MAX_EVENTS];
        let count = match self.0.wait(0, &mut ready) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other.map_err(Error::system("epoll"))?,
        };
        let ready = ready.into_iter().take(count);
        Ok(ready.filter_map(|event| Token::from_data(event.data())))
    }

    /// Readable when something is ready.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        sys::epoll_fd(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_data_names_one_token() {
        for token in [
            Token::Report,
            Token::Rng,
            Token::Balloon,
            Token::Vsock,
            Token::NetQueues(0),
            Token::NetQueues(255),
            Token::Tap(0),
            Token::Tap(7),
        ] {
            assert_eq!(Token::from_data(token.data()), Some(token));
        }
        for data in [1, 0x101, 0x501, 0x600, 0x1_0000, u64::MAX] {
            assert_eq!(Token::from_data(data), None);
        }
    }
}
