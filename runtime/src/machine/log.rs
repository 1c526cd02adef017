//! The machine process's log: what went wrong while the machine lived and did not end it.
//!
//! Lines go to the file `log` in the container's state directory and to the caller's `--log`, both opened before the
//! jail. Much of what is worth a line is the guest's doing, so a guest decides how often one comes. It must fill
//! neither: a burst of lines is written, then one in a while, with a word on how many were left out; and the file in
//! the state directory, which may lie in memory, has a maximum length.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::timeline::now;
use crate::filter::LastWords;
use crate::report::Report;

/// Name of the log in the state directory.
const LOG: &str = "log";

/// Maximum length of the file in the state directory, in bytes.
const LENGTH_MAX: usize = 64 << 10;

/// Maximum length of a line, in characters of its text.
const LINE_MAX: usize = 1 << 10;

/// Lines that are written however fast they come.
const BURST: u32 = 32;

/// After a burst there is one more line for each of these.
const REFILL: Duration = Duration::from_secs(10);

/// The log. Never fails: there is nobody to be told of a line that could not be written.
pub(super) struct Log {
    own: File,
    caller: Option<Report>,
    length: usize,
    rate: Rate,
}

impl Log {
    /// Makes an empty log in the state directory, and writes to the caller's log, if there is a `report` that has one,
    /// as well.
    ///
    /// # Errors
    /// Those of openat(2) and dup(2).
    pub(super) fn create(state_dir: BorrowedFd<'_>, report: Option<&Report>) -> io::Result<Log> {
        let flags =
            OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CLOEXEC;
        let own: OwnedFd = openat(
            state_dir,
            OsStr::new(LOG),
            flags,
            Mode::from_bits_truncate(0o600),
        )?;
        Ok(Log {
            own: own.into(),
            caller: report.map_or(Ok(None), Report::to_log_only)?,
            length: 0,
            rate: Rate::new(now()),
        })
    }

    /// The descriptors that it writes to.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let caller = self.caller.as_ref().and_then(Report::log);
        [self.own.as_fd()].into_iter().chain(caller)
    }

    /// Where a line goes that must be written without this value's help, as the process ends.
    ///
    /// # Errors
    /// Those of dup(2).
    pub(super) fn last_words(&self) -> io::Result<Vec<LastWords>> {
        let mut places = vec![LastWords {
            file: self.own.try_clone()?.into(),
            before: "",
            behind: "\n",
        }];
        if let Some(caller) = &self.caller
            && let Some(file) = caller.log()
        {
            let (before, behind) = caller.bare_line();
            let file = file.try_clone_to_owned()?;
            places.push(LastWords {
                file,
                before,
                behind,
            });
        }
        Ok(places)
    }

    /// Writes a line, unless too many came before it. The text may hold words of the guest.
    pub(super) fn write(&mut self, text: &str) {
        let Some(dropped) = self.rate.admit(now()) else {
            return;
        };
        if dropped > 0 {
            self.put(&format!("{dropped} lines were left out"));
        }
        self.put(text);
    }

    fn put(&mut self, text: &str) {
        let printable = text.chars().filter(|c| !c.is_control());
        let mut line: String = printable.take(LINE_MAX).collect();
        if let Some(caller) = &self.caller {
            caller.warn(&line);
        }
        line.push('\n');
        self.length += line.len();
        if self.length <= LENGTH_MAX {
            let _ = self.own.write_all(line.as_bytes());
        }
    }
}

/// Admits [`BURST`] lines, then one for each [`REFILL`] that has gone by.
struct Rate {
    tokens: u32,
    since: Duration,
    dropped: u64,
}

impl Rate {
    fn new(now: Duration) -> Rate {
        Rate {
            tokens: BURST,
            since: now,
            dropped: 0,
        }
    }

    /// How many lines were left out since the last one, if one more may be written.
    fn admit(&mut self, now: Duration) -> Option<u64> {
        let gone = now.saturating_sub(self.since).as_nanos() / REFILL.as_nanos();
        let gone = u32::try_from(gone).unwrap_or(BURST).min(BURST);
        if gone > 0 {
            self.tokens = (self.tokens + gone).min(BURST);
            self.since = now;
        }
        if self.tokens == 0 {
            self.dropped += 1;
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::LogFormat;

    #[test]
    fn a_guest_that_makes_noise_gets_few_lines() {
        let mut rate = Rate::new(Duration::ZERO);
        let burst = (0..1000).filter(|_| rate.admit(Duration::ZERO).is_some());
        assert_eq!(burst.count(), BURST as usize);
        assert_eq!(rate.admit(REFILL - Duration::from_nanos(1)), None);
        assert_eq!(rate.admit(REFILL), Some(1000 - u64::from(BURST) + 1));
        assert_eq!(rate.admit(REFILL), None);
        // A long silence is no credit beyond a burst.
        let later = REFILL * 1000;
        let again = (0..1000).filter(|_| rate.admit(later).is_some());
        assert_eq!(again.count(), BURST as usize);
    }

    #[test]
    fn lines_go_to_both_files_and_hold_nothing_that_a_terminal_obeys() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = File::open(dir.path()).unwrap();
        let path = dir.path().join("callers");
        let report = Report::new(Some(&path), LogFormat::Json, false).unwrap();
        let mut log = Log::create(state_dir.as_fd(), Some(&report)).unwrap();
        assert_eq!(log.descriptors().count(), 2);
        log.write("device \x1b[2J\nbroken");
        log.write(&"ä".repeat(2 * LINE_MAX));
        let own = std::fs::read_to_string(dir.path().join(LOG)).unwrap();
        let lines: Vec<&str> = own.lines().collect();
        assert_eq!(lines[0], "device [2Jbroken");
        assert_eq!((lines.len(), lines[1].chars().count()), (2, LINE_MAX));
        let callers = std::fs::read_to_string(path).unwrap();
        assert!(callers.starts_with("{\"level\":\"warning\",\"msg\":\"device [2Jbroken\""));
        assert!(
            Log::create(state_dir.as_fd(), Some(&report)).is_err(),
            "there is one"
        );
    }

    #[test]
    fn the_file_in_the_state_directory_has_a_maximum_length() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = File::open(dir.path()).unwrap();
        let report = Report::new(None, LogFormat::Text, false).unwrap();
        let mut log = Log::create(state_dir.as_fd(), Some(&report)).unwrap();
        for _ in 0..1000 {
            log.put(&"x".repeat(LINE_MAX));
        }
        let length = std::fs::metadata(dir.path().join(LOG)).unwrap().len();
        assert!(length <= LENGTH_MAX as u64, "{length}");
        assert!(length > (LENGTH_MAX - 2 * LINE_MAX) as u64, "{length}");
    }
}
