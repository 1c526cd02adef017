//! `list`.

use std::fmt::Write;
use std::fs::File;
use std::path::Path;

use super::error::Error;
use super::state::{State, of};
use crate::cli::{self, ListFormat};
use crate::error::Doing;
use crate::report::Report;
use crate::state::{self, StateDir};

/// The columns of the table, and runc's least width of one with the space behind it.
const HEADER: [&str; 6] = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"];
const WIDTH_MIN: usize = 12;
const SPACE: usize = 3;

/// The containers, as text; none if there is no `root` and `may_be_missing`. One whose state cannot be read is
/// reported, and does not hide the others.
pub(crate) fn list(
    root: &Path,
    may_be_missing: bool,
    args: &cli::List,
    report: &Report,
) -> Result<String, Error> {
    if !may_be_missing {
        File::open(root).doing_to("open", root)?;
    }
    let mut states = Vec::new();
    for dir in StateDir::all(root)? {
        match of(&dir) {
            Ok(state) => states.push(state),
            // Being created, or deleted meanwhile.
            Err(Error::State(state::Error::NotFound)) => {}
            Err(e) => report.warn(&format!("load container {}: {e}", dir.id())),
        }
    }
    Ok(match (args.quiet, args.format) {
        (true, _) => states
            .iter()
            .map(|state| format!("{}\n", state.id))
            .collect(),
        (false, ListFormat::Json) => serde_json::to_string(&states).unwrap_or_default() + "\n",
        (false, ListFormat::Table) => table(&states.iter().map(row).collect::<Vec<_>>()),
    })
}

fn row(state: &State) -> [String; 6] {
    [
        state.id.clone(),
        state.pid.to_string(),
        state.status.to_string(),
        state.bundle.display().to_string(),
        state.created.clone(),
        state.owner.clone(),
    ]
}

fn table(rows: &[[String; 6]]) -> String {
    let header = HEADER.map(str::to_owned);
    let all = || std::iter::once(&header).chain(rows);
    let widths: [usize; 6] = std::array::from_fn(|column| {
        let longest = all()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or_default();
        (longest + SPACE).max(WIDTH_MIN)
    });
    let mut text = String::new();
    for row in all() {
        let (last, columns) = row
            .split_last()
            .map_or((None, &row[..]), |(last, rest)| (Some(last), rest));
        for (cell, width) in columns.iter().zip(widths) {
            // Writing to a string does not fail.
            let _ = write!(text, "{cell:width$}");
        }
        text.push_str(last.map_or("", String::as_str));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_runcs() {
        let header = "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n";
        assert_eq!(table(&[]), header);
        let row = ["a-long-container", "7", "running", "/b", "t", "root"].map(str::to_owned);
        let expected = "ID                 PID         STATUS      BUNDLE      CREATED     OWNER\n\
                        a-long-container   7           running     /b          t           root\n";
        assert_eq!(table(&[row]), expected);
    }
}
