//! What PID 1 has done by others because it may take long, or for ever: changing limits, for which the
//! kernel first makes room, reading the command lines of processes, which are in the memory of those, and
//! unmounting what the host serves.
//!
//! Invariants: each errand is one stage process and is answered exactly once; there is one change of
//! a container's limits at a time, so that what it puts back when it fails is what was; all errands
//! are bounded in number.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::read;
use protocol::{ContainerId, Decoder, Failure, FailureKind, Reply};

use super::spawn::{Inheritance, SetupFile, spawn_stage};
use crate::error::{Error, Result};
use crate::task::{Report, Task};

/// Maximum number of errands at a time that change no limits.
const MAX_OTHERS: usize = 64;

/// The answer to a request.
pub(crate) type Answer = std::result::Result<Reply, Failure>;

/// All errands, by numbers that are used once.
#[derive(Default)]
pub(crate) struct Errands {
    table: BTreeMap<u64, Errand>,
    last: u64,
}

struct Errand {
    request: u64,
    /// The container whose limits it changes, if it does.
    updates: Option<ContainerId>,
    wire: OwnedFd,
    decoder: Decoder,
}

impl Errands {
    /// Begins an errand for a request. `watch` is given its number, and the wire to be watched for it.
    ///
    /// # Errors
    /// There are too many already, no process is to be had, or `watch` fails.
    pub(crate) fn begin(
        &mut self,
        request: u64,
        container: ContainerId,
        task: &Task,
        setup: Option<&SetupFile>,
        watch: impl FnOnce(u64, BorrowedFd<'_>) -> Result<()>,
    ) -> Result<()> {
        let updates = matches!(task, Task::Update(_)).then_some(container);
        self.check_room(updates)?;
        let wire = spawn_stage(task, Inheritance::silent(setup))?;
        watch(self.last + 1, wire.as_fd())?;
        self.add(request, updates, wire);
        Ok(())
    }

    fn check_room(&self, updates: Option<ContainerId>) -> Result<()> {
        let same = self.table.values().filter(|e| e.updates == updates);
        match (updates, same.count()) {
            (Some(_), 1..) => Err(Error::Config("another update is under way".into())),
            (None, MAX_OTHERS..) => {
                let text = "too many requests of that kind are under way";
                Err(Error::Config(text.into()))
            }
            _ => Ok(()),
        }
    }

    fn add(&mut self, request: u64, updates: Option<ContainerId>, wire: OwnedFd) -> u64 {
        self.last += 1;
        let errand = Errand {
            request,
            updates,
            wire,
            decoder: Decoder::new(),
        };
        self.table.insert(self.last, errand);
        self.last
    }

    /// Reads what has come; the request and its answer when the errand is done.
    pub(crate) fn hear(&mut self, number: u64) -> Option<(u64, Answer)> {
        let errand = self.table.get_mut(&number)?;
        let answer = errand.hear()?;
        let request = errand.request;
        self.table.remove(&number);
        Some((request, answer))
    }
}

impl Errand {
    fn hear(&mut self) -> Option<Answer> {
        let failed = |text: &str| Some(Err(Failure::message(FailureKind::Other, text)));
        let mut piece = [0; 16 << 10];
        loop {
            match read(&self.wire, &mut piece) {
                Err(Errno::EAGAIN) => return None,
                Err(Errno::EINTR) => {}
                Ok(0) | Err(_) => return failed("the process that was to do it has ended"),
                Ok(count) => self.decoder.push(&piece[..count]),
            }
            match self.decoder.take() {
                Ok(None) => {}
                Ok(Some(Report::Answered(answer))) => return Some(answer),
                Ok(Some(Report::Failed(failure))) => return Some(Err(failure)),
                Ok(Some(_)) | Err(_) => {
                    return failed("the process that was to do it made no sense");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn begin(
        errands: &mut Errands,
        request: u64,
        updates: Option<ContainerId>,
    ) -> (u64, UnixStream) {
        let (wire, stage) = UnixStream::pair().unwrap();
        wire.set_nonblocking(true).unwrap();
        errands.check_room(updates).unwrap();
        (errands.add(request, updates, wire.into()), stage)
    }

    fn say(stage: &mut UnixStream, report: &Report) {
        let frame = protocol::encode(report).unwrap();
        stage.write_all(&frame).unwrap();
    }

    #[test]
    fn it_is_answered_once_when_it_is_done() {
        let mut errands = Errands::default();
        let (number, mut stage) = begin(&mut errands, 7, Some(0));
        assert_eq!(errands.hear(number), None);
        say(&mut stage, &Report::Answered(Ok(Reply::Done)));
        assert_eq!(errands.hear(number), Some((7, Ok(Reply::Done))));
        drop(stage);
        assert_eq!(errands.hear(number), None);
    }

    #[test]
    fn one_that_ends_early_is_a_failure() {
        let mut errands = Errands::default();
        let (number, stage) = begin(&mut errands, 7, None);
        drop(stage);
        assert!(matches!(errands.hear(number), Some((7, Err(_)))));
        let (number, mut stage) = begin(&mut errands, 8, None);
        say(&mut stage, &Report::Prepared);
        assert!(matches!(errands.hear(number), Some((8, Err(_)))));
        let failure = Failure::message(FailureKind::Config, "no");
        let (number, mut stage) = begin(&mut errands, 9, None);
        say(&mut stage, &Report::Failed(failure.clone()));
        assert_eq!(errands.hear(number), Some((9, Err(failure))));
        assert!(errands.table.is_empty());
    }

    #[test]
    fn they_are_bounded_and_do_not_keep_each_other_out() {
        let mut errands = Errands::default();
        let lists: Vec<_> = (0..64).map(|n| begin(&mut errands, n, None)).collect();
        assert!(errands.check_room(None).is_err());
        let (number, update) = begin(&mut errands, 99, Some(0));
        let error = errands.check_room(Some(0)).unwrap_err().to_string();
        assert_eq!(error, "another update is under way");
        assert!(errands.check_room(Some(1)).is_ok(), "another container's");
        drop((lists, update));
        assert!(errands.hear(number).is_some());
        assert!(errands.check_room(Some(0)).is_ok());
    }
}
