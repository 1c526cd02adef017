//! The journal: the two moments in a container's life that only the machine process sees, one JSON value per line.
//!
//! The machine process is its only writer, through a descriptor opened before the jail. Readers take whole lines only.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use protocol::Exit;
use serde::{Deserialize, Serialize};

/// Name of the journal in the state directory.
pub(crate) const JOURNAL: &str = "journal";

/// Longest journal that is read: two entries with an error text.
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

/// Appends one entry.
pub(super) fn append(journal: &mut File, entry: &Entry) -> io::Result<()> {
    let mut line = serde_json::to_vec(entry)?;
    line.push(b'\n');
    journal.write_all(&line)
}

/// The entries written so far; none if there is no journal.
///
/// # Errors
/// When the file cannot be read or a whole line of it is no entry.
pub(crate) fn read_journal(state_dir: &Path) -> io::Result<Vec<Entry>> {
    let mut text = String::new();
    match File::open(state_dir.join(JOURNAL)) {
        Ok(file) => file.take(JOURNAL_MAX).read_to_string(&mut text)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| serde_json::from_str(line).map_err(io::Error::from))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_whole_lines_only() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_journal(dir.path()).unwrap(), []);
        let mut file = File::create(dir.path().join(JOURNAL)).unwrap();
        append(&mut file, &Entry::Started).unwrap();
        let end = Entry::Exited {
            exit: Exit::Signal(9),
            reason: Some("two\nlines".into()),
        };
        append(&mut file, &end).unwrap();
        file.write_all(b"{\"exi").unwrap();
        assert_eq!(read_journal(dir.path()).unwrap(), [Entry::Started, end]);
    }

    #[test]
    fn garbage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(JOURNAL), "hello\n").unwrap();
        read_journal(dir.path()).unwrap_err();
    }
}
