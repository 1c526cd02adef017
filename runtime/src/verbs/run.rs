//! `run`: create and start; in the foreground also wait, pass signals on, and delete.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::create::{Context, Created, created};
use super::delete::destroy;
use super::start::start_created;
use crate::cli;
use crate::error::{Error, SystemContext};
use crate::machine::{Entry, read_journal};
use crate::process::Identity;
use crate::state::{Record, StateDir};
use crate::sys;

/// Runs a container; the exit code for the caller.
pub(crate) fn run(context: &Context<'_>, args: &cli::Run) -> Result<u8, Error> {
    ran(context, args).map_err(|e| Error::Failed("run", Box::new(e)))
}

fn ran(context: &Context<'_>, args: &cli::Run) -> Result<u8, Error> {
    let Created {
        dir,
        record,
        machine,
        lock,
    } = created(context, &args.create)?;
    let code = match start(&dir, &record, args.detach) {
        Ok(None) => return Ok(0),
        // Others may delete the container while it runs.
        Ok(Some(signals)) => {
            drop(lock);
            let code = attend(machine, &signals);
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
            .and_then(|lock| destroy(&dir, Some(&record), lock, context.report))
        {
            Ok(()) | Err(Error::NotFound) => {}
            Err(e) => return code.and(Err(e)),
        }
    }
    code
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
fn start(dir: &StateDir, record: &Record, detach: bool) -> Result<Option<SignalFd>, Error> {
    if detach {
        start_created(dir, record)?;
        return Ok(None);
    }
    let signals = SigSet::all();
    signals.thread_block().system("block signals")?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&signals, flags).system("create a signalfd")?;
    start_created(dir, record)?;
    Ok(Some(signals))
}

/// Passes signals on to the container until it ends; its exit code, or 128 and the number of the signal that ended it.
fn attend(machine: Identity, signals: &SignalFd) -> Result<u8, Error> {
    let pid = Pid::from_raw(machine.pid);
    let raw = rustix::process::Pid::from_raw(machine.pid).ok_or(Error::NotRunning)?;
    // A child that has ended keeps its pid until it is waited for: this is the machine.
    let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty())
        .system("open the machine process")?;
    loop {
        let mut polled = [
            PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut polled, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result.system("wait for the container")?,
        };
        if polled[0].any() == Some(true) {
            return reap(pid);
        }
        while let Some(info) = signals.read_signal().system("read a signal")? {
            // The machine process does to the container what is done to itself. It may have ended just now.
            if let Some(signal) = i32::try_from(info.ssi_signo)
                .ok()
                .filter(|n| is_passed_on(*n))
            {
                sys::kill(machine.pid, signal);
            }
        }
    }
}

/// All but those that are about this process itself.
fn is_passed_on(signal: i32) -> bool {
    !matches!(
        signal,
        libc::SIGCHLD | libc::SIGWINCH | libc::SIGURG | libc::SIGPIPE
    )
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
            Err(e) => return Err(e).system("wait for the container"),
        }
    }
}
