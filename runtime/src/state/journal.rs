//! The journal: the moments in a container's life that only the machine process sees, one JSON value per line.
//!
//! ```text
//! (nothing) ──> started ──pause──> started paused ──resume──> started ──> ... ──> started exited
//! ```
//! The machine process is its only writer, through a descriptor opened before the jail. Readers take whole lines only.
//! `paused` is the last line exactly while the container is paused: a resumed container's journal is cut back to what
//! it was before.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use protocol::Exit;
use serde::{Deserialize, Serialize};

/// Name of the journal in the state directory.
pub(crate) const JOURNAL: &str = "journal";

/// Maximum size in bytes of a journal that is read: its entries, one of them with an error text.
const JOURNAL_MAX: u64 = 256 << 10;

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Entry {
    /// The container's program has been executed.
    Started,
    /// The container is paused. Taken away again by resume: it is the last line as long as the pause lasts.
    Paused,
    /// The container has ended.
    Exited {
        /// How.
        exit: Exit,
        /// Why, if it was not the program's own doing: the machine's last words included.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

/// The journal as its writer sees it.
pub(crate) struct Journal {
    file: File,
    /// The journal's length without the `Paused` at its end, if that is there.
    before_pause: Option<u64>,
}

impl AsFd for Journal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Journal {
    /// Makes an empty journal.
    ///
    /// # Errors
    /// Those of openat(2); `EEXIST` if there is one.
    pub(crate) fn create(state_dir: BorrowedFd<'_>) -> io::Result<Journal> {
        let flags =
            OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o600);
        let file = openat(state_dir, OsStr::new(JOURNAL), flags, mode)?;
        Ok(Journal {
            file: file.into(),
            before_pause: None,
        })
    }

    /// One that another process has made, which has written nothing to it.
    pub(crate) fn made(file: OwnedFd) -> Journal {
        Journal {
            file: file.into(),
            before_pause: None,
        }
    }

    /// Appends one entry, in place of `Paused` if that is the last one.
    ///
    /// # Errors
    /// The file cannot be written; the journal is what it was before.
    pub(crate) fn append(&mut self, entry: &Entry) -> io::Result<()> {
        self.resume()?;
        let before = self.file.metadata()?.len();
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        if let Err(e) = self.file.write_all(&line) {
            // Half a line would be the begin of the next one.
            self.file.set_len(before)?;
            return Err(e);
        }
        self.before_pause = (*entry == Entry::Paused).then_some(before);
        Ok(())
    }

    /// Takes `Paused` away again.
    ///
    /// # Errors
    /// The file cannot be cut; `Paused` is still there then.
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        if let Some(length) = self.before_pause {
            self.file.set_len(length)?;
            self.before_pause = None;
        }
        Ok(())
    }
}

/// The entries written so far; none if there is no journal. Its writer may have been taken over by its guest: the
/// entries end where a line is not one.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn read_journal(state_dir: &Path) -> io::Result<Vec<Entry>> {
    let mut text = Vec::new();
    match File::open(state_dir.join(JOURNAL)) {
        Ok(file) => file.take(JOURNAL_MAX).read_to_end(&mut text)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    Ok(lines
        .take_while(|line| line.ends_with(b"\n"))
        .map_while(|line| serde_json::from_slice(line).ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn journal(dir: &Path) -> Journal {
        Journal::create(File::open(dir).unwrap().as_fd()).unwrap()
    }

    #[test]
    fn reads_whole_lines_only() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_journal(dir.path()).unwrap(), []);
        let mut journal = journal(dir.path());
        journal.append(&Entry::Started).unwrap();
        let end = Entry::Exited {
            exit: Exit::Signal(9),
            reason: Some("two\nlines".into()),
        };
        journal.append(&end).unwrap();
        journal.file.write_all(b"{\"exi").unwrap();
        assert_eq!(read_journal(dir.path()).unwrap(), [Entry::Started, end]);
    }

    #[test]
    fn paused_is_the_last_entry_while_the_container_is_paused() {
        let dir = tempfile::tempdir().unwrap();
        let read = || read_journal(dir.path()).unwrap();
        let mut journal = journal(dir.path());
        journal.append(&Entry::Started).unwrap();
        for _ in 0..3 {
            journal.append(&Entry::Paused).unwrap();
            assert_eq!(read(), [Entry::Started, Entry::Paused]);
            journal.resume().unwrap();
            assert_eq!(read(), [Entry::Started]);
            journal.resume().unwrap();
        }
        journal.append(&Entry::Paused).unwrap();
        journal.append(&Entry::Paused).unwrap();
        let end = Entry::Exited {
            exit: Exit::Code(0),
            reason: None,
        };
        journal.append(&end).unwrap();
        assert_eq!(read(), [Entry::Started, end]);
    }

    #[test]
    fn there_is_one_journal() {
        let dir = tempfile::tempdir().unwrap();
        let directory = File::open(dir.path()).unwrap();
        Journal::create(directory.as_fd()).unwrap();
        assert!(Journal::create(directory.as_fd()).is_err());
    }

    #[test]
    fn the_entries_end_where_a_line_is_not_one() {
        let dir = tempfile::tempdir().unwrap();
        for garbage in ["hello\n", "\"star\"started\"\n", "\n", "\0", "\u{fffd}\n"] {
            let text = format!("\"started\"\n{garbage}\"paused\"\n");
            std::fs::write(dir.path().join(JOURNAL), text).unwrap();
            assert_eq!(read_journal(dir.path()).unwrap(), [Entry::Started]);
        }
        std::fs::write(dir.path().join(JOURNAL), b"\xff\xfe\n").unwrap();
        assert_eq!(read_journal(dir.path()).unwrap(), []);
    }
}
