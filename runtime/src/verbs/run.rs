//! `run`: create and start; in the foreground also wait, pass signals on, and delete.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::context::Context;
use super::create::{Created, create_locked};
use super::delete::{destroy, let_end};
use super::error::Error;
use super::start::start_created;
use crate::cli;
use crate::config::Config;
use crate::control::Address;
use crate::error::Doing;
use crate::host::cgroup::Limit;
use crate::host::notify::NotifySocket;
use crate::host::relay::Relay;
use crate::host::signals;
use crate::plan;
use crate::report::Report;
use crate::state::{self, Entry, Identity, JOURNAL, Record, StateDir, read_journal};
use crate::sys;

/// Runs a container; the exit code for the caller.
pub(crate) fn run(context: &Context<'_>, args: &cli::Run) -> Result<u8, Error> {
    create_and_start(context, args).map_err(|e| Error::Failed("run", Box::new(e)))
}

fn create_and_start(context: &Context<'_>, args: &cli::Run) -> Result<u8, Error> {
    let Created {
        dir,
        record,
        process,
        lock,
        master,
        notify,
    } = create_locked(context, &args.create, args.detach)?;
    let code = match start(&dir, &record, context.report, args.detach, master.is_some()) {
        Ok(None) => {
            if let Some(socket) = notify {
                drop(lock);
                // As with runc the container goes on, whether or not somebody hears of it.
                if let Err(e) = socket.attend(&dir.address(Some(&record)), process.pid) {
                    context.report.warn(&e.to_string());
                }
            }
            return Ok(0);
        }
        // Others may delete the container while it runs.
        Ok(Some(signals)) => {
            drop(lock);
            if let Some(socket) = notify {
                attend_notify(socket, dir.address(Some(&record)));
            }
            let end = End::watch(&dir, &record);
            let code = lend(master).and_then(|relay| attend(process, &signals, relay, end));
            if let Some(reason) = lost(&dir) {
                context.report.error(&reason);
            }
            code
        }
        Err(e) => {
            // Why there is no container matters more than what is left of it.
            let _ = destroy(&dir, Some(&record), lock, context.report);
            return Err(e);
        }
    };
    if !args.keep {
        match dir
            .lock()
            .map_err(Error::from)
            .and_then(|lock| destroy(&dir, Some(&record), lock, context.report))
        {
            Ok(()) | Err(Error::State(state::Error::NotFound)) => {}
            Err(e) => return code.and(Err(e)),
        }
    }
    code
}

/// Tells of the container's readiness, in the background; this process is what is to be watched then.
fn attend_notify(socket: NotifySocket, address: Address) {
    let pid = std::process::id().cast_signed();
    // It ends with the program at the latest.
    std::thread::spawn(move || socket.attend(&address, pid));
}

/// Why the container ended, if not by its own doing.
fn lost(dir: &StateDir) -> Option<String> {
    // Somebody may have deleted the container.
    let entries = read_journal(dir.path()).unwrap_or_default();
    entries.into_iter().find_map(|entry| match entry {
        Entry::Exited { reason, .. } => reason,
        Entry::Started | Entry::Paused => None,
    })
}

/// Starts the container; with the caller's signals as events unless it is left alone.
fn start(
    dir: &StateDir,
    record: &Record,
    report: &Report,
    detach: bool,
    terminal: bool,
) -> Result<Option<SignalFd>, Error> {
    let signals = (!detach).then(|| signals::take(terminal));
    let signals = signals.transpose().doing("take the signals")?;
    start_created(dir, record, report)?;
    Ok(signals)
}

/// Lends the caller's terminal to a container that has one of its own.
fn lend(master: Option<OwnedFd>) -> Result<Option<Relay>, Error> {
    let relay = master.map(Relay::start).transpose();
    Ok(relay.doing("lend the terminal")?)
}

/// The end of a program whose machine has a limit of processor time.
struct End<'a> {
    dir: &'a StateDir,
    record: &'a Record,
    journal: Inotify,
}

impl End<'_> {
    /// Where it cannot be watched the machine ends more slowly.
    fn watch<'a>(dir: &'a StateDir, record: &'a Record) -> Option<End<'a>> {
        let config = Config::load(dir.path()).ok()?;
        let limits = plan::limits_of_speed(&config.spec);
        if !limits.iter().any(Limit::is_of_processors) {
            return None;
        }
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let journal = Inotify::init(flags).ok()?;
        let path = dir.path().join(JOURNAL);
        journal.add_watch(&path, AddWatchFlags::IN_MODIFY).ok()?;
        let end = End {
            dir,
            record,
            journal,
        };
        // It may have been written before.
        end.look();
        Some(end)
    }

    fn look(&self) {
        // What is read is told again when there is more.
        let _ = self.journal.read_events();
        let entries = read_journal(self.dir.path()).unwrap_or_default();
        if matches!(entries.last(), Some(Entry::Exited { .. })) {
            let_end(self.record);
        }
    }
}

/// Passes signals on to the container until it ends; its exit code, or 128 and the number of the signal that ended it.
fn attend(
    process: Identity,
    signals: &SignalFd,
    relay: Option<Relay>,
    end: Option<End<'_>>,
) -> Result<u8, Error> {
    let pid = Pid::from_raw(process.pid);
    let raw = rustix::process::Pid::from_raw(process.pid).ok_or(Error::NotRunning)?;
    // A child that has ended keeps its pid until it is waited for: this is the container's process.
    let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty())
        .doing("open the machine process")?;
    loop {
        let mut polled = vec![
            PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        let journal = end.iter().map(|end| end.journal.as_fd());
        polled.extend(journal.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut polled, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result.doing("wait for the container")?,
        };
        if polled[0].any() == Some(true) {
            let code = reap(pid);
            if let Some(relay) = relay {
                relay.finish();
            }
            return code;
        }
        let told = polled.get(2).and_then(PollFd::any) == Some(true);
        if let (true, Some(end)) = (told, &end) {
            end.look();
        }
        while let Some(info) = signals.read_signal().doing("read a signal")? {
            match (i32::try_from(info.ssi_signo), &relay) {
                // The container's process hears of it by the pseudo-terminal.
                (Ok(libc::SIGWINCH), Some(relay)) => drop(relay.resize()),
                // The container's process does to the container what is done to itself. It may have ended just now.
                (Ok(signal), _) if signals::is_passed_on(signal) => {
                    sys::kill(process.pid, signal);
                }
                _ => {}
            }
        }
    }
}

fn reap(pid: Pid) -> Result<u8, Error> {
    loop {
        match waitpid(pid, None) {
            Err(Errno::EINTR) => {}
            Ok(WaitStatus::Exited(_, code)) => return Ok(u8::try_from(code).unwrap_or(u8::MAX)),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return Ok(u8::try_from(128 + signal as i32).unwrap_or(u8::MAX));
            }
            Ok(_) => {}
            Err(e) => return Ok(Err(e).doing("wait for the container")?),
        }
    }
}
