//! `events`: statistics and out-of-memory kills, one JSON object in a line each, in runc's form.
//!
//! The kills come over a connection of their own, so that a guest that is slow with its statistics does not hold them
//! up. There is one request for statistics at a time: what is due meanwhile is left out.

pub(super) mod statistics;

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::ask::{invalid_reply, open};
use super::error::Error;
use crate::cli;
use crate::control::{self, Address, Connection, Control, ControlReply};
use crate::error::Doing;
use crate::report::Report;
use crate::state::{self, Record, StateDir, Verb, process};
use statistics::{Event, Statistics, host_files};

/// Longest time between two statistics; with a longer one the clock would overflow before anybody saw the second.
const INTERVAL_MAX: Duration = Duration::from_secs(u32::MAX as u64);

/// How long a machine process may take to end after it has closed its sockets.
const END: Duration = Duration::from_secs(10);

/// Prints statistics and out-of-memory kills until the container ends, or the statistics once.
pub(crate) fn events(root: &Path, args: &cli::Events, report: &Report) -> Result<(), Error> {
    let dir = open(root, &args.id)?;
    if args.interval.is_zero() {
        return Err(Error::Interval);
    }
    let record = dir.record()?;
    dir.status(record.as_ref())?
        .allows(Verb::Events, dir.id())?;
    let not_running = || Error::from(state::Error::NotRunningId(dir.id().to_owned()));
    let watched = Watched {
        record: &record.ok_or_else(not_running)?,
        dir: &dir,
    };
    let result = if args.stats {
        watched.print(control::control(&watched.address(), &Control::Statistics)?)
    } else {
        watched.follow(args.interval.min(INTERVAL_MAX), report)
    };
    match result {
        Err(Error::NotRunning) => Err(not_running()),
        result => result,
    }
}

/// The container.
struct Watched<'a> {
    dir: &'a StateDir,
    record: &'a Record,
}

impl Watched<'_> {
    /// Until the container ends.
    fn follow(&self, interval: Duration, report: &Report) -> Result<(), Error> {
        let kills = Connection::open(&self.address())?;
        kills.ask(&Control::Events)?;
        let mut asked: Option<Connection> = None;
        let mut next = Instant::now() + interval;
        loop {
            let (killed, answered) = wait(&kills, asked.as_ref(), next)?;
            if killed {
                match kills.receive()? {
                    Some(ControlReply::OutOfMemory) => self.line("oom", None)?,
                    Some(ControlReply::NotRunning) => return Ok(()),
                    None => return self.ended(),
                    Some(_) => return Err(invalid_reply()),
                }
            }
            if answered && let Some(connection) = asked.take() {
                // No answer means that the container has ended, which the other connection tells, or that the guest is
                // asked too much.
                let printed = connection
                    .receive()?
                    .map_or(Ok(()), |reply| self.print(reply));
                match printed {
                    Err(e @ (Error::Reply(_) | Error::Statistics(_))) => {
                        report.warn(&e.to_string())
                    }
                    Err(Error::NotRunning) => {}
                    printed => printed?,
                }
            }
            let now = Instant::now();
            if now >= next {
                next = now + interval;
                if asked.is_none() {
                    asked = self.asked()?;
                }
            }
        }
    }

    fn address(&self) -> Address {
        self.dir.address(Some(self.record))
    }

    /// A request for statistics; `None` at the container's end.
    fn asked(&self) -> Result<Option<Connection>, Error> {
        let sent = Connection::open(&self.address()).and_then(|connection| {
            connection.ask(&Control::Statistics)?;
            Ok(connection)
        });
        match sent {
            Err(control::Error::NotRunning) => Ok(None),
            sent => Ok(Some(sent?)),
        }
    }

    fn print(&self, reply: ControlReply) -> Result<(), Error> {
        match reply {
            ControlReply::Statistics(guest) => {
                let host = self.record.cgroup.as_deref().map(host_files);
                self.line("stats", Some(Statistics::new(&guest, host.as_deref())?))
            }
            ControlReply::NotRunning => Err(Error::NotRunning),
            ControlReply::Failed(text) => Err(Error::Reply(text)),
            _ => Err(invalid_reply()),
        }
    }

    fn line(&self, kind: &'static str, data: Option<Statistics>) -> Result<(), Error> {
        let id = self.dir.id();
        let mut line = serde_json::to_string(&Event { kind, id, data })
            .map_err(io::Error::from)
            .doing("write statistics")?;
        line.push('\n');
        let mut output = io::stdout().lock();
        let written = output.write_all(line.as_bytes());
        let written = written.and_then(|()| output.flush());
        Ok(written.doing("write to standard output")?)
    }

    /// Whether the machine has ended, which is why it does not speak any more.
    fn ended(&self) -> Result<(), Error> {
        let Some(machine) = self.record.process else {
            return Ok(());
        };
        let doing = "wait for the machine process";
        match machine.open().doing(doing)? {
            Some(pidfd) if !process::ends_within(&pidfd, END).doing(doing)? => {
                let text = "the machine process has closed the connection";
                Err(Error::Reply(text.to_owned()))
            }
            _ => Ok(()),
        }
    }
}

/// Waits until one of the connections has something to say or the time has come.
fn wait(
    kills: &Connection,
    asked: Option<&Connection>,
    until: Instant,
) -> Result<(bool, bool), Error> {
    let left = until.saturating_duration_since(Instant::now());
    // In whole milliseconds: rounded up, so that the time has come at the end.
    let left = left.saturating_add(Duration::from_micros(999));
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    let mut polled = vec![PollFd::new(kills.as_fd(), PollFlags::POLLIN)];
    polled.extend(asked.map(|asked| PollFd::new(asked.as_fd(), PollFlags::POLLIN)));
    match poll(&mut polled, timeout) {
        Err(Errno::EINTR) => Ok((false, false)),
        result => {
            result.doing("wait for events")?;
            let ready = |index: usize| polled.get(index).is_some_and(|fd| fd.any() == Some(true));
            Ok((ready(0), ready(1)))
        }
    }
}
