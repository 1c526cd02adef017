//! The user and group ids that machine processes and stubs have on this host, and nobody else.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::error::{Doing, SystemError};

/// Where the administrator gives ids away (subuid(5)).
const FILE: &str = "/etc/subuid";

/// Whose ids they are there.
const NAME: &str = "chiton";

/// The largest pid there can be, and one (`PID_MAX_LIMIT` of linux/threads.h).
const PID_LIMIT: u32 = 1 << 22;

/// Where nobody gives ids away: behind those that systemd uses for containers (its UIDS-GIDS.md).
const DEFAULT: Range<u32> = 0x7800_0000..0x7800_0000 + PID_LIMIT;

/// Why there are no ids.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// An entry is not what it should be.
    #[error("{FILE}: {NAME} has {entry:?}: {problem}")]
    Entry {
        /// The line.
        entry: String,
        /// What is wrong with it.
        problem: String,
    },
    #[error(transparent)]
    System(#[from] SystemError),
}

/// A range of ids. There is one for each pid, so that no two processes have the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ids(Range<u32>);

#[cfg(test)]
impl Default for Ids {
    fn default() -> Ids {
        Ids(DEFAULT)
    }
}

impl Ids {
    #[cfg(test)]
    pub(crate) fn all(self) -> Range<u32> {
        self.0
    }

    /// Those of this host.
    pub(crate) fn of_host() -> Result<Ids, Error> {
        let path = Path::new(FILE);
        match fs::read_to_string(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Ids(DEFAULT)),
            text => given(&text.doing_to("read", path)?, pid_max).map(Ids),
        }
    }

    /// The calling process's.
    pub(crate) fn own(&self) -> u32 {
        self.0.start + std::process::id() % (self.0.end - self.0.start).max(1)
    }
}

/// `kernel.pid_max` of sysctl(8).
fn pid_max() -> io::Result<u32> {
    let path = PathBuf::from("/proc/sys/kernel/pid_max");
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(io::Error::other)
}

fn given(text: &str, pid_max: impl FnOnce() -> io::Result<u32>) -> Result<Range<u32>, Error> {
    let mut entries = text.lines().map(|line| (line, line.split(':')));
    let entry = entries.find_map(|(line, mut fields)| {
        (fields.next() == Some(NAME)).then(|| (line, fields.collect::<Vec<_>>()))
    });
    let Some((line, fields)) = entry else {
        return Ok(DEFAULT);
    };
    let wrong = |problem: String| Error::Entry {
        entry: line.to_owned(),
        problem,
    };
    let range = match fields[..] {
        [first, count] => first.parse::<u32>().ok().zip(count.parse::<u32>().ok()),
        _ => None,
    };
    let range = range.and_then(|(first, count)| Some(first..first.checked_add(count)?));
    let range = range.ok_or_else(|| wrong("not NAME:FIRST:COUNT".into()))?;
    if range.start == 0 {
        return Err(wrong("0 is root".into()));
    }
    let needed = pid_max().doing("read kernel.pid_max")?;
    if range.len() < usize::try_from(needed).unwrap_or(usize::MAX) {
        let problem = format!("there must be as many as kernel.pid_max says, {needed}");
        return Err(wrong(problem));
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_the_default_or_that_of_the_entry() {
        let range = |text: &str| given(text, || Ok(1000)).map_err(|e| e.to_string());
        assert_eq!(range("").unwrap(), DEFAULT);
        assert_eq!(range("chitons:1:5000\nroot:1:2\n").unwrap(), DEFAULT);
        let both = "root:100000:65536\nchiton:200000:1000\n";
        assert_eq!(range(both).unwrap(), 200_000..201_000);
        for (entry, problem) in [
            ("chiton:200000", "not NAME:FIRST:COUNT"),
            ("chiton:x:1000", "not NAME:FIRST:COUNT"),
            ("chiton:4294967295:1000", "not NAME:FIRST:COUNT"),
            ("chiton:0:1000", "0 is root"),
            (
                "chiton:1:999",
                "there must be as many as kernel.pid_max says, 1000",
            ),
        ] {
            let expected = format!("/etc/subuid: chiton has {entry:?}: {problem}");
            assert_eq!(range(entry).unwrap_err(), expected);
        }
    }
}
