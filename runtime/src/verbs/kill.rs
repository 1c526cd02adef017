//! `kill`. Takes no lock: a container whose create or start hangs can be killed.

use std::path::Path;
use std::time::Duration;

use nix::libc;
use nix::sys::signal::Signal;

use super::ask::{done, open};
use super::delete::let_end;
use super::error::Error;
use crate::cli;
use crate::control::{Address, Control, ControlReply, control, control_within};
use crate::error::Doing;
use crate::state::{Identity, Verb, process};

/// How long a guest may take to obey SIGKILL before its machine is killed.
const GRACE: Duration = Duration::from_secs(10);

/// First and last real-time signal (signal(7); glibc keeps 32 and 33 for itself).
const REAL_TIME: (i32, i32) = (34, 64);

/// Sends a signal to a container.
pub(crate) fn kill(root: &Path, args: &cli::Kill) -> Result<(), Error> {
    let dir = open(root, &args.id)?;
    let signal = parse(&args.signal).ok_or_else(|| Error::UnknownSignal(args.signal.clone()))?;
    let record = dir.record()?;
    let allowed = dir.status(record.as_ref())?.allows(Verb::Kill, dir.id());
    let address = dir.address(record.as_ref());
    let process = record.as_ref().and_then(|record| record.process);
    if let (Ok(()), Some(record), libc::SIGKILL) = (&allowed, &record, signal) {
        let_end(record);
    }
    let result = match (allowed, process) {
        (Err(e), _) => Err(e.into()),
        (Ok(()), None) => Err(Error::NotRunning),
        (Ok(()), Some(_)) if signal == 0 => Ok(()),
        (Ok(()), Some(process)) if signal == libc::SIGKILL => end(&address, process, args.all),
        (Ok(()), Some(_)) => {
            let all = args.all;
            let reply = control(&address, &Control::Kill { signal, all });
            reply.map_err(Error::from).and_then(done)
        }
    };
    match result {
        // There is nothing left that could get it: callers that say --all want just that.
        Err(Error::NotRunning) if args.all => Ok(()),
        result => result,
    }
}

/// SIGKILL: the guest may deliver it, so that output and exit code are the program's; a guest that does not loses the
/// process that stands for the container: its machine or, where it is a member of one, its stub.
fn end(address: &Address, identity: Identity, all: bool) -> Result<(), Error> {
    let Some(pidfd) = identity.open().doing("open the container's process")? else {
        return Err(Error::NotRunning);
    };
    let signal = libc::SIGKILL;
    let reply = control_within(address, &Control::Kill { signal, all }, GRACE);
    let obeyed = matches!(reply, Ok(ControlReply::Done));
    let waiting = "wait for the container's process";
    if !obeyed || !process::ends_within(&pidfd, GRACE).doing(waiting)? {
        process::kill(&pidfd).doing("kill the container's process")?;
        if !process::ends_within(&pidfd, GRACE).doing(waiting)? {
            return Err(Error::Unkillable(identity.pid));
        }
    }
    Ok(())
}

/// A signal by number or by name, with or without `SIG`, in any case; 0 only checks.
fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (0..=REAL_TIME.1).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let offset = |text: &str| text.parse::<u8>().ok().map(i32::from);
    let number = match name {
        "RTMIN" => Some(REAL_TIME.0),
        "RTMAX" => Some(REAL_TIME.1),
        _ if name.starts_with("RTMIN+") => offset(&name[6..]).map(|n| REAL_TIME.0 + n),
        _ if name.starts_with("RTMAX-") => offset(&name[6..]).map(|n| REAL_TIME.1 - n),
        // Other names of the same signals (signal(7)).
        "IOT" => Some(libc::SIGIOT),
        "POLL" => Some(libc::SIGPOLL),
        "CLD" => Some(libc::SIGCHLD),
        _ => {
            return format!("SIG{name}")
                .parse::<Signal>()
                .ok()
                .map(|signal| signal as i32);
        }
    };
    number.filter(|number| (1..=REAL_TIME.1).contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        for (text, expected) in [
            ("0", Some(0)),
            ("9", Some(9)),
            ("64", Some(64)),
            ("65", None),
            ("-1", None),
            ("KILL", Some(9)),
            ("SIGKILL", Some(9)),
            ("sigterm", Some(15)),
            ("hup", Some(1)),
            ("SIGRTMIN", Some(34)),
            ("RTMIN+3", Some(37)),
            ("SIGRTMAX-1", Some(63)),
            ("RTMIN+31", None),
            ("RTMAX-64", None),
            ("IOT", Some(6)),
            ("FROB", None),
            ("", None),
            ("SIG", None),
            ("9x", None),
        ] {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }
}
